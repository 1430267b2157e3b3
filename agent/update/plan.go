package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"berth.dev/berth/wire/update"
)

// planFile says in the folder of updates what is to be installed.
const planFile = "update.json"

// Plan is what is to be installed, and what to go back to. Files are relative to the
// folder of updates.
type Plan struct {
	Kind    string // deb or rpm
	File    string
	SHA256  string
	Version string
	Former  string
	Running string // the version of Former
}

func readPlan(dir string) (Plan, error) {
	var p Plan
	b, err := os.ReadFile(filepath.Join(dir, planFile))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("%s: %w", filepath.Join(dir, planFile), err)
	}
	for _, name := range []string{p.File, p.Former} {
		if name != "" && !filepath.IsLocal(name) {
			return p, fmt.Errorf("%s: %q is not in the folder", filepath.Join(dir, planFile), name)
		}
	}
	return p, nil
}

// write makes the plan the one that is carried out.
func (p Plan) write(dir string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, planFile), b); err != nil {
		return err
	}
	return replace(filepath.Join(dir, desired), []byte(p.File+"\n"))
}

// replace writes a file in one step.
func replace(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// whole says why the files of a plan are not what they were.
func (p Plan) whole(dir string) error {
	f, err := os.Open(filepath.Join(dir, p.File))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) != strings.ToLower(p.SHA256) {
		return fmt.Errorf("the package %s has changed since it was fetched", f.Name())
	}
	if p.Former == "" {
		return nil
	}
	_, err = os.Stat(filepath.Join(dir, p.Former))
	return err
}

// describeTimeout bounds how long a package is looked into.
const describeTimeout = time.Minute

// describe returns the version of a package, which has to be the agent's for this host.
func describe(ctx context.Context, kind, path string) (update.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	var cmd *exec.Cmd
	arch := runtime.GOARCH
	switch kind {
	case update.Deb:
		cmd = exec.CommandContext(ctx, "dpkg-deb", "--showformat=${Package} ${Version} ${Architecture}\n", "--show", path)
	case update.RPM:
		cmd = exec.CommandContext(ctx, "rpm", "-qp", "--nosignature", "--qf", "%{NAME} %{VERSION} %{ARCH}\n", path)
		arch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch]
	default:
		return update.Version{}, fmt.Errorf("packages of the kind %q are not known", kind)
	}
	said := new(bytes.Buffer)
	cmd.Stderr = said
	out, err := cmd.Output()
	if err != nil {
		return update.Version{}, fmt.Errorf("the package cannot be read: %w: %.200s", err, said)
	}
	f := strings.Fields(string(out))
	if len(f) != 3 || f[0] != update.Package || f[2] != arch {
		return update.Version{}, fmt.Errorf("the package is %.100q, and not %s for %s", strings.TrimSpace(string(out)), update.Package, arch)
	}
	version, _, _ := strings.Cut(f[1], "-") // its own number of the package
	return update.Parse(version)
}

// Installed is the kind of package that this program was installed from, or empty if it
// was not: what replaces the package would not replace it.
func Installed(ctx context.Context, program string) string {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	for kind, cmd := range map[string][]string{
		update.Deb: {"dpkg-query", "--search", program},
		update.RPM: {"rpm", "-qf", "--qf", "%{NAME}: ", program},
	} {
		out, err := exec.CommandContext(ctx, cmd[0], cmd[1:]...).Output()
		if err == nil && strings.HasPrefix(string(out), update.Package+": ") {
			return kind
		}
	}
	return ""
}
