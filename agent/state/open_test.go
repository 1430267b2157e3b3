package state

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

func TestLayoutIsTheOneInThePackageComment(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir)
	if err := db.SetMeta(t.Context(), Meta{}); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, db, task.Commit{Message: &task.Message{ID: "m", At: time.Now()}, Sequence: 1, Batches: []task.Batch{accept("a"), accept("b")}})
	mustCommit(t, db, commit(step("a", 1), task.Batch{TaskID: "b", Delete: true}))
	mustCommit(t, db, task.Commit{Attachments: map[string]*task.Attachment{"x": {ARN: "x"}}})

	got := map[string]bool{}
	if err := db.view(func(root *bolt.Bucket) error { return drawn(root, "v1/", got) }); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, path := range documentedTree(t) {
		want[path] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("documented (-) and real (+): %s", diff)
	}
}

// drawn collects the paths of all keys in the notation of the package comment.
func drawn(b *bolt.Bucket, path string, into map[string]bool) error {
	return b.ForEach(func(k, v []byte) error {
		name := string(k)
		switch {
		case path == "v1/tasks/":
			name = "<task id>"
		case path == "v1/inbox/":
			name = "<message id>"
		case path == "v1/tombstones/" || path == "v1/attachments/":
			name = "<arn>"
		case len(k) == 8 && (strings.HasSuffix(path, "/events/") || path == "v1/outbox/"):
			name = "<n>"
		case strings.HasPrefix(name, prefixRes):
			name = "res/<kind>/<name>"
		}
		if v == nil {
			return drawn(b.Bucket(k), path+name+"/", into)
		}
		into[path+name] = true
		return nil
	})
}

// documentedTree reads the tree in doc.go: two spaces a level, names ending in a slash
// have more below them.
func documentedTree(t *testing.T) (paths []string) {
	line := regexp.MustCompile(`^//\t((?:  )*)(\S.*?)(?:\s{2,}.*)?$`)
	var parents []string
	for l := range strings.Lines(string(readFile(t, "doc.go"))) {
		m := line.FindStringSubmatch(strings.TrimRight(l, "\n"))
		if m == nil {
			if len(parents) > 0 {
				return paths
			}
			continue
		}
		depth := len(m[1]) / 2
		parents = append(parents[:depth:depth], m[2])
		if !strings.HasSuffix(m[2], "/") || strings.Count(m[2], "/") > 1 || strings.HasSuffix(m[2], ">") {
			path := strings.Join(parents, "")
			if strings.HasSuffix(m[2], "/") { // "tasks/<task id>/" has its own children
				continue
			}
			paths = append(paths, path)
		}
	}
	return paths
}

func TestFirstStartMakesADirectoryForTheAgentAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "state")
	db := openDir(t, dir)
	if o := db.Opening(); !o.Fresh || o.Lost != nil || o.Quarantined != "" {
		t.Errorf("opening %+v", o)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if err == nil && st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, st.Mode().Perm(), want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestMetaIsKeptAndTellsHowTheLastAgentEnded(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // what is to be repaired
		t.Fatal(err)
	}
	db := openDir(t, dir)
	want := Meta{InstanceARN: "arn", Cluster: "c", AZ: "z", BootID: "b"}
	if err := db.SetMeta(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	db = openDir(t, dir)
	want.Clean, want.Generation = true, 2
	if diff := cmp.Diff(want, db.Meta()); diff != "" {
		t.Error(diff)
	}
	crash(t, db)
	db = openDir(t, dir)
	want.Clean, want.Generation = false, 3
	if diff := cmp.Diff(want, db.Meta()); diff != "" {
		t.Error(diff)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", st.Mode(), err)
	}
}

// crash lets go of the database as the end of the process would.
func crash(t *testing.T, db *DB) {
	t.Helper()
	db.mu.Lock()
	db.closed = true
	db.mu.Unlock()
	close(db.stop)
	<-db.finished
	if err := errors.Join(db.bolt.Close(), db.unlock()); err != nil {
		t.Fatal(err)
	}
}

// leafPage is the number of a page that holds data. Which those are depends on how the
// commits before it were grouped.
func leafPage(t *testing.T, path string) int {
	t.Helper()
	b, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	page := 0
	err = b.View(func(tx *bolt.Tx) error {
		for id := 2; page == 0; id++ {
			info, err := tx.Page(id)
			if err != nil || info == nil {
				return errors.Join(err, errors.New("no page holds data"))
			}
			if info.Type == "leaf" {
				page = id
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func TestDamagedDatabaseIsCondemnedAndReplaced(t *testing.T) {
	_, other := filled(t, 4)
	for name, damage := range map[string]func(t *testing.T, dir, path string){
		"empty":     func(t *testing.T, _, path string) { writeBytes(t, path, nil) },
		"truncated": func(t *testing.T, _, path string) { writeBytes(t, path, readFile(t, path)[:20<<10]) },
		"zeroed page": func(t *testing.T, _, path string) {
			b := readFile(t, path)
			page := leafPage(t, path)
			clear(b[page*4096 : (page+1)*4096])
			writeBytes(t, path, b)
		},
		"all zero":  func(t *testing.T, _, path string) { writeBytes(t, path, make([]byte, len(readFile(t, path)))) },
		"text":      func(t *testing.T, _, path string) { writeBytes(t, path, []byte("hello")) },
		"swapped":   func(t *testing.T, _, path string) { writeBytes(t, path, readFile(t, other)) },
		"missing":   func(t *testing.T, _, path string) { _ = os.Remove(path) },
		"flipped":   func(t *testing.T, _, path string) { flipValue(t, path) },
		"lost tail": func(t *testing.T, _, path string) { loseEntry(t, path) },
		"old copy": func(t *testing.T, dir, path string) {
			old := readFile(t, path)
			for range 2 {
				db := openDir(t, dir)
				mustClose(t, db)
			}
			writeBytes(t, path, old)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, path := filled(t, 4)
			damage(t, dir, path)
			damaged, _ := os.ReadFile(path)
			db := openDir(t, dir)
			o := db.Opening()
			if !o.Fresh || !errors.Is(o.Lost, ErrBad) {
				t.Fatalf("opening %+v", o)
			}
			if name != "missing" {
				sameFile(t, o.Quarantined, damaged)
			}
			if m := db.Meta(); m.InstanceARN != "arn:instance" || m.Cluster != "default" {
				t.Errorf("the registration is forgotten: %+v", m)
			}
			mustCommit(t, db, commit(accept("new")))
			mustClose(t, db)
			db = openDir(t, dir)
			if all, err := db.Load(t.Context()); err != nil || len(all) != 1 || db.Opening().Fresh {
				t.Errorf("after the replacement: %d tasks, %v, %+v", len(all), err, db.Opening())
			}
		})
	}
}

// flipValue changes one bit in the middle of a stored value, which bbolt does not notice.
func flipValue(t *testing.T, path string) {
	b := readFile(t, path)
	i := strings.LastIndex(string(b), `"my-image"`)
	if i < 0 {
		t.Fatal("no value to damage")
	}
	for i := range b {
		if strings.HasPrefix(string(b[i:min(len(b), i+10)]), `"my-image"`) {
			b[i+3] ^= 1
		}
	}
	writeBytes(t, path, b)
}

// loseEntry deletes a record behind the back of the sum.
func loseEntry(t *testing.T, path string) {
	b, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = b.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketRoot).Bucket(bucketTasks).Bucket([]byte("task0001")).Delete([]byte("res/container/web"))
	})
	if err := errors.Join(err, b.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyAFewBadFilesAreKept(t *testing.T) {
	dir := t.TempDir()
	for range keptBad + 3 {
		db := openDir(t, dir)
		mustClose(t, db)
		writeBytes(t, filepath.Join(dir, fileDatabase), []byte("rubbish"))
	}
	last := openDir(t, dir).Opening().Quarantined
	bad, err := filepath.Glob(filepath.Join(dir, fileDatabase+badInfix+"*"))
	if err != nil || len(bad) != keptBad || !slices.Contains(bad, last) {
		t.Errorf("kept %q, %v; the last is %q", bad, err, last)
	}
}

func TestRandomBitFlipsAreNoticedOrHarmless(t *testing.T) {
	dir, path := filled(t, 8)
	good := readFile(t, path)
	db := openDir(t, dir)
	want, err := db.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	r := rand.New(rand.NewSource(1))
	noticed := 0
	flips := 200
	if testing.Short() {
		flips = 20
	}
	for range flips {
		b := slices.Clone(good)
		i := r.Intn(len(b))
		for zero := make([]byte, 4096); bytes.Equal(b[i&^4095:i&^4095+4096], zero); {
			i = r.Intn(len(b)) // only pages that were ever written
		}
		b[i] ^= 1 << r.Intn(8)
		tmp := filepath.Join(t.TempDir(), "flipped.db")
		writeBytes(t, tmp, b)
		if err := childCheck(t.Context(), tmp); err != nil {
			if !errors.Is(err, ErrBad) {
				t.Errorf("byte %d: %v", i, err)
			}
			noticed++
			continue
		}
		if diff := cmp.Diff(want, loadFile(t, tmp)); diff != "" {
			t.Errorf("a flip in byte %d was not noticed: %s", i, diff)
		}
	}
	if noticed == 0 {
		t.Error("not one was noticed")
	}
	t.Logf("%d of %d noticed, the others harmless", noticed, flips)
}

func loadFile(t *testing.T, path string) (all []task.Stored) {
	t.Helper()
	b, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	all, err = (&DB{bolt: b}).Load(t.Context())
	if err := errors.Join(err, b.Close()); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRefusedFilesAreNotTouched(t *testing.T) {
	newer := func(t *testing.T, path string) {
		b, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		future := append(slices.Clone(migrations), migration{To: 2, Do: func(*writer) error { return nil }})
		_, err = migrate(b, future)
		if err := errors.Join(err, b.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		do     func(t *testing.T, path string)
		config Config
		text   string
	}{
		{"newer schema", newer, Config{Check: childCheck}, "has schema 2 and this program knows 1: install the newer version"},
		{"check cannot run", nil, Config{Check: ByChild("/nonexistent/agent")}, "run the check"},
		{"check is killed", nil, Config{Check: ByChild("/bin/sh", "-c", "echo checking the state database >&2; kill -9 $$")}, "could not be checked"},
		{"check is called wrongly", nil, Config{Check: ByChild("/bin/sh", "-c", "echo usage >&2; exit 1")}, "could not be checked: exit status 1: usage"},
		{"check does not begin", nil, Config{Check: ByChild("/bin/sh", "-c", "exec sleep 60"), CheckTimeout: 50 * time.Millisecond}, "could not be checked"},
		{"wrong owner", func(t *testing.T, path string) {
			if os.Geteuid() != 0 {
				skipOrFail(t, "changing the owner of a file needs root")
			}
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}, Config{}, "belongs to user 65534"},
		{"held by bbolt", func(t *testing.T, path string) {
			b, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
		}, Config{Check: childCheck}, "another process has it open"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, path := filled(t, 2)
			if tc.do != nil {
				tc.do(t, path)
			}
			before, side := readFile(t, path), readFile(t, filepath.Join(dir, fileSidecar))
			tc.config.Dir = dir
			tc.config.LockTimeout = 100 * time.Millisecond
			db, err := Open(t.Context(), tc.config)
			if err == nil {
				mustClose(t, db)
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v, want %q", err, tc.text)
			}
			if tc.name == "newer schema" && !errors.Is(err, ErrNewer) {
				t.Errorf("%v is not ErrNewer", err)
			}
			sameFile(t, path, before)
			sameFile(t, filepath.Join(dir, fileSidecar), side)
		})
	}
}

func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func TestSecondAgentIsRefused(t *testing.T) {
	dir := t.TempDir()
	openDir(t, dir)
	_, err := Open(t.Context(), Config{Dir: dir, LockTimeout: 50 * time.Millisecond})
	if err == nil || task.ClassOf(err) != task.Unavailable || !strings.Contains(err.Error(), "another agent uses this state directory") {
		t.Errorf("second open: %v", err)
	}
}

func TestSecondAgentWaitsForTheFirstToEnd(t *testing.T) {
	dir := t.TempDir()
	first := openDir(t, dir)
	done := make(chan error)
	go func() {
		db, err := Open(context.Background(), Config{Dir: dir, LockTimeout: 10 * time.Second})
		if err == nil {
			err = db.Close()
		}
		done <- err
	}()
	mustClose(t, first)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCheckThatDoesNotEndCondemns(t *testing.T) {
	dir, _ := filled(t, 1)
	db, err := Open(t.Context(), Config{Dir: dir, Check: ByChild("/bin/sh", "-c", "echo checking the state database >&2; exec sleep 60"), CheckTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, db)
	if o := db.Opening(); o.Lost == nil || !strings.Contains(o.Lost.Error(), "did not end in time") {
		t.Errorf("opening %+v", o)
	}
}

func TestSidecarThatIsGoneOrGarbageIsWrittenAgain(t *testing.T) {
	for _, content := range []string{"", "{", `{"database":"x","generation":1,"crc32c":5}`} {
		dir, _ := filled(t, 3)
		side := filepath.Join(dir, fileSidecar)
		writeBytes(t, side, []byte(content))
		db := openDir(t, dir)
		if all, err := db.Load(t.Context()); err != nil || len(all) != 3 || db.Opening().Fresh {
			t.Errorf("sidecar %q: %d tasks, %v, %+v", content, len(all), err, db.Opening())
		}
		if s, err := readSidecar(side); err != nil || s == nil || s.InstanceARN != "arn:instance" {
			t.Errorf("sidecar %q became %+v, %v", content, s, err)
		}
	}
}

func TestCrashBetweenSidecarAndGenerationIsNoLoss(t *testing.T) {
	dir, _ := filled(t, 1)
	side := filepath.Join(dir, fileSidecar)
	s, err := readSidecar(side)
	if err != nil {
		t.Fatal(err)
	}
	s.Generation++
	if err := writeSidecar(side, *s); err != nil {
		t.Fatal(err)
	}
	if o := openDir(t, dir).Opening(); o.Fresh {
		t.Errorf("opening %+v", o)
	}
}

func TestMigrationRunsOnceWithACopyFromBefore(t *testing.T) {
	dir, path := filled(t, 3)
	before := loadFile(t, path)
	steps := append(slices.Clone(migrations), migration{To: 2, Do: func(w *writer) error {
		return w.putMeta([]byte("colour"), "blue")
	}})
	for i := range 2 {
		db, err := open(t.Context(), Config{Dir: dir}, steps)
		if err != nil {
			t.Fatal(err)
		}
		if want := 1 - i; db.Opening().MigratedFrom != want {
			t.Errorf("opening %d: migrated from %d, want %d", i, db.Opening().MigratedFrom, want)
		}
		all, err := db.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, all); diff != "" {
			t.Error(diff)
		}
		mustClose(t, db)
	}
	if diff := cmp.Diff(before, loadFile(t, path+".v1")); diff != "" {
		t.Errorf("the copy: %s", diff)
	}
	if err := childCheck(t.Context(), path+".v1"); err != nil {
		t.Error(err)
	}
}

// TestOneVersionBack has this program go on with what the next has made, and the next
// with what this one left.
func TestOneVersionBack(t *testing.T) {
	dir, path := filled(t, 3)
	before := loadFile(t, path)
	ran := 0
	next := append(slices.Clone(migrations), migration{To: 2, Readable: 1, Do: func(w *writer) error {
		ran++
		return w.putMeta([]byte("colour"), "blue")
	}})
	for i, c := range []struct {
		steps []migration
		from  int
	}{{next, 1}, {migrations, 2}, {migrations, 0}, {next, 1}, {next, 0}} {
		db, err := open(t.Context(), Config{Dir: dir}, c.steps)
		if err != nil {
			t.Fatal(err)
		}
		if got := db.Opening(); got.MigratedFrom != c.from || got.Lost != nil || got.Fresh {
			t.Errorf("opening %d: %+v, want migrated from %d", i, got, c.from)
		}
		all, err := db.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, all); diff != "" {
			t.Errorf("opening %d: %s", i, diff)
		}
		mustClose(t, db)
		if err := childCheck(t.Context(), path); err != nil {
			t.Errorf("opening %d: %v", i, err)
		}
	}
	if ran != 2 {
		t.Errorf("the migration ran %d times", ran)
	}
	for _, backup := range []string{".v1", ".v2"} {
		if err := childCheck(t.Context(), path+backup); err != nil {
			t.Errorf("%s: %v", backup, err)
		}
	}
	breaking := append(slices.Clone(next), migration{To: 3, Do: func(*writer) error { return nil }})
	db, err := open(t.Context(), Config{Dir: dir}, breaking)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	for _, steps := range [][]migration{next, migrations} {
		if _, err := open(t.Context(), Config{Dir: dir}, steps); !errors.Is(err, ErrNewer) {
			t.Errorf("open what older programs cannot use: %v", err)
		}
	}
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	dir, path := filled(t, 3)
	steps := append(slices.Clone(migrations),
		migration{To: 2, Do: func(w *writer) error { return w.putMeta([]byte("colour"), "blue") }},
		migration{To: 3, Do: func(*writer) error { return errors.New("no paint") }})
	if _, err := open(t.Context(), Config{Dir: dir}, steps); err == nil || !strings.Contains(err.Error(), "schema 3: no paint") {
		t.Errorf("open: %v", err)
	}
	if err := childCheck(t.Context(), path); err != nil {
		t.Error(err)
	}
	if o := openDir(t, dir).Opening(); o.Fresh || o.MigratedFrom != 0 {
		t.Errorf("opening %+v", o)
	}
}

func TestMigrationsAreInOrder(t *testing.T) {
	for i, m := range migrations {
		if m.To != i+1 {
			t.Errorf("migration %d leads to schema %d", i, m.To)
		}
	}
}

// Every file ever committed to testdata stays there and must open. A new schema adds
// one, made by the version before it: "go test -run Corpus -keep-corpus NAME".
func TestCorpusOfOldFilesOpens(t *testing.T) {
	if *keepCorpus != "" {
		_, path := filled(t, 4)
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		_, err := w.Write(readFile(t, path))
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		writeBytes(t, filepath.Join("testdata", *keepCorpus+".db.gz"), buf.Bytes())
	}
	old, err := filepath.Glob("testdata/*.db.gz")
	if err != nil || len(old) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	for _, name := range old {
		t.Run(filepath.Base(name), func(t *testing.T) {
			r, err := gzip.NewReader(bytes.NewReader(readFile(t, name)))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			writeBytes(t, filepath.Join(dir, fileDatabase), b)
			db := openDir(t, dir)
			all, err := db.Load(t.Context())
			if err != nil || len(all) != 3 || db.Opening().Fresh || db.Pending() != 4 {
				t.Fatalf("%d tasks, %v, %+v, %d rows", len(all), err, db.Opening(), db.Pending())
			}
			for _, s := range all {
				if diff := cmp.Diff(taskOf(s.Task.ID()), s.Task); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

var keepCorpus = flag.String("keep-corpus", "", "write a database of today's schema to testdata under this name")
