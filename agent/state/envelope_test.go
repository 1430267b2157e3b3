package state

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

func TestValueMovedToAnotherKeyIsNoticed(t *testing.T) {
	v, err := encode("x")
	if err != nil {
		t.Fatal(err)
	}
	seal("tasks/a/spec", v)
	var s string
	if err := decode("tasks/a/spec", v, &s); err != nil || s != "x" {
		t.Errorf("%q, %v", s, err)
	}
	if err := decode("tasks/b/spec", v, &s); err == nil {
		t.Error("a value of another task was taken")
	}
}

func FuzzStateValue(f *testing.F) {
	good, err := encode(task.Record{Phase: task.Present, Verb: task.VerbStart})
	if err != nil {
		f.Fatal(err)
	}
	seal("p", good)
	f.Add(good)
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 0})
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		var r task.Record
		if decode("p", b, &r) == nil && !bytes.Equal(b, good) {
			// Only a value that was sealed for this path may pass.
			again := bytes.Clone(b)
			seal("p", again)
			if !bytes.Equal(again, b) {
				t.Fatalf("%q was taken for a value", b)
			}
		}
		if len(b) < envelopeSize {
			return
		}
		sealed := bytes.Clone(b)
		seal("p", sealed)
		payload, err := unseal("p", sealed)
		if err != nil || !bytes.Equal(payload, b[envelopeSize:]) {
			t.Fatalf("%q came back as %q, %v", b[envelopeSize:], payload, err)
		}
	})
}

// A database with one stretch of bytes changed is bad, or holds what was committed.
func FuzzStateFile(f *testing.F) {
	_, path := filled(f, 8)
	good := readFile(f, path)
	f.Add(uint32(0), []byte{0})
	f.Add(uint32(4096*3+20), []byte{0xff, 0xff})
	f.Add(uint32(4096*2), make([]byte, 4096))
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		b := bytes.Clone(good)
		for i, c := range change[:min(len(change), 4096)] {
			b[(int(at)+i)%len(b)] ^= c
		}
		tmp := t.TempDir() + "/x.db"
		writeBytes(t, tmp, b)
		if err := childCheck(t.Context(), tmp); err != nil {
			if !errors.Is(err, ErrBad) {
				t.Fatal(err)
			}
			return
		}
		got := loadFile(t, tmp)
		if diff := cmp.Diff(loadFile(t, path), got); diff != "" && !prefix(t, tmp, path) {
			t.Fatalf("a change at %d was not noticed: %s", at, diff)
		}
	})
}

// prefix reports whether one file shows the state of an earlier transaction of the
// other, which is what a damaged meta page leads back to.
func prefix(t *testing.T, tmp, path string) bool {
	t.Helper()
	ids := [2]int{}
	for i, p := range []string{tmp, path} {
		b, err := bolt.Open(p, 0o600, &bolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		err = b.View(func(tx *bolt.Tx) error { ids[i] = tx.ID(); return nil })
		if err := errors.Join(err, b.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return ids[0] < ids[1]
}
