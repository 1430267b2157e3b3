package state

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/task"
)

// churn is the child of the crash test: it commits tasks from several goroutines for
// ever, and prints each one's name once its commit has returned.
func churn(dir string) int {
	db, err := Open(context.Background(), Config{Dir: dir, Check: childCheck, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if db.Opening().Lost != nil {
		fmt.Fprintln(os.Stderr, db.Opening().Lost)
		return 1
	}
	var out sync.Mutex
	for worker := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("g%d-w%d-%d", db.Meta().Generation, worker, i)
				if err := db.Commit(context.Background(), commit(accept(id))); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				out.Lock()
				fmt.Println(id)
				out.Unlock()
				if err := db.Commit(context.Background(), commit(step(id, i))); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
			}
		}()
	}
	select {}
}

func TestKilledAgentKeepsWhatWasCommitted(t *testing.T) {
	dir := t.TempDir()
	var told []string
	r := rand.New(rand.NewSource(time.Now().UnixNano()))
	kills := 10
	if testing.Short() {
		kills = 3
	}
	for range kills {
		cmd := exec.Command(os.Args[0], "state-churn", dir)
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, stopAfter := bufio.NewScanner(out), 1+r.Intn(60)
		for n := 0; lines.Scan(); n++ {
			told = append(told, lines.Text())
			if n == stopAfter {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the child ended by itself: %v", err)
		}
	}
	db := openDir(t, dir)
	if o := db.Opening(); o.Fresh || db.Meta().Clean {
		t.Errorf("opening %+v, clean %v", o, db.Meta().Clean)
	}
	all, err := db.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]bool{}
	for _, s := range all {
		stored[s.Task.ID()] = true
	}
	for _, id := range told {
		if !stored[id] {
			t.Errorf("task %s was committed and is gone", id)
		}
	}
	t.Logf("%d tasks told, %d stored", len(told), len(stored))
}

func TestFullFilesystemTakesNoNewTasksButRecordsTheEndOfTheOld(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "mounting a small filesystem needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("berth-state-test", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	db := openDir(t, dir)
	ids := []string{}
	for i := range 20 {
		ids = append(ids, fmt.Sprint("t", i))
		mustCommit(t, db, commit(accept(ids[i])))
	}
	filler := fill(t, dir+"/filler")

	var err error
	for i := 0; err == nil && i < 10000; i++ {
		err = db.Commit(t.Context(), commit(accept("new"+strconv.Itoa(i))))
	}
	if task.ClassOf(err) != task.Exhausted || task.ReasonOf(err, "").Code != task.HostResourcesExhausted {
		t.Fatalf("on a full filesystem a new task got %v", err)
	}
	if _, err := os.Stat(dir + "/" + fileBallast); err == nil {
		t.Error("the ballast is still there")
	}
	for _, id := range ids {
		mustCommit(t, db, commit(step(id, 1)))
		mustCommit(t, db, commit(task.Batch{TaskID: id, Known: &task.Known{Desired: task.StatusStopped, Status: task.StatusStopped}}))
		mustCommit(t, db, commit(task.Batch{TaskID: id, Delete: true}))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		if err = db.Commit(t.Context(), commit(accept("later"))); err == nil || time.Now().After(deadline) {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("5 s after there was space again: %v", err)
	}
	if st, err := os.Stat(dir + "/" + fileBallast); err != nil || st.Size() != ballastSize {
		t.Errorf("the ballast was not made again: %v", err)
	}
	mustClose(t, db)
	db = openDir(t, dir)
	all, err := db.Load(t.Context())
	if err != nil || db.Opening().Fresh || !slices.ContainsFunc(all, func(s task.Stored) bool { return s.Task.ID() == "later" }) {
		t.Errorf("after opening again: %d tasks, %v, %+v", len(all), err, db.Opening())
	}
}

// fill writes a file until nothing more goes into its filesystem.
func fill(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(b)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAgentStartsOnAFullFilesystem(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "mounting a small filesystem needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("berth-state-test", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	db := openDir(t, dir)
	mustCommit(t, db, commit(accept("a")))
	mustClose(t, db)
	fill(t, dir+"/filler")
	db = openDir(t, dir)
	mustCommit(t, db, commit(step("a", 1)))
	if err := db.Commit(t.Context(), commit(accept("b"))); task.ClassOf(err) != task.Exhausted {
		t.Errorf("a new task got %v", err)
	}
}
