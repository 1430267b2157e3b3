package state

import (
	"fmt"
	"sync"
	"testing"

	"berth.dev/berth/agent/task"
)

// BenchmarkCommit is one commit of the middle of a task's life, synced, with 100 other
// tasks in the database.
func BenchmarkCommit(b *testing.B) {
	db := benchDB(b)
	n := 0
	for b.Loop() {
		n++
		mustCommit(b, db, commit(step(fmt.Sprint("t", n%100), n)))
	}
}

// BenchmarkCommit100 is 100 tasks committing at the same time.
func BenchmarkCommit100(b *testing.B) {
	db := benchDB(b)
	n := 0
	for b.Loop() {
		n++
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { mustCommit(b, db, commit(step(fmt.Sprint("t", i), n))) })
		}
		wg.Wait()
	}
}

// BenchmarkAccept100 is the one commit of a payload with 100 tasks.
func BenchmarkAccept100(b *testing.B) {
	db := benchDB(b)
	n := 0
	for b.Loop() {
		n++
		c := task.Commit{Message: &task.Message{ID: fmt.Sprint(n)}}
		for i := range 100 {
			c.Batches = append(c.Batches, accept(fmt.Sprintf("n%d-%d", n, i)))
		}
		mustCommit(b, db, c)
	}
}

// BenchmarkOpen is opening and loading with 100 tasks, the check by a child included.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	db := openDir(b, dir)
	for i := range 100 {
		mustCommit(b, db, commit(accept(fmt.Sprint("t", i))))
		mustCommit(b, db, commit(step(fmt.Sprint("t", i), 0)))
	}
	mustClose(b, db)
	for b.Loop() {
		db := openDir(b, dir)
		if _, err := db.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
		mustClose(b, db)
	}
}

func benchDB(b *testing.B) *DB {
	db := openDir(b, b.TempDir())
	for i := range 100 {
		mustCommit(b, db, commit(accept(fmt.Sprint("t", i))))
	}
	return db
}

// BenchmarkFirstOpen is the first start of an agent.
func BenchmarkFirstOpen(b *testing.B) {
	for b.Loop() {
		mustClose(b, openDir(b, b.TempDir()))
	}
}
