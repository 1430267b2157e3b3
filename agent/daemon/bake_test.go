package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/agent/config"
)

// TestBake finds all that is of one host, removes it and finds nothing.
func TestBake(t *testing.T) {
	dir := t.TempDir()
	c, err := config.Load(config.Sources{Environ: []string{"AWS_DEFAULT_REGION=x", "ECS_CLUSTER=prod"}, EnvFiles: []string{filepath.Join(dir, "none")}, JSONFile: filepath.Join(dir, "none")})
	if err != nil {
		t.Fatal(err)
	}
	runs := true
	b := &baker{c: c, record: place(c).Record(), root: dir, running: func() bool { return runs }}
	ours := []string{
		c.Berth.KeyFile, place(c).Record(), c.Berth.StateDir + "/state.db", c.Berth.LogDir + "/tasks/x/main/log.json", "/etc/machine-id",
		dbusID, c.Berth.VolumeDir + "/data/file",
	}
	for _, name := range ours {
		if err := os.MkdirAll(filepath.Dir(dir+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+name, []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.clean(); err == nil {
		t.Error("cleaned under an agent that runs")
	}
	found, err := b.check()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(found, "\n")
	for _, want := range []string{"the agent runs", c.Berth.KeyFile + " is", "the agent's state", "output of containers", "/etc/machine-id is", dbusID + " is", "volumes of tasks"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not found in:\n%s", want, text)
		}
	}
	runs = false
	if err := b.clean(); err != nil {
		t.Fatal(err)
	}
	if found, err := b.check(); err != nil || len(found) > 0 {
		t.Errorf("after cleaning: %q, %v", found, err)
	}
	for _, foreign := range []string{"/etc/ssh/ssh_host_rsa_key", "/root/.aws/credentials", "/var/lib/systemd/credential.secret"} {
		if err := os.MkdirAll(filepath.Dir(dir+foreign), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+foreign, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := b.check(); err != nil || len(found) != 1 {
			t.Errorf("with %s: %q, %v", foreign, found, err)
		}
		if err := os.Remove(dir + foreign); err != nil {
			t.Fatal(err)
		}
	}
	// Where it is a link, it is the same id.
	if err := os.Symlink("/etc/machine-id", dir+dbusID); err != nil {
		t.Fatal(err)
	}
	if found, err := b.check(); err != nil || len(found) > 0 {
		t.Errorf("with a link: %q, %v", found, err)
	}
}
