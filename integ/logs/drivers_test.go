package logs

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/logs/grant"
	"berth.dev/berth/agent/runtime/logfile"
	"berth.dev/berth/integ/await"
	"berth.dev/berth/integ/aws"
)

const soon = 15 * time.Second

func TestFluentd(t *testing.T) {
	r := newRig(t)
	for name, options := range map[string]map[string]string{
		"plain":           {},
		"acknowledged":    {"fluentd-request-ack": "true", "fluentd-sub-second-precision": "true"},
		"tag and members": {"tag": "{{.ImageName}}/{{.Name}}", "labels": "team", "env": "STAGE"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForward(t, "tcp", "127.0.0.1:0")
			options["fluentd-address"] = f.l.Addr().String()
			began := time.Now()
			c := r.container("fluentd", options)
			c.say("one\ntwo\n")
			if _, err := c.err.WriteString("oops\n"); err != nil {
				t.Fatal(err)
			}
			await.Until(t, soon, "three events", func() error { return want(3, f.len()) })
			c.end()
			c.sent(soon)
			got := map[string]string{}
			for _, e := range f.all() {
				got[e.Record["log"]] = e.Record["source"]
				if e.Record["container_id"] != "00112233445566778899aabbccddeeff" || !strings.HasPrefix(e.Record["container_name"], "/ecs-fam-7-c") {
					t.Errorf("record %v", e.Record)
				}
				if e.Ext != (options["fluentd-sub-second-precision"] != "") {
					t.Errorf("time with nanoseconds: %v", e.Ext)
				}
				if at := time.Unix(0, e.Nanos); at.Before(began.Add(-time.Second)) || at.After(time.Now()) {
					t.Errorf("time %v", at)
				}
				if options["tag"] != "" {
					if !strings.HasPrefix(e.Tag, "busybox:latest/ecs-fam-7-") || e.Record["team"] != "blue" || e.Record["STAGE"] != "test" || e.Record["OTHER"] != "" {
						t.Errorf("%+v", e)
					}
				} else if e.Tag != "001122334455" {
					t.Errorf("tag %q", e.Tag)
				}
			}
			if diff := cmp.Diff(map[string]string{"one": "stdout", "two": "stdout", "oops": "stderr"}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func want(n, got int) error {
	if n != got {
		return fmt.Errorf("%d, want %d", got, n)
	}
	return nil
}

func TestLongLineComesInPieces(t *testing.T) {
	r := newRig(t)
	f := newForward(t, "tcp", "127.0.0.1:0")
	c := r.container("fluentd", map[string]string{"fluentd-address": f.l.Addr().String()})
	long := strings.Repeat("0123456789", 5000)
	go c.say("before\n" + long + "\nafter\n")
	await.Until(t, soon, "the pieces", func() error { return want(2+4, f.len()) })
	c.end()
	var b strings.Builder
	id := ""
	for i, e := range f.all()[1:5] {
		b.WriteString(e.Record["log"])
		if id == "" {
			id = e.Record["partial_id"]
		}
		if e.Record["partial_id"] != id || id == "" || e.Record["partial_ordinal"] != fmt.Sprint(i+1) || e.Record["partial_last"] != fmt.Sprint(i == 3) {
			t.Errorf("piece %d: %s %s %s", i, e.Record["partial_id"], e.Record["partial_ordinal"], e.Record["partial_last"])
		}
	}
	if b.String() != long {
		t.Errorf("the pieces make %d bytes, want %d", b.Len(), len(long))
	}
	if r := f.all()[5].Record; r["log"] != "after" || r["partial_id"] != "" {
		t.Errorf("after the long line: %v", r)
	}
}

func TestJournald(t *testing.T) {
	r := newRig(t)
	j := newJournal(t, filepath.Join(r.run, "journal"))
	r.shipperWith("-journal", filepath.Join(r.run, "journal"))
	c := r.container("journald", map[string]string{"tag": "web-{{.ID}}", "labels": "team", "env-regex": "^STA"})
	long := strings.Repeat("x", logfile.MaxLine-1)
	c.say("hello\n" + long + "\n")
	if _, err := c.err.WriteString("bad\n"); err != nil {
		t.Fatal(err)
	}
	await.Until(t, soon, "three entries", func() error { return want(3, j.len()) })
	c.end()
	byMessage := map[string]map[string]string{}
	for _, e := range j.all() {
		byMessage[e["MESSAGE"]] = e
	}
	e := byMessage["hello"]
	for k, v := range map[string]string{
		"PRIORITY": "6", "CONTAINER_ID": "001122334455", "CONTAINER_ID_FULL": "00112233445566778899aabbccddeeff", "CONTAINER_TAG": "web-001122334455",
		"SYSLOG_IDENTIFIER": "web-001122334455", "IMAGE_NAME": "busybox:latest", "TEAM": "blue", "STAGE": "test",
	} {
		if e[k] != v {
			t.Errorf("%s is %q, want %q", k, e[k], v)
		}
	}
	if byMessage["bad"]["PRIORITY"] != "3" || byMessage[long] == nil || !strings.HasPrefix(e["CONTAINER_NAME"], "ecs-fam-7-c") {
		t.Errorf("entries %v", j.all())
	}
}

func TestGELF(t *testing.T) {
	r := newRig(t)
	udp, udpAddr := gelfUDP(t)
	plain, plainAddr := gelfUDP(t)
	tcp, tcpAddr := gelfTCP(t)
	for _, tc := range []struct {
		name    string
		got     *received[map[string]any]
		options map[string]string
	}{
		{"udp", udp, map[string]string{"gelf-address": udpAddr}},
		{"udp zlib", udp, map[string]string{"gelf-address": udpAddr, "gelf-compression-type": "zlib", "gelf-compression-level": "9"}},
		{"udp in chunks", plain, map[string]string{"gelf-address": plainAddr, "gelf-compression-type": "none", "labels": "team"}},
		{"tcp", tcp, map[string]string{"gelf-address": tcpAddr}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := tc.got.len()
			c := r.container("gelf", tc.options)
			text := strings.Repeat("long ", 3000)
			c.say("short\n\n" + text + "\n")
			c.end()
			c.sent(soon)
			await.Until(t, soon, "two messages", func() error { return want(2, tc.got.len()-before) })
			list := tc.got.all()[before:]
			if list[0]["short_message"] != "short" || list[1]["short_message"] != text {
				t.Errorf("messages %.200v", list)
			}
			m := list[0]
			if m["version"] != "1.1" || m["level"] != 6.0 || m["_container_id"] != "00112233445566778899aabbccddeeff" || m["_image_name"] != "busybox:latest" || m["_command"] != "sh -c true" {
				t.Errorf("message %v", m)
			}
			if at, ok := m["timestamp"].(float64); !ok || time.Since(time.Unix(int64(at), 0)) > time.Minute {
				t.Errorf("timestamp %v", m["timestamp"])
			}
			if tc.options["labels"] != "" && m["_team"] != "blue" {
				t.Errorf("message %v", m)
			}
		})
	}
}

func TestSplunk(t *testing.T) {
	r := newRig(t)
	const token = "176FCEBF-4CF5-4EDF-91BC-703796522D20"
	r.agent(func(a grant.Ask) (grant.Grant, error) {
		if !a.Secrets {
			return grant.Grant{}, errors.New("secrets were not asked for")
		}
		return grant.Grant{Options: map[string]string{"splunk-token": token}}, nil
	})
	hec := newCollector(t, token)
	busy := 2
	hec.fail = func() int {
		if busy--; busy >= 0 {
			return 503
		}
		return 0
	}
	c := r.container("splunk", map[string]string{
		"splunk-url": hec.srv.URL, "splunk-format": "json", "splunk-gzip": "true", "splunk-index": "main", "splunk-sourcetype": "web", "env": "STAGE",
	}, "splunk-token")
	c.say("text\n{\"n\":1}\n")
	await.Until(t, soon, "two events", func() error { return want(2, hec.len()) })
	if cmdline, err := exec.Command("ps", "axeww", "-o", "args").Output(); err != nil || strings.Contains(string(cmdline), token) {
		t.Errorf("the token is in the process list, or that cannot be read: %v", err)
	}
	c.end()
	c.sent(soon)
	list := hec.all()
	if !hec.zip || list[0]["index"] != "main" || list[0]["sourcetype"] != "web" {
		t.Errorf("events %v", list)
	}
	got, err := json.Marshal([]any{list[0]["event"], list[1]["event"]})
	if err != nil {
		t.Fatal(err)
	}
	const wantEvents = `[{"attrs":{"STAGE":"test"},"line":"text","source":"stdout","tag":"001122334455"},{"attrs":{"STAGE":"test"},"line":{"n":1},"source":"stdout","tag":"001122334455"}]`
	if diff := cmp.Diff(wantEvents, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestAwslogs(t *testing.T) {
	r := newRig(t)
	svc := aws.Start(t)
	svc.Allow(aws.Key{ID: "AKIAROLE", Secret: "role-secret", Token: "role-token", Role: "exec"})
	svc.Allow(aws.Key{ID: "AKIAOLD", Secret: "old-secret", Token: "old-token", Role: "exec"})
	old := true
	r.agent(func(a grant.Ask) (grant.Grant, error) {
		if !a.Execution || !a.Credentials {
			return grant.Grant{}, fmt.Errorf("asked for %+v", a)
		}
		if old {
			old = false // used up at once: the next request asks again
			return grant.Grant{AccessKeyID: "AKIAOLD", SecretAccessKey: "old-secret", SessionToken: "old-token", Expires: time.Now().Add(time.Second)}, nil
		}
		return grant.Grant{AccessKeyID: "AKIAROLE", SecretAccessKey: "role-secret", SessionToken: "role-token", Expires: time.Now().Add(time.Hour)}, nil
	})
	options := func(more ...string) map[string]string {
		o := map[string]string{"awslogs-group": "/ecs/web", "awslogs-region": "eu-central-1", "awslogs-endpoint": svc.URL, "awslogs-stream-prefix": "pre", "awslogs-force-flush-interval-seconds": "1"}
		for i := 0; i < len(more); i += 2 {
			o[more[i]] = more[i+1]
		}
		return o
	}

	t.Run("group that is missing, then made", func(t *testing.T) {
		c := r.container("awslogs", options())
		c.say("first\n")
		await.Until(t, soon, "the trouble is written down", func() error {
			p := placeOf(t, c)
			if !strings.Contains(p.Error, "log group /ecs/web does not exist") || !strings.Contains(p.Error, "awslogs-create-group") {
				return fmt.Errorf("%q", p.Error)
			}
			return nil
		})
		svc.CreateLogGroup("eu-central-1", "/ecs/web")
		c.say("second\n")
		c.end()
		if p := c.sent(soon); p.Error != "" || p.Lost != 0 {
			t.Errorf("at the end: %+v", p)
		}
		stream := "pre/" + filepath.Base(c.dir) + "/0123456789abcdef0123456789abcdef"
		if diff := cmp.Diff([]string{"first", "second"}, messages(svc, "/ecs/web", stream)); diff != "" {
			t.Error(diff)
		}
		cmd := exec.Command("aws", "--endpoint-url", svc.URL, "--region", "eu-central-1", "logs", "get-log-events", "--log-group-name", "/ecs/web", "--log-stream-name", stream, "--output", "text", "--query", "events[].message")
		cmd.Env = append(cmd.Environ(), "AWS_ACCESS_KEY_ID=AKIAROLE", "AWS_SECRET_ACCESS_KEY=role-secret", "AWS_SESSION_TOKEN=role-token", "AWS_EC2_METADATA_DISABLED=true")
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "first\tsecond" {
			t.Errorf("aws logs get-log-events: %v\n%s", err, out)
		}
	})
	t.Run("lines that belong together", func(t *testing.T) {
		c := r.container("awslogs", options("awslogs-create-group", "true", "awslogs-group", "multi", "awslogs-datetime-format", "[%Y-%m-%d"))
		c.say("[2026-01-02 error\n  at a\n  at b\n[2026-01-02 next\n")
		c.end()
		c.sent(soon)
		stream := "pre/" + filepath.Base(c.dir) + "/0123456789abcdef0123456789abcdef"
		if diff := cmp.Diff([]string{"[2026-01-02 error\n  at a\n  at b", "[2026-01-02 next"}, messages(svc, "multi", stream)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("many and long lines keep the limits", func(t *testing.T) {
		c := r.container("awslogs", options("mode", "blocking"))
		const lines = 30000
		long := strings.Repeat("é", 400<<10)
		go func() {
			for i := range lines {
				c.say(fmt.Sprintf("line %d\n\n", i))
			}
			c.say(long + "\n")
			c.out.Close()
		}()
		await.Until(t, time.Minute, "the logger ends", func() error {
			if placeOf(t, c).Seq < 2*lines+50 {
				return fmt.Errorf("at %+v", placeOf(t, c))
			}
			return nil
		})
		c.err.Close()
		if err := c.logger.Wait(); err != nil {
			t.Fatal(err)
		}
		c.sent(soon)
		got := messages(svc, "/ecs/web", "pre/"+filepath.Base(c.dir)+"/0123456789abcdef0123456789abcdef")
		for i := range lines {
			if got[i] != fmt.Sprintf("line %d", i) {
				t.Fatalf("event %d is %q", i, got[i])
			}
		}
		// Four events hold it; what has come is sent now and then, which may cut once more.
		parts := got[lines:]
		if rest := strings.Join(parts, ""); rest != long || len(parts) < 4 || len(parts) > 8 {
			t.Errorf("the long line is %d bytes in %d events, want %d in 4 or a few more", len(rest), len(parts), len(long))
		}
		for i, p := range parts {
			if len(p)+26 > 256<<10 { // CloudWatch Logs counts 26 bytes an event, of 256 KiB at most
				t.Errorf("part %d of the long line has %d bytes", i, len(p))
			}
		}
	})
}

func messages(svc *aws.Server, group, stream string) []string {
	var out []string
	for _, e := range svc.LogEvents("eu-central-1", group, stream) {
		out = append(out, e.Message)
	}
	return out
}

// refusing is an address of this host where nothing listens.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
