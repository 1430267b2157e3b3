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
	"strconv"
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
	schema, can, err := usable(tx, migrations)
	if err != nil || !can {
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
	if _, err := readAttachments(root); err != nil {
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

// Exit codes of a check in a child process, of sysexits.h. They are not 1 or 2, with
// which a program ends that was called in a wrong way: that must not cost the database.
const (
	exitGood    = 0
	exitBad     = 65 // EX_DATAERR
	exitUnknown = 75 // EX_TEMPFAIL: could not be checked now
)

// checking is the first line that the child writes. Only after it does a crash of the
// child, or its not ending, say something about the file.
const checking = "checking the state database\n"

// Limits of the child process, on top of what it uses when it begins. A page that was
// made to point at itself has bbolt take memory or stack until there is no more.
const (
	checkMemory = 256 << 20 // bytes of writable memory, and four times the file
	checkStack  = 64 << 20
)

// CheckMain is the main function of the child process: it limits the process, checks
// the file, writes what is wrong to w and returns the exit code that ByChild understands.
func CheckMain(path string, w io.Writer) int {
	err := limitProcess(path)
	if err == nil {
		_, err = io.WriteString(w, checking)
	}
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
	used, err := dataSize()
	if err != nil {
		return err
	}
	debug.SetMaxStack(checkStack)
	limit := used + checkMemory + 4*uint64(st.Size()) //nolint:gosec // a size is never negative
	return unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit})
}

// dataSize is what RLIMIT_DATA counts of this process, in bytes (proc(5), VmData).
func dataSize() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmData:" {
			kib, err := strconv.ParseUint(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/self/status has no VmData")
}

// ByChild returns a function for Config.Check that runs a program with the given
// arguments and the path added; the program calls CheckMain with its standard error.
// The file is bad when the program says so, and when it crashed or was not done at the
// end of the context while it was reading the file.
func ByChild(program string, args ...string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		var said head
		cmd := exec.CommandContext(ctx, program, append(args[:len(args):len(args)], path)...)
		cmd.Env = []string{"GOTRACEBACK=single"} // the agent's own environment holds secrets
		cmd.Stderr = &said
		err := cmd.Run()
		if err == nil {
			return nil
		}
		text, began := strings.CutPrefix(string(said.b), checking)
		text = oneLine(text)
		var exit *exec.ExitError
		switch {
		case !errors.As(err, &exit):
			return fmt.Errorf("run the check of the state database: %w", err)
		case began && errors.Is(ctx.Err(), context.DeadlineExceeded):
			return fmt.Errorf("%w: its check did not end in time", ErrBad)
		case began && condemns(exit.Sys().(syscall.WaitStatus)):
			return fmt.Errorf("%w: %s (%w)", ErrBad, text, err)
		default:
			return fmt.Errorf("the state database could not be checked: %w: %s", err, text)
		}
	}
}

// condemns reports whether a check that had begun and ended so means a bad file. To be
// killed or told to end by someone else means nothing.
func condemns(s syscall.WaitStatus) bool {
	if s.Signaled() {
		return s.Signal() != syscall.SIGKILL && s.Signal() != syscall.SIGTERM && s.Signal() != syscall.SIGINT
	}
	return s.ExitStatus() != exitUnknown
}

// oneLine shortens what a child said; a crash is followed by its stacks.
func oneLine(s string) string {
	s = strings.TrimPrefix(strings.TrimSpace(s), ErrBad.Error()+": ")
	s, _, _ = strings.Cut(s, "\ngoroutine ")
	return strings.Join(strings.Fields(s), " ")
}

// head keeps the first bytes of what a child wrote; a crash prints its cause first.
type head struct{ b []byte }

const maxSaid = 512

func (t *head) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), maxSaid-len(t.b))]...)
	return len(p), nil
}
