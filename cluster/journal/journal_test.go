package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func open(t *testing.T, c Config) *File {
	t.Helper()
	f, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

func TestRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	f := open(t, Config{Path: filepath.Join(dir, "log"), Size: 10, Files: 3})
	for i := range 8 {
		if err := f.Write(fmt.Appendf(nil, "%04d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"log": "0006\n0007\n", "log.1": "0004\n0005\n", "log.2": "0002\n0003\n"}
	if diff := cmp.Diff(want, contents(t, dir)); diff != "" {
		t.Error(diff)
	}
	if err := f.Write([]byte(strings.Repeat("x", 30) + "\n")); err != nil { // larger than a file
		t.Fatal(err)
	}
	if got := contents(t, dir); len(got["log"]) != 31 || got["log.1"] != "0006\n0007\n" {
		t.Errorf("after a large line: %q", got)
	}
	if info, err := os.Stat(f.config.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info, err)
	}
}

func TestOneFile(t *testing.T) {
	dir := t.TempDir()
	f := open(t, Config{Path: filepath.Join(dir, "log"), Size: 5, Files: 1})
	for i := range 3 {
		if err := f.Write(fmt.Appendf(nil, "%04d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string]string{"log": "0002\n"}, contents(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestCutLineIsRemoved(t *testing.T) {
	for name, c := range map[string]struct{ before, after string }{
		"whole":   {"a\nb\n", "a\nb\nnew\n"},
		"cut":     {"a\nhalf of a li", "a\nnew\n"},
		"only":    {"half", "new\n"},
		"long":    {"a\n" + strings.Repeat("x", 3*tailChunk), "a\nnew\n"},
		"nothing": {"", "new\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "log")
			if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
			f := open(t, Config{Path: path, Size: 1 << 20, Files: 2})
			if err := f.Write([]byte("new\n")); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"log": c.after}, contents(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNoFileForALog(t *testing.T) {
	if _, err := Open(Config{Path: t.TempDir(), Size: 1, Files: 1}); err == nil {
		t.Error("a directory was opened")
	}
	if _, err := Open(Config{Path: filepath.Join(t.TempDir(), "log")}); err == nil {
		t.Error("no size was taken")
	}
}
