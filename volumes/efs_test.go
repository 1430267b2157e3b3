package volumes_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/volumes"
)

// helper is a mount.efs that writes down how it is called and mounts memory.
const helper = `#!/bin/sh
printf '%s\n' "$*" > "$(dirname "$0")/called"
mount -t tmpfs -o nosuid,nodev tmpfs "$2"
mount --make-private "$2"
`

func efs(t *testing.T, text string) (*volumes.EFS, string) {
	d := dirs(t)
	folder := t.TempDir()
	name := ""
	if text != "" {
		name = filepath.Join(folder, "mount.efs")
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// This program takes the place of berth-volume; see TestMain.
	return volumes.NewEFS(volumes.EFSConfig{
		Dirs: d, Region: "eu-west-1", Remote: &volumes.Remote{Program: os.Args[0]}, Helper: func() string { return name },
	}), folder
}

// TestMain is also the program berth-volume.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "do" {
		code, err := volumes.Work(context.Background(), os.Stdin)
		if err != nil {
			os.Stderr.WriteString(err.Error()) //nolint:errcheck // nobody is left to tell
		}
		os.Exit(code)
	}
	if dir := os.Getenv("BERTH_TEST_CHURN"); dir != "" {
		churn(dir)
	}
	os.Exit(m.Run())
}

func TestEFSHelperIsCalledAsMountDoes(t *testing.T) {
	e, folder := efs(t, helper)
	fs := &volumes.FileSystem{ID: "fs-0123456789abcdef0", Root: "/a/b", Encrypted: true, Port: 20049, AccessPoint: "fsap-0123456789abcdef0", Netns: "/run/netns/x"}
	one, two := &volumes.Volume{Task: "one", Name: "v", FileSystem: fs}, &volumes.Volume{Task: "two", Name: "v", FileSystem: fs}
	m, err := e.Mount(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	called, err := os.ReadFile(filepath.Join(folder, "called"))
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(called))
	want := "rw,nosuid,nodev,tls,tlsport=20049,accesspoint=fsap-0123456789abcdef0,netns=/run/netns/x"
	if len(words) != 4 || words[0] != fs.ID+":/a/b" || !strings.HasSuffix(words[1], "/mount") || words[2] != "-o" || words[3] != want {
		t.Errorf("called with %q", words)
	}
	if err := os.Remove(filepath.Join(folder, "called")); err != nil {
		t.Fatal(err)
	}
	n, err := e.Mount(t.Context(), two)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(folder, "called")); !errors.Is(err, os.ErrNotExist) {
		t.Error("tasks with equal options do not share a mount")
	}
	if err := os.WriteFile(filepath.Join(m.Path, "x"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(n.Path, "x")); err != nil {
		t.Error(err)
	}
	for _, v := range []*volumes.Volume{one, two} {
		if err := e.Unmount(t.Context(), v); err != nil {
			t.Error(err)
		}
	}
}

func TestEFSThatIsRefused(t *testing.T) {
	e, _ := efs(t, "")
	for want, fs := range map[string]*volumes.FileSystem{
		"fileSystemId":             {ID: "../etc"},
		"accessPointId must be":    {ID: "fs-01234567", AccessPoint: "x", Encrypted: true},
		"rootDirectory":            {ID: "fs-01234567", Root: "/a,b"},
		"need transitEncryption":   {ID: "fs-01234567", IAM: true},
		"not known for which task": {ID: "fs-01234567", IAM: true, Encrypted: true},
		"no credentials of roles":  {ID: "fs-01234567", IAM: true, Encrypted: true, TaskARN: "arn:task"},
	} {
		v := &volumes.Volume{Task: "t", Name: "v", FileSystem: fs}
		if _, err := e.Mount(t.Context(), v); !errors.Is(err, volumes.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if err := e.Unmount(t.Context(), v); err != nil {
			t.Error(err)
		}
	}
}
