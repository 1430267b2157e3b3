// Package arch holds the rules of who may import whom as tests, so that the
// architecture is what the code does and not what a document says.
package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "berth.dev/berth"

var update = flag.Bool("update", false, "rewrite deps.txt from what is built now")

// imports is which of our own packages a package (or every package below a folder
// that ends in /...) may import. The order is from the leaves to the programs.
var imports = []struct {
	of      string
	allowed []string
}{
	{"wire/...", []string{"wire/..."}},
	{"stats", nil},
	{"otlp", nil},
	{"eni/...", []string{"eni/..."}},
	{"volumes/...", []string{"volumes/..."}},
	{"cni-plugins/...", []string{"cni-plugins/...", "eni/..."}},
	{"agent/task", nil},
	{"agent/fail/...", []string{"agent/fail"}},
	{"agent/health", nil},
	{"agent/socket", nil},
	{"agent/fdstore", nil},
	{"agent/config", []string{"agent/task"}},
	{"agent/plan", []string{"agent/task"}},
	{"agent/spec", []string{"agent/task"}},
	{"agent/engine", []string{"agent/task", "agent/plan", "agent/fail"}},
	{"agent/state", []string{"agent/task", "agent/fail"}},
	{"agent/creds", []string{"agent/task", "agent/fail"}},
	{"agent/logs", []string{"agent/task"}},
	{"agent/logs/link", nil},
	{"agent/logs/router", []string{"agent/task", "agent/engine", "agent/fail"}},
	{"agent/logs/grant", []string{"agent/socket"}},
	{"agent/logs/sink", []string{"agent/logs"}},
	{"agent/logs/ship", []string{"agent/logs/...", "agent/runtime/logfile", "agent/socket"}},
	{"agent/runtime/embedded", nil},
	{"agent/runtime/...", []string{"agent/task", "agent/logs", "agent/logs/router", "agent/spec", "agent/fail", "agent/engine", "agent/runtime/..."}},
	{"agent/image", []string{"agent/task", "agent/engine", "agent/fail", "agent/runtime", "agent/roles", "agent/secret"}},
	{"agent/attach", []string{"agent/task"}},
	{"agent/cni", []string{"agent/fail", "eni"}},
	{"agent/netns", []string{"agent/task", "agent/engine", "agent/fail", "agent/cni", "eni/...", "cni-plugins/..."}},
	{"agent/volume", []string{"agent/task", "agent/engine", "agent/fail", "volumes/..."}},
	{"agent/tmds", []string{"agent/task", "agent/fail", "agent/engine", "agent/creds", "eni/...", "wire/tmds"}},
	{"agent/resource", []string{"agent/task", "agent/engine", "agent/fail"}},
	{"agent/roles", []string{"agent/task", "agent/creds"}},
	{"agent/secret", []string{"agent/task", "agent/engine", "agent/fail", "agent/roles"}},
	{"agent/intake", []string{"agent/task", "agent/plan", "agent/fail", "agent/state", "agent/creds", "agent/acs", "wire/..."}},
	{"agent/session", nil},
	{"agent/acs", []string{"wire/...", "agent/task", "agent/session"}},
	{"agent/tcs", []string{"wire/...", "agent/session"}},
	{"agent/ecs", []string{"agent/task", "agent/config"}},
	{"agent/telemetry", []string{"wire/...", "stats", "agent/task", "agent/engine", "agent/plan"}},
	{"agent/ec2/...", nil},
	{"agent/join", []string{"wire/join"}},
	{"agent/update", []string{"wire/acs", "wire/update"}},
	{"agent/report", []string{"agent/task", "agent/state", "agent/fail"}},
	{"agent/daemon", []string{"agent/...", "wire/...", "stats", "otlp", "eni/...", "cni-plugins/...", "volumes/..."}},
	{"cluster/...", []string{"cluster/...", "wire/...", "otlp"}},
	{"cmd/...", []string{"agent/...", "cluster/...", "wire/...", "eni/...", "cni-plugins/...", "volumes/...", "cmd/...", "integ/testimage"}},
	{"packaging/...", nil},
	{"integ/...", []string{"..."}},
}

// forbidden is which outside packages a package may not import itself, and why.
var forbidden = []struct {
	in, path, why string
}{
	{"agent/task", "net", "the vocabulary does no I/O"},
	{"agent/plan", "net", "plan is pure"},
	{"agent/plan", "os", "plan is pure"},
	{"agent/plan", "log/slog", "plan is pure"},
	{"agent/plan", "math/rand/v2", "plan is pure"},
	{"agent/spec", "net", "spec is pure"},
	{"agent/spec", "log/slog", "spec is pure"},
	{"agent/engine", "net/http", "the engine reaches the world through its interfaces"},
	{"agent/engine", "os/exec", "the engine reaches the world through its interfaces"},
	{"agent/engine", "go.etcd.io/bbolt", "the engine knows no database"},
	{"agent/engine", "github.com/", "the engine imports no third-party package"},
	{"wire/...", "github.com/", "the wire is standard library only"},
	{"cluster/sched", "net/http", "sched is pure"},
	{"cluster/sched", "os", "sched is pure"},
}

// containerd may be imported by these alone.
var containerdUsers = []string{"agent/runtime/...", "agent/image", "integ/..."}

type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	Imports    []string
	GoFiles    []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Name,Imports,GoFiles"}, args...)...)
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// match reports whether a path of ours falls under a pattern.
func match(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	return pattern == path
}

func TestImports(t *testing.T) {
	for _, p := range list(t, "./...") {
		of := strings.TrimPrefix(p.ImportPath, module+"/")
		i := slices.IndexFunc(imports, func(r struct {
			of      string
			allowed []string
		}) bool {
			return match(r.of, of)
		})
		if i < 0 {
			t.Errorf("%s has no place in the architecture: add it to the table in arch_test.go and to ARCHITECTURE.md", of)
			continue
		}
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if ok && !slices.ContainsFunc(imports[i].allowed, func(a string) bool { return match(a, ours) }) {
				t.Errorf("%s imports %s; it may import only %v", of, ours, imports[i].allowed)
			}
			for _, f := range forbidden {
				// Addresses are values, and net/netip does no I/O.
				if match(f.in, of) && imp != "net/netip" && (imp == f.path || strings.HasPrefix(imp, strings.TrimSuffix(f.path, "/")+"/")) {
					t.Errorf("%s imports %s: %s", of, imp, f.why)
				}
			}
			if strings.HasPrefix(imp, "github.com/containerd/containerd/v2/client") &&
				!slices.ContainsFunc(containerdUsers, func(a string) bool { return match(a, of) }) {
				t.Errorf("%s imports %s: only %v talk to containerd", of, imp, containerdUsers)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t, "./...") {
		documented := false
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || f.Doc != nil
		}
		if !documented && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestNoPackageWithoutAMeaning(t *testing.T) {
	meaningless := []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "types", "shared"}
	for _, p := range list(t, "./...") {
		if slices.Contains(meaningless, p.Name) {
			t.Errorf("%s: a package is named after what it is about, not %q", p.ImportPath, p.Name)
		}
	}
}

// TestModulesOfThePrograms compares the third-party modules of each program with
// deps.txt, so that a new one is seen in review.
func TestModulesOfThePrograms(t *testing.T) {
	var got strings.Builder
	for _, program := range []string{"berth", "berth-agent", "berth-logger", "berth-shipper"} {
		cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "./cmd/"+program)
		cmd.Dir = root(t)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-tags=no_cri,no_btrfs,no_zfs,no_devmapper,no_tracing,grpcnotrace")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list %s: %v", program, err)
		}
		mods := strings.Fields(string(out))
		slices.Sort(mods)
		for _, m := range slices.Compact(mods) {
			got.WriteString(program + ": " + m + "\n")
		}
	}
	if *update {
		if err := os.WriteFile("deps.txt", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("modules of the programs differ from deps.txt (-recorded +built); if that is meant, run go test ./integ/arch -update\n%s", d)
	}
}
