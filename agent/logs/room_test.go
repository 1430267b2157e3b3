package logs

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"berth.dev/berth/agent/runtime/logfile"
)

func TestLogsFitIntoTheStorageOfTheirTask(t *testing.T) {
	const gib = 1 << 30
	for name, tt := range map[string]struct {
		storage    int64
		containers int
		driver     string
		options    map[string]string
		max, files string
		compress   bool
	}{
		"they fit":                  {21 * gib, 10, JSONFile, nil, "10485760", "5", false},
		"files too large":           {4 * gib, 1, JSONFile, map[string]string{"max-size": "1g", "max-file": "4"}, "268398592", "4", false},
		"too many files":            {1 * gib, 1, JSONFile, map[string]string{"max-size": "1m", "max-file": "1000"}, "1048576", "254", false},
		"larger than any number":    {4 * gib, 1, JSONFile, map[string]string{"max-size": "900g", "max-file": "9"}, "119285987", "9", false},
		"compressed":                {4 * gib, 1, JSONFile, map[string]string{"max-size": "1g", "max-file": "3", "compress": "true"}, "268398592", "3", true},
		"compressed, and too small": {1 << 20, 1, JSONFile, map[string]string{"compress": "true", "max-file": "9"}, "126976", "1", false},
		"sent":                      {1 * gib, 8, Syslog, map[string]string{"max-buffer-size": "1g"}, "1074076", "31", false},
	} {
		c := container(tt.driver, tt.options)
		tk := taskOf(c)
		for range tt.containers - 1 {
			tk.Containers = append(tk.Containers, *c)
		}
		tk.Storage = tt.storage
		s := Settings{}
		p, err := s.Plan(tk, c, About{Dir: "/x", ID: "1"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Args.Get("max") != tt.max || p.Args.Get("files") != tt.files || p.Args.Has("compress") != tt.compress {
			t.Errorf("%s: %v, want %s bytes, %s files", name, p.Args, tt.max, tt.files)
		}
		most := tk.Storage / storageShare
		if tt.storage < 1<<22 {
			most = tk.Storage // a single file may be larger than its share
		}
		if got := s.Reserve(tk); got <= 0 || got > most {
			t.Errorf("%s: %d bytes are reserved of %d", name, got, tk.Storage)
		}
	}
	tk := taskOf(container(None, nil))
	if got := (&Settings{DropNone: true}).Reserve(tk); got != 0 {
		t.Errorf("%d bytes are reserved for output that is thrown away", got)
	}
}

// What is really written stays below what is reserved for it.
func TestLogsTakeNoMoreThanIsReserved(t *testing.T) {
	c := container(JSONFile, map[string]string{"max-size": "300k", "max-file": "3", "compress": "true"})
	tk := taskOf(c)
	tk.Storage = 8 << 20
	s := Settings{}
	root := t.TempDir()
	dir := filepath.Join(root, c.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(tk, c, About{Dir: dir, ID: "1"})
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.ParseInt(p.Args.Get("max"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	files, err := strconv.Atoi(p.Args.Get("files"))
	if err != nil {
		t.Fatal(err)
	}
	w := logfile.NewWriter(p.Args.Get("path"), most, files)
	w.Compress = p.Args.Has("compress")
	line := bytes.Repeat([]byte{1}, logfile.MaxLine) // six bytes each
	for i := range 40 {
		w.Write(logfile.Stdout, time.Now(), line)
		used, err := Used(root)
		if err != nil || int64(used) > s.Reserve(tk) {
			t.Fatalf("%d bytes after %d lines, %d are reserved: %v", used, i, s.Reserve(tk), err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if used, err := Used(root); err != nil || used < 100<<10 {
		t.Errorf("%d bytes used: %v", used, err)
	}
	if used, err := Used(filepath.Join(root, "none")); err != nil || used != 0 {
		t.Errorf("no log takes %d bytes: %v", used, err)
	}
}
