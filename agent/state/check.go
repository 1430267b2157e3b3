package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// ErrBad is wrapped by every error that says a database file is damaged or not ours, as
// opposed to one that could not be read just now.
var ErrBad = errors.New("the state database is damaged")

// checkLock is how long a check waits for a database that another process has open.
const checkLock = time.Second

// CheckFile reads all of a closed database file and returns an error that wraps ErrBad
// when it is damaged; any other error means that it could not be read. A damaged file
// can also crash the process or keep it busy for ever, which is why Open has a child
// process do this. A file of a newer schema is checked as far as this program can.
func CheckFile(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return fmt.Errorf("%w: %s is empty or not a regular file", ErrBad, path)
	}
	f, err := os.Open(path) // tells "may not" from "damaged", which bbolt does not
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: checkLock, PreLoadFreelist: true})
	if errors.Is(err, bolt.ErrTimeout) {
		return fmt.Errorf("check %s: another process has it open: stop the agent first", path)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBad, err)
	}
	err = db.View(checkAll)
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil && !errors.Is(err, ErrBad) {
		err = fmt.Errorf("%w: %w", ErrBad, err)
	}
	return err
}

// maxFindings bounds how many of bbolt's findings are put into an error.
const maxFindings = 4

func checkAll(tx *bolt.Tx) error {
	var found []error
	for err := range tx.Check() { // must be read to its end
		if len(found) < maxFindings {
			found = append(found, err)
		}
	}
	if len(found) > 0 {
		return errors.Join(found...)
	}
	schema, err := schemaOf(tx)
	if err != nil || schema > latest(migrations) {
		return err
	}
	if schema == 0 {
		return errLayout
	}
	root := tx.Bucket(bucketRoot)
	var sum total
	if err := checkValues(root, "", &sum); err != nil {
		return err
	}
	want, err := readTotal(root)
	if err != nil {
		return err
	}
	if sum != want {
		return fmt.Errorf("%d values that do not add up to the stored sum of %d", sum.Values, want.Values)
	}
	if schema < latest(migrations) {
		return nil
	}
	return checkMeaning(root)
}

// checkValues verifies every envelope below a bucket and adds the values up.
func checkValues(b *bolt.Bucket, path string, sum *total) error {
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			return checkValues(b.Bucket(k), path+string(k)+"/", sum)
		}
		if path == "meta/" && bytes.Equal(k, keySum) {
			return nil
		}
		if _, err := unseal(path+string(k), v); err != nil {
			return err
		}
		sum.add(v)
		return nil
	})
}

// checkMeaning decodes everything, so that what passes can be loaded.
func checkMeaning(root *bolt.Bucket) error {
	for _, name := range [][]byte{bucketMeta, bucketTasks, bucketOutbox, bucketInbox, bucketTombstones} {
		if root.Bucket(name) == nil {
			return errLayout
		}
	}
	if _, err := readMetadata(root); err != nil {
		return err
	}
	if _, err := readRows(root.Bucket(bucketOutbox), 0, 0); err != nil {
		return err
	}
	if err := checkCounter(root.Bucket(bucketOutbox)); err != nil {
		return err
	}
	if _, err := readDated(root.Bucket(bucketInbox), "inbox/", inboxMax, remembered); err != nil {
		return err
	}
	if _, err := readDated(root.Bucket(bucketTombstones), "tombstones/", tombstonesMax, remembered); err != nil {
		return err
	}
	return eachTask(root, func(id string, b *bolt.Bucket) error {
		if _, err := readTask(id, b); err != nil {
			return err
		}
		events := b.Bucket(bucketEvents)
		if events == nil {
			return nil
		}
		if _, err := readEvents(id, events); err != nil {
			return err
		}
		return checkCounter(events)
	})
}

// checkCounter verifies that a numbered bucket will not use a number a second time.
func checkCounter(b *bolt.Bucket) error {
	if k, _ := b.Cursor().Last(); k != nil && bytes.Compare(k, counterKey(b.Sequence())) > 0 {
		return fmt.Errorf("%w: a counter is behind the rows that it has numbered", ErrBad)
	}
	return nil
}

// Exit codes of a check in a child process. A Go program that crashes ends with 2.
const (
	exitGood    = 0
	exitBad     = 1
	exitUnknown = 75 // EX_TEMPFAIL of sysexits.h: could not be checked now
)

// Limits of the child process. A page that was made to point at itself has bbolt take
// memory or stack until there is no more.
const (
	checkMemory = 256 << 20 // bytes of writable memory, besides four times the file
	checkStack  = 64 << 20
)

// CheckMain is the main function of the child process: it limits the process, checks
// the file, writes what is wrong to w and returns the exit code that ByChild understands.
func CheckMain(path string, w io.Writer) int {
	err := limitProcess(path)
	if err == nil {
		err = CheckFile(path)
	}
	if err == nil {
		return exitGood
	}
	fmt.Fprintln(w, err) //nolint:errcheck // the exit code says it too
	if errors.Is(err, ErrBad) {
		return exitBad
	}
	return exitUnknown
}

func limitProcess(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	debug.SetMaxStack(checkStack)
	bytes := uint64(checkMemory) + 4*uint64(st.Size()) //nolint:gosec // a size is never negative
	return unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: bytes, Max: bytes})
}

// ByChild returns a function for Config.Check that runs a program with the given
// arguments and the path added; the program calls CheckMain. The file is bad when the
// program says so, crashes, or is not done when the context ends.
func ByChild(program string, args ...string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		var said head
		cmd := exec.CommandContext(ctx, program, append(args[:len(args):len(args)], path)...)
		cmd.Env = []string{"GOTRACEBACK=single"} // the agent's own environment holds secrets
		cmd.Stderr = &said
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
			return fmt.Errorf("%w: its check did not end in time", ErrBad)
		case !errors.As(err, &exit):
			return fmt.Errorf("run the check of the state database: %w", err)
		}
		status := exit.Sys().(syscall.WaitStatus)
		if status.ExitStatus() == exitUnknown || status.Signal() == syscall.SIGKILL || status.Signal() == syscall.SIGTERM {
			return fmt.Errorf("the state database could not be checked: %w: %s", err, said.line())
		}
		return fmt.Errorf("%w: %s (%w)", ErrBad, said.line(), err)
	}
}

// head keeps the first bytes of what a child wrote; a crash prints its cause first.
type head struct{ b []byte }

const maxSaid = 512

func (t *head) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), maxSaid-len(t.b))]...)
	return len(p), nil
}

func (t *head) line() string {
	s := strings.TrimSpace(string(t.b))
	s = strings.TrimPrefix(s, ErrBad.Error()+": ")
	if i := strings.Index(s, "\ngoroutine "); i >= 0 {
		s = s[:i]
	}
	return strings.Join(strings.Fields(s), " ")
}
