package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/eni/enitest"
)

func TestMain(m *testing.M) { os.Exit(enitest.Main(m)) }

// debian is where Debian's package containernetworking-plugins has its plugins.
const debian = "/usr/lib/cni"

// rig is a set of networks over Debian's plugins and scripts of the test's.
type rig struct {
	*Networks
	t       *testing.T
	conf    string
	scripts string
	data    string // of host-local
}

func newRig(t *testing.T) *rig {
	t.Helper()
	enitest.Root(t)
	if _, err := os.Stat(filepath.Join(debian, "ptp")); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs Debian's containernetworking-plugins")
	}
	dir := t.TempDir()
	r := &rig{t: t, conf: filepath.Join(dir, "conf"), scripts: filepath.Join(dir, "scripts"), data: filepath.Join(dir, "data")}
	for _, d := range []string{r.conf, r.scripts, r.data} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	r.Networks, err = Open(Config{ConfigDir: r.conf, PluginDirs: []string{r.scripts, debian}, Dir: filepath.Join(dir, "cni")})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) write(dir, name, text string, mode os.FileMode) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
		r.t.Fatal(err)
	}
}

// network configures a list of plugins.
func (r *rig) network(name string, plugins ...string) {
	r.t.Helper()
	r.write(r.conf, name+".conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, strings.Join(plugins, ",")), 0o644)
}

func (r *rig) ipam(subnet string) string {
	return fmt.Sprintf(`"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]]}`, r.data, subnet)
}

// snapshot is what the host has, without what Debian's plugins leave for good: the lock
// and last address of host-local, forwarding, and the chains that masquerading shares.
func (r *rig) snapshot() []string {
	return slices.DeleteFunc(enitest.Snapshot(r.t, r.cfg.Dir, r.data), func(s string) bool {
		return strings.Contains(s, "last_reserved_ip") || strings.HasSuffix(s, "/lock") || strings.HasPrefix(s, "file "+r.data) && strings.Count(s[len("file "+r.data):], "/") < 2 ||
			strings.Contains(s, "forward") || strings.HasPrefix(s, "chain ") || strings.HasPrefix(s, "table ")
	})
}

func (r *rig) add(k Key, network, ns string) (*Attachment, error) {
	return r.Add(r.t.Context(), Request{Key: k, Network: network, Namespace: ns})
}

// scripted is a plugin that writes down what it is called for, and does what is given.
func (r *rig) scripted(name, add string) (calls func() string) {
	r.t.Helper()
	log := filepath.Join(r.scripts, name+".log")
	r.write(r.scripts, name, "#!/bin/sh\necho $CNI_COMMAND >> "+log+"\nenv > "+log+".env\ncase $CNI_COMMAND in ADD) "+add+";; esac\n", 0o755)
	return func() string {
		b, err := os.ReadFile(log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			r.t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(b)), " ")
	}
}

const nothingMade = `echo '{"cniVersion":"1.0.0"}'`

func TestFailedAddIsFollowedByDel(t *testing.T) {
	for _, c := range []struct {
		name, second string
		message      string
		again        bool
	}{
		{"error object", `echo '{"cniVersion":"1.0.0","code":110,"msg":"no cable"}'; exit 1`, "no cable", false},
		{"try again", `echo '{"cniVersion":"1.0.0","code":11,"msg":"later"}'; exit 1`, "later", true},
		{"no error object", "echo dark >&2; exit 3", "dark", false},
		{"no result", "echo garbage", "garbage", false},
		{"killed", "kill -9 $$", "killed", false},
		{"too much output", "head -c 2000000 /dev/zero", "bytes", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			first := r.scripted("first", nothingMade)
			second := r.scripted("second", c.second)
			r.network("net", `{"type":"first"}`, `{"type":"second"}`)
			before := r.snapshot()
			_, err := r.add(Key{"c", "eth1"}, "net", enitest.Namespace(t))
			if err == nil || !strings.Contains(err.Error(), c.message) && c.name != "no result" || errors.Is(err, ErrTryAgain) != c.again {
				t.Errorf("%v", err)
			}
			if first() != "ADD DEL" || second() != "ADD DEL" {
				t.Errorf("first was called for %q, second for %q", first(), second())
			}
			if diff := cmp.Diff(before, r.snapshot()); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

func TestPluginsGetNoKeys(t *testing.T) {
	r := newRig(t)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hidden")
	r.scripted("first", nothingMade)
	r.network("net", `{"type":"first"}`)
	if _, err := r.add(Key{"c", "eth1"}, "net", enitest.Namespace(t)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(r.scripts, "first.log.env"))
	if err != nil || strings.Contains(string(b), "AWS_") || !strings.Contains(string(b), "CNI_IFNAME=eth1") {
		t.Errorf("%v: %s", err, b)
	}
}

// A plugin that hangs is ended with what it started, and then told to undo.
func TestPluginThatHangs(t *testing.T) {
	r := newRig(t)
	child := filepath.Join(r.scripts, "child")
	calls := r.scripted("slow", "sleep 1000 & echo $! > "+child+".new; mv "+child+".new "+child+"; wait")
	r.network("net", `{"type":"slow"}`)
	ns := enitest.Namespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := r.Add(ctx, Request{Key: Key{"c", "eth1"}, Network: "net", Namespace: ns})
		done <- err
	}()
	enitest.Eventually(t, "the plugin waits for its child", func() bool { _, err := os.Stat(child); return err == nil })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || calls() != "ADD DEL" {
		t.Errorf("%v; called for %q", err, calls())
	}
	b, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	enitest.Eventually(t, "the child has ended", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(b)), "stat"))
		return err != nil || strings.Contains(string(stat), ") Z ") // nobody may have asked for its end
	})
}

// What an agent's end interrupted has no result, so that it counts as not attached and is
// undone, after what is left of its plugin has ended.
func TestInterruptedAddIsUndone(t *testing.T) {
	r := newRig(t)
	calls := r.scripted("first", nothingMade)
	r.network("net", `{"type":"first"}`)
	k, ns := Key{"c", "eth1"}, enitest.Namespace(t)
	list, err := r.find("net")
	if err != nil {
		t.Fatal(err)
	}
	before := r.snapshot()
	if err := r.records.write(&record{ID: k.ID, IfName: k.IfName, Network: "net", Namespace: ns, List: list.Bytes}); err != nil {
		t.Fatal(err)
	}
	left, err := r.records.lock(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.records.clean(); err != nil {
		t.Fatal(err)
	}
	if a, err := r.Get(k); a != nil || err != nil {
		t.Errorf("%+v, %v", a, err)
	}
	if keys, err := r.Keys(func(id string) bool { return id == "c" }); err != nil || !slices.Equal(keys, []Key{k}) {
		t.Errorf("keys %v, %v", keys, err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Del(context.Background(), k) }()
	select {
	case err := <-done:
		t.Errorf("undone beside the plugin: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || calls() != "DEL" {
		t.Errorf("%v; called for %q", err, calls())
	}
	if diff := cmp.Diff(before, r.snapshot()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

func TestConfigurations(t *testing.T) {
	r := newRig(t)
	r.network("lan", `{"type":"ptp"}`)
	r.write(r.conf, "10-single.conf", `{"cniVersion":"0.4.0","name":"single","type":"bridge"}`, 0o644)
	r.write(r.conf, "20-bad.conflist", `{`, 0o644)
	r.write(r.conf, "30-noname.conflist", `{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"ptp"}]}`, 0o644)
	r.write(r.conf, "40-notype.conflist", `{"cniVersion":"1.0.0","name":"notype","plugins":[{"name":"x"}]}`, 0o644)
	r.write(r.conf, "readme.txt", "nothing", 0o644)
	names, err := Names(r.conf)
	if diff := cmp.Diff([]string{"lan", "single"}, names); diff != "" || err == nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"20-bad", "30-noname", "40-notype"} {
		if !strings.Contains(fmt.Sprint(err), bad) {
			t.Errorf("the error does not name %s: %v", bad, err)
		}
	}
	if _, err := r.add(Key{"c", "eth1"}, "nowhere", enitest.Namespace(t)); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown network: %v", err)
	}
	r.network("gone", `{"type":"uninstalled"}`)
	if _, err := r.add(Key{"c", "eth1"}, "gone", enitest.Namespace(t)); err == nil || !strings.Contains(err.Error(), "ECS_CNI_PLUGINS_PATH") {
		t.Errorf("plugin that is not installed: %v", err)
	}
	if names, err := Names(filepath.Join(r.conf, "missing")); len(names) > 0 || err != nil {
		t.Errorf("no directory: %v, %v", names, err)
	}
}
