package state

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/agent/task"
)

// This test program is also the child process that checks a file, and the one that is
// killed while it commits.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 {
		switch os.Args[1] {
		case "state-check":
			// Not os.Exit, in which the race detector waits for a second.
			syscall.Exit(CheckMain(os.Args[2], os.Stderr))
		case "state-churn":
			os.Exit(churn(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

var childCheck = ByChild(os.Args[0], "state-check")

func openDir(t testing.TB, dir string) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{Dir: dir, Check: childCheck, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func mustClose(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustCommit(t testing.TB, db *DB, c task.Commit) {
	t.Helper()
	if err := db.Commit(context.Background(), c); err != nil {
		t.Fatal(err)
	}
}

var epoch = time.Date(2030, 1, 2, 3, 4, 5, 678, time.UTC)

func taskOf(id string) *task.Task {
	return &task.Task{
		ARN: "arn:aws:ecs:us-east-1:000000000000:task/default/" + id, ClusterARN: "arn:aws:ecs:us-east-1:000000000000:cluster/default",
		Family: "my-task", Version: "1", NetworkMode: task.NetworkBridge,
		Containers: []task.Container{{
			Name: "web", Image: "my-image", Essential: true, Memory: 512, CPU: 256,
			Environment: map[string]string{"A": "b"}, Ports: []task.Port{{ContainerPort: 80, HostPort: 80, Protocol: "tcp"}},
		}},
	}
}

func accept(id string) task.Batch {
	return task.Batch{
		TaskID: id, Task: taskOf(id),
		Known:  &task.Known{Desired: task.StatusRunning, DesiredSeq: 7, Received: epoch},
		Events: []task.Event{{At: epoch, Kind: task.EventReceived}},
	}
}

// step is what the engine commits in the middle of a task's life.
func step(id string, n int) task.Batch {
	web := task.ResourceID{Kind: task.KindContainer, Name: "web"}
	return task.Batch{
		TaskID: id,
		Known:  &task.Known{Desired: task.StatusRunning, Status: task.StatusCreated, Received: epoch, SentContainers: map[string]task.ContainerStatus{"web": task.ContainerRunning}},
		Records: map[task.ResourceID]*task.Record{
			web:                                    {Phase: task.Present, Verb: task.VerbStart, Attempts: n, RuntimeID: "berth-0123456789abcdef", Created: epoch, Handle: task.Handle(`{"pid":1}`)},
			{Kind: task.KindNetwork, Name: "task"}: {Phase: task.Present, Bindings: map[string][]task.Binding{"web": {{BindIP: "0.0.0.0", ContainerPort: 80, HostPort: 80, Protocol: "tcp"}}}},
		},
		Events: []task.Event{
			{At: epoch, Kind: task.EventActionDone, Resource: web, Verb: task.VerbEnsure, Fact: &task.Fact{Resource: web, Verb: task.VerbEnsure, At: epoch, Result: task.Result{RuntimeID: "berth-0123456789abcdef"}}},
			{At: epoch, Kind: task.EventIntent, Resource: web, Verb: task.VerbStart, Text: fmt.Sprint(n)},
		},
		Changes: []task.Change{{TaskARN: taskOf(id).ARN, Status: task.StatusRunning, Containers: []task.ContainerChange{{Name: "web", Status: task.ContainerRunning}}}},
	}
}

func commit(batches ...task.Batch) task.Commit { return task.Commit{Batches: batches} }

// filled makes a state directory with a bit of everything and returns the database file.
func filled(t testing.TB, tasks int) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	db := openDir(t, dir)
	if err := db.SetMeta(t.Context(), Meta{InstanceARN: "arn:instance", Cluster: "default", AZ: "a", BootID: "b"}); err != nil {
		t.Fatal(err)
	}
	for i := range tasks {
		id := fmt.Sprintf("task%04d", i)
		mustCommit(t, db, task.Commit{Message: &task.Message{ID: "m" + id, At: time.Now()}, Sequence: int64(i + 1), Batches: []task.Batch{accept(id)}})
		mustCommit(t, db, commit(step(id, 1)))
		if i%4 == 3 {
			mustCommit(t, db, commit(task.Batch{TaskID: id, Delete: true}))
		}
	}
	mustClose(t, db)
	return dir, filepath.Join(dir, fileDatabase)
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeBytes(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func sameFile(t *testing.T, path string, want []byte) {
	t.Helper()
	if !bytes.Equal(readFile(t, path), want) {
		t.Errorf("%s was changed", filepath.Base(path))
	}
}
