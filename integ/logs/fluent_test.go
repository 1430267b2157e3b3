package logs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/integ/await"
)

// fluentEvent is what the server in testdata/fluent prints of an event.
type fluentEvent struct {
	Tag            string
	Seconds, Nanos int64 // Nanos is -1 without a sub-second time
	Record         map[string]string
}

// fluentAt tells the tests, which run in a network of their own, what fluentPrepare has
// made outside of it: the folder, or after a minus sign why there is none.
const fluentAt = "BERTH_TEST_FLUENT"

// fluentPrepare installs the Fluent organisation's server with npm, in a folder that is
// kept between runs.
func fluentPrepare() {
	if os.Getenv(fluentAt) != "" {
		return // this is the process in a network of its own
	}
	dir, err := fluentInstall()
	if err != nil {
		dir = "-" + err.Error()
	}
	os.Setenv(fluentAt, strings.ReplaceAll(dir, "\x00", "")) //nolint:errcheck // the name and value are good
}

func fluentInstall() (string, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return "", err
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", err
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	lock, err := os.ReadFile("testdata/fluent/package-lock.json")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(lock, node...))
	dir := filepath.Join(base, "berth-tests", "fluent-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "@fluent-org", "logger", "package.json")); err == nil {
		return dir, nil
	}
	fresh, err := fluentFetch(npm, base)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh) //nolint:errcheck // it is in a cache
	if err := os.Rename(fresh, dir); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return "", err
	}
	return dir, nil
}

// fluentFetch makes a folder of its own, so that what others find is complete.
func fluentFetch(npm, base string) (string, error) {
	if err := os.MkdirAll(filepath.Join(base, "berth-tests"), 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(filepath.Join(base, "berth-tests"), "new-")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"package.json", "package-lock.json"} {
		b, err := os.ReadFile(filepath.Join("testdata/fluent", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(fresh, name), b, 0o600)
		}
		if err != nil {
			return "", errors.Join(err, os.RemoveAll(fresh))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1")
	cmd.Dir = fresh
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("npm ci: %w: %.500s", err, out), os.RemoveAll(fresh))
	}
	return fresh, nil
}

// fluentServer runs the server until the test ends. at is where to send, events what it got.
func fluentServer(t *testing.T, dir, socket string) (at string, events *received[fluentEvent]) {
	t.Helper()
	script, err := filepath.Abs("testdata/fluent/server.js")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{script}
	if socket != "" {
		args = append(args, socket)
	}
	cmd := exec.Command("node", args...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"))
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	events = &received[fluentEvent]{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	ended := make(chan struct{})
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		<-ended
		cmd.Wait() //nolint:errcheck // it was killed
	})
	var first struct{ Port int }
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &first) != nil {
		close(ended)
		t.Fatalf("the server does not start: %s %s", lines.Text(), trouble.String())
	}
	go func() {
		defer close(ended)
		for lines.Scan() {
			var e fluentEvent
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("%v: %s", err, lines.Text())
			}
			events.add(e)
		}
	}()
	if socket != "" {
		return "unix://" + socket, events
	}
	return fmt.Sprintf("tcp://127.0.0.1:%d", first.Port), events
}

// TestFluentServer sends to a receiver that others have written: the forward protocol's
// server of the Fluent organisation.
func TestFluentServer(t *testing.T) {
	dir := os.Getenv(fluentAt)
	if why, missing := strings.CutPrefix(dir, "-"); missing {
		t.Skipf("the Fluent server cannot be installed: %s", why)
	}
	r := newRig(t)
	for name, tt := range map[string]struct {
		unix    bool
		options map[string]string
	}{
		"plain":                  {options: map[string]string{}},
		"acknowledged":           {options: map[string]string{"fluentd-request-ack": "true", "fluentd-sub-second-precision": "true"}},
		"by a socket, with tags": {unix: true, options: map[string]string{"tag": "docker.{{.Name}}", "labels": "team", "fluentd-request-ack": "true"}},
	} {
		t.Run(name, func(t *testing.T) {
			socket := ""
			if tt.unix {
				socket = filepath.Join(r.run, "fluent.sock")
			}
			at, events := fluentServer(t, dir, socket)
			tt.options["fluentd-address"] = at
			began := time.Now()
			c := r.container("fluentd", tt.options)
			long := strings.Repeat("0123456789", 4000)
			var many strings.Builder
			for i := range 2000 {
				fmt.Fprintf(&many, "line %d é\n", i)
			}
			go c.say(many.String() + long + "\n")
			const pieces = 3 // of 16 KiB at most
			await.Until(t, 2*soon, "all events", func() error { return want(2000+pieces, events.len()) })
			c.end()
			c.sent(soon)
			all := events.all()
			var got, pieced []string
			for _, e := range all {
				if e.Record["partial_id"] != "" {
					pieced = append(pieced, e.Record["log"])
					continue
				}
				got = append(got, e.Record["log"]+"\n")
			}
			if diff := cmp.Diff(many.String(), strings.Join(got, "")); diff != "" {
				t.Error(diff)
			}
			if len(pieced) != pieces || strings.Join(pieced, "") != long {
				t.Errorf("%d pieces of %d bytes", len(pieced), len(strings.Join(pieced, "")))
			}
			e := all[0]
			if e.Record["source"] != "stdout" || e.Record["container_id"] != "00112233445566778899aabbccddeeff" || e.Seconds < began.Unix()-1 || e.Seconds > time.Now().Unix() {
				t.Errorf("%+v", e)
			}
			if exact := e.Nanos >= 0; exact != (tt.options["fluentd-sub-second-precision"] != "") {
				t.Errorf("time with nanoseconds: %t", exact)
			}
			if tt.options["tag"] != "" && (!strings.HasPrefix(e.Tag, "docker.ecs-fam-7-") || e.Record["team"] != "blue") {
				t.Errorf("%+v", e)
			}
		})
	}
}
