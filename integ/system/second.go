package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/eni"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/testimage"
)

// SecondAgent is another agent of the system's cluster, on a host of its own: a network
// namespace. It uses the system's containerd, in another of its namespaces.
type SecondAgent struct {
	*Process
	Dir string
	s   *System
	ns  string
	env []string
}

// StartSecond starts an agent in the network namespace that is pinned at ns, from which
// the cluster is reached by its usual address. It ends with the test, and has to leave
// nothing behind.
func (s *System) StartSecond(t testing.TB, name, ns string, env ...string) *SecondAgent {
	t.Helper()
	a := &SecondAgent{Dir: host.ShortDir(t), s: s, ns: ns}
	forward(t, s.Cluster.URL, ns)
	a.load(t, name)
	k, err := s.Cluster.InstanceKey("AKIATESTINSTANCE" + name).Retrieve(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(a.Dir, "agent.key")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", k.AccessKeyID, k.SecretAccessKey)
	if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.env = append(append(append(s.environ(), s.o.AgentEnv...),
		"BERTH_CONTAINERD_NAMESPACE="+name, "BERTH_STATE_DIR="+filepath.Join(a.Dir, "agent"),
		"BERTH_RUN_DIR="+filepath.Join(a.Dir, "run"), "BERTH_LOG_DIR="+filepath.Join(a.Dir, "log"),
		"BERTH_KEY_FILE="+key, "BERTH_CGROUP="+s.Cgroup()+name,
	), env...)
	a.Process = a.launch(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("agent %s printed:\n%s", name, last(a.Output(), 60))
		}
		s.StopTasks()
		a.Stop()
		down := a.launch(t, "teardown")
		<-down.Done()
		if code := down.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("teardown of agent %s: exit code %d:\n%s", name, code, down.Output())
		}
	})
	return a
}

// load puts the image "busybox" into the agent's own namespace of containerd.
func (a *SecondAgent) load(t testing.TB, namespace string) {
	t.Helper()
	c, err := runtime.Open(context.Background(), runtime.Config{
		Address: a.s.Containerd.Address, Namespace: namespace, StateDir: filepath.Join(a.Dir, "run"), LogDir: filepath.Join(a.Dir, "log", "tasks"),
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := testimage.WriteArchive(archive, "busybox", img); err != nil {
		t.Fatal(err)
	}
	_, err = c.Import(context.Background(), archive)
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
}

func (a *SecondAgent) launch(t testing.TB, args ...string) *Process {
	return launch(t, "berth-agent", a.env, "nsenter", append([]string{"--net=" + a.ns, filepath.Join(a.s.Bin, "berth-agent")}, args...)...)
}

// Restart starts the agent again after it was killed.
func (a *SecondAgent) Restart() { a.Process = a.launch(a.s.t) }

// forward makes the server at a URL on this host's loopback reachable at the same URL
// inside a network namespace.
func forward(t testing.TB, server, ns string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	n, err := eni.OpenNamespace(ns)
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	err = n.Do(func() (err error) { l, err = net.Listen("tcp", u.Host); return err })
	if err = errors.Join(err, n.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // the test is over with it
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go pipe(in, u.Host)
		}
	}()
}

func pipe(in net.Conn, to string) {
	defer in.Close()
	out, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	for _, d := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			io.Copy(d[0], d[1]) //nolint:errcheck // either end may go at any time
			done <- struct{}{}
		}()
	}
	<-done
}
