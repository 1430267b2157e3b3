package volume

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/block"
	"berth.dev/berth/volumes/volumestest"
)

// host is an adapter on directories of one test.
func host(t *testing.T) (*Volumes, volumes.Dirs) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("mounts need root")
		}
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	d := volumes.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	s := New(Config{Dirs: d, Storage: NewStorage(StorageConfig{
		Dir: filepath.Join(d.State, "storage"), Reserve: func(*task.Task) int64 { return reservedForLogs }, Logged: func(string) (uint64, error) { return logged, nil },
	}), Pool: &block.Pool{Dir: filepath.Join(d.State, "pool")}, Region: "eu-west-1"})
	t.Cleanup(func() {
		if err := s.Teardown(); err != nil {
			t.Error(err)
		}
	})
	return s, d
}

func of(id string, list ...task.Volume) *task.Task {
	return &task.Task{ARN: "arn:aws:ecs:r:1:task/lab/" + id, NetworkMode: task.NetworkBridge, Volumes: list}
}

// kinds are volumes of every kind that this host has.
func kinds(source string) []task.Volume {
	return []task.Volume{
		{Name: "own", Type: task.VolumeHost},
		{Name: "host", Type: task.VolumeHost, HostPath: source},
		{Name: "memory", Type: task.VolumeDocker, Docker: &task.DockerVolume{Driver: "local", Options: map[string]string{"type": "tmpfs", "o": "size=1m,ro"}}},
		{Name: "shared", Type: task.VolumeDocker, Docker: &task.DockerVolume{Driver: "local", Shared: true, Autoprovision: true}},
		{Name: "block", Type: task.VolumeBlock, Block: &task.BlockVolume{ID: "vol-0123456789abcdef0", Size: 16 << 20, FileSystem: "ext4", Path: "p", Pooled: true, Delete: true}},
	}
}

// Every kind is made, found by a new agent, and taken away; what is asked twice is the
// same.
func TestEveryKindOfVolume(t *testing.T) {
	s, d := host(t)
	tk := of("t1", kinds(filepath.Join(t.TempDir(), "made"))...)
	ctx := t.Context()
	for _, v := range tk.Volumes {
		r, err := s.Ensure(ctx, tk, v.Name, task.Deps{})
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		again, err := s.Ensure(ctx, tk, v.Name, task.Deps{})
		if err != nil || string(again.Handle) != string(r.Handle) {
			t.Errorf("%s again: %s, %v; was %s", v.Name, again.Handle, err, r.Handle)
		}
		var m volumes.Mounted
		if err := json.Unmarshal(r.Handle, &m); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(m.Path); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
		if m.ReadOnly != (v.Name == "memory") || (m.Group != 0) != (v.Name == "block") {
			t.Errorf("%s: %+v", v.Name, m)
		}
	}
	fresh := New(s.c)
	for _, v := range tk.Volumes {
		if o, err := fresh.Probe(ctx, tk, v.Name, nil); err != nil || !o.Exists {
			t.Errorf("%s after a restart: %+v, %v", v.Name, o, err)
		}
	}
	use, err := fresh.BlockUsage(ctx, tk)
	if err != nil || len(use) != 1 || use[0].VolumeID != "vol-0123456789abcdef0" || use[0].Name != "block" || use[0].Size == 0 || use[0].Used > use[0].Size {
		t.Errorf("use of block volumes: %+v, %v", use, err)
	}
	owned, err := fresh.Owned(ctx)
	if err != nil || len(owned) != 1 || owned[0].TaskID != "t1" {
		t.Errorf("owned: %v, %v", owned, err)
	}
	for range 2 {
		for _, v := range tk.Volumes {
			if err := fresh.Remove(ctx, tk, v.Name, nil); err != nil {
				t.Errorf("remove %s: %v", v.Name, err)
			}
		}
	}
	for _, v := range tk.Volumes {
		if o, err := fresh.Probe(ctx, tk, v.Name, nil); err != nil || o.Exists != (v.Name == "shared") {
			t.Errorf("%s after it was removed: %+v, %v", v.Name, o, err)
		}
	}
	if use, err := fresh.BlockUsage(ctx, tk); err != nil || len(use) > 0 {
		t.Errorf("use of a volume that is gone: %+v, %v", use, err)
	}
	if owned, err := fresh.Owned(ctx); err != nil || len(owned) > 0 || len(volumestest.Mounts(t, d.Run)) > 0 {
		t.Errorf("left: %v, %v", owned, err)
	}
}

// What nobody knows any more is swept, also when its mounts are gone with a restart of the
// host and only files of the pool are left.
func TestVolumesAreSwept(t *testing.T) {
	s, d := host(t)
	tk := of("t1", kinds(filepath.Join(t.TempDir(), "made"))...)
	for _, v := range tk.Volumes {
		if _, err := s.Ensure(t.Context(), tk, v.Name, task.Deps{}); err != nil {
			t.Fatal(err)
		}
	}
	other := of("t2", task.Volume{Name: "block", Type: task.VolumeBlock, Block: &task.BlockVolume{ID: "vol-0123456789abcdef1", Size: 16 << 20, FileSystem: "ext4", Path: "p", Pooled: true, Delete: true}})
	if err := s.Stage(t.Context(), "t2", &other.Volumes[0]); err != nil {
		t.Fatal(err)
	}
	if err := d.Teardown(); err != nil { // as a restart of the host leaves it
		t.Fatal(err)
	}
	owned, err := New(s.c).Owned(t.Context())
	ids := make([]string, 0, len(owned))
	for _, o := range owned {
		ids = append(ids, o.TaskID)
		err = errors.Join(err, s.Sweep(t.Context(), o))
	}
	if err != nil || !slices.Equal(ids, []string{"t1", "t2"}) {
		t.Errorf("swept %v, %v", ids, err)
	}
	if left, err := os.ReadDir(filepath.Join(d.State, "pool")); err != nil || len(left) > 0 {
		t.Errorf("left in the pool: %v, %v", left, err)
	}
}

func TestStagedVolumeIsTakenAway(t *testing.T) {
	s, d := host(t)
	for _, gone := range []bool{true, false} {
		v := &task.Volume{Name: "v", Type: task.VolumeBlock, Block: &task.BlockVolume{ID: "vol-0123456789abcdef0", Size: 16 << 20, FileSystem: "ext4", Path: "p", Pooled: true, Delete: gone}}
		for range 2 {
			if err := s.Stage(t.Context(), "t1", v); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := s.Unstage(t.Context(), "t1", v); err != nil {
				t.Fatal(err)
			}
		}
		all, err := s.c.Pool.Volumes()
		if _, there := all[v.Block.ID]; err != nil || there == gone || len(volumestest.Mounts(t, d.Run)) > 0 {
			t.Errorf("to be deleted %t: %v, %v", gone, all, err)
		}
	}
	late := &task.Volume{Name: "v", Type: task.VolumeBlock, Block: &task.BlockVolume{ID: "vol-0123456789abcdef9", Path: "p"}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stage(ctx, "t1", late); !task.ClassOf(err).Retriable() || !strings.Contains(err.Error(), "vol0123456789abcdef9") {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestFailuresHaveClassAndReason(t *testing.T) {
	s, _ := host(t)
	s.c.Pool = nil
	for name, c := range map[string]struct {
		v     task.Volume
		class task.Class
		words string
	}{
		"refused path":     {task.Volume{Type: task.VolumeHost, HostPath: "/proc"}, task.Permission, "BERTH_HOST_PATHS_ALLOWED"},
		"missing volume":   {task.Volume{Type: task.VolumeDocker, Docker: &task.DockerVolume{Driver: "local", Shared: true}}, task.NotFound, "does not exist and autoprovision is set to false"},
		"unknown option":   {task.Volume{Type: task.VolumeDocker, Docker: &task.DockerVolume{Driver: "local", Options: map[string]string{"x": "y"}}}, task.Invalid, "type, device and o"},
		"unknown driver":   {task.Volume{Type: task.VolumeDocker, Docker: &task.DockerVolume{Driver: "none"}}, task.Invalid, "none"},
		"no network":       {task.Volume{Type: task.VolumeEFS, EFS: &task.EFSVolume{FileSystemID: "fs-01234567"}}, task.Invalid, "no network file systems"},
		"bad file system":  {task.Volume{Type: task.VolumeBlock, Block: &task.BlockVolume{ID: "vol-01234567", FileSystem: "ntfs", Path: "p"}}, task.Invalid, "ntfs"},
		"unknown type":     {task.Volume{Type: "tape"}, task.Invalid, "tape"},
		"without contents": {task.Volume{Type: task.VolumeBlock}, task.Invalid, "no driver"},
	} {
		t.Run(name, func(t *testing.T) {
			c.v.Name = "v"
			_, err := s.Ensure(t.Context(), of("t1", c.v), "v", task.Deps{})
			reason := task.ReasonOf(err, "")
			if task.ClassOf(err) != c.class || reason.Code != task.ResourceInitialization || !strings.Contains(reason.Detail, c.words) {
				t.Errorf("%v of class %q, reason %v; want %q with %q", err, task.ClassOf(err), reason, c.class, c.words)
			}
			if err := s.Remove(t.Context(), of("t1", c.v), "v", nil); err != nil {
				t.Errorf("remove: %v", err)
			}
		})
	}
	if _, err := s.Ensure(t.Context(), of("t1"), "other", task.Deps{}); task.ClassOf(err) != task.Invalid {
		t.Errorf("a volume that the task has not: %v", err)
	}
	vpc := of("t1", task.Volume{Name: "v", Type: task.VolumeEFS, EFS: &task.EFSVolume{FileSystemID: "fs-01234567"}})
	vpc.NetworkMode = task.NetworkAWSVPC
	none := task.Deps{Get: func(task.ResourceID) (r task.Record, ok bool) { return r, false }}
	if _, err := s.Ensure(t.Context(), vpc, "v", none); task.ClassOf(err) != task.Invalid || !strings.Contains(err.Error(), "network of task") {
		t.Errorf("a network file system without the task's network: %v", err)
	}
}

// What the logs of every task may take and do, in bytes.
const reservedForLogs, logged = 1 << 20, 4096

// The limited storage of a task holds its empty volumes, tells its use, and goes with it.
func TestLimitedStorage(t *testing.T) {
	s, _ := host(t)
	tk := of("t1", task.Volume{Name: "own", Type: task.VolumeHost})
	tk.Storage = 64 << 20
	st, ctx := s.c.Storage, t.Context()
	if o, err := st.Probe(ctx, tk, "task", nil); err != nil || o.Exists {
		t.Errorf("before: %+v, %v", o, err)
	}
	for range 2 {
		if _, err := st.Ensure(ctx, tk, "task", task.Deps{}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Ensure(ctx, tk, "own", task.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var m volumes.Mounted
	if err := json.Unmarshal(r.Handle, &m); err != nil {
		t.Fatal(err)
	}
	before, ok, err := st.Usage(ctx, tk)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	f, err := os.Create(filepath.Join(m.Path, "x"))
	if err == nil {
		_, err = f.Write(make([]byte, 8<<20))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	after, _, err := st.Usage(ctx, tk)
	if err != nil || after.Used < before.Used+8<<20 || after.Limit != uint64(tk.Storage) {
		t.Errorf("%+v after %+v, %v", after, before, err)
	}
	// Its logs count, and what they may take is not for anything else.
	if own, err := st.store.Usage("t1"); err != nil || own.Used != after.Used-logged || own.Limit > uint64(tk.Storage-reservedForLogs) {
		t.Errorf("without logs %+v, with logs %+v: %v", own, after, err)
	}
	if _, ok, err := st.Usage(ctx, of("t2")); err != nil || ok {
		t.Errorf("a task without a limit: %t, %v", ok, err)
	}
	if owned, err := st.Owned(ctx); err != nil || len(owned) != 1 || owned[0].TaskID != "t1" {
		t.Errorf("%v, %v", owned, err)
	}
	for range 2 {
		if err := errors.Join(s.Remove(ctx, tk, "own", nil), st.Remove(ctx, tk, "task", nil)); err != nil {
			t.Error(err)
		}
	}
	if owned, err := st.Owned(ctx); err != nil || len(owned) > 0 {
		t.Errorf("left: %v, %v", owned, err)
	}
	if err := st.Teardown(); err != nil {
		t.Error(err)
	}
}
