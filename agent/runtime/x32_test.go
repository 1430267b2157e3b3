package runtime

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"
)

func TestLacksX32(t *testing.T) {
	zip := func(text string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	const filtered = "Name:\tberth-agent\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n"
	const without = "CONFIG_X86_64=y\n# CONFIG_X86_X32_ABI is not set\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"nothing is known":       {nil, false},
		"filter, no file":        {map[string]string{"proc/self/status": filtered}, false},
		"Debian, without":        {map[string]string{"proc/self/status": filtered, "boot/config-6.1": without}, true},
		"Debian, with":           {map[string]string{"boot/config-6.1": "CONFIG_X86_64=y\nCONFIG_X86_X32=y\n"}, false},
		"Red Hat":                {map[string]string{"lib/modules/6.1/config": without}, true},
		"config.gz":              {map[string]string{"proc/config.gz": zip(without)}, true},
		"config.gz, with":        {map[string]string{"proc/config.gz": zip("CONFIG_X86_64=y\nCONFIG_X86_X32_ABI=y\n")}, false},
		"damaged":                {map[string]string{"proc/config.gz": "CONFIG_X86_64=y\n"}, false},
		"of another kernel":      {map[string]string{"boot/config-6.2": without}, false},
		"no file of a kernel's":  {map[string]string{"boot/config-6.1": "hello\n"}, false},
		"the first that is read": {map[string]string{"boot/config-6.1": without, "proc/config.gz": zip("CONFIG_X86_X32_ABI=y\n")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{"proc/sys/kernel/osrelease": "6.1\n"}
			for path, text := range c.files {
				files[path] = text
			}
			for path, text := range files {
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := lacksX32(root); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	t.Run("without a filter the kernel says", func(t *testing.T) {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, "proc/self"), 0o755); err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(status, []byte("\nSeccomp:\t0\n")) {
			return // asking could end this thread
		}
		if err := os.WriteFile(filepath.Join(root, "proc/self/status"), status, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, want := lacksX32(root), !hasX32(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}
