package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/cluster/awsjson"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

func open(t testing.TB, dir string, endpoints ...string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir, Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func put(t testing.TB, s *Store, key, text string) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx *Tx) error {
		Put(tx, Meta, key, &Value{Text: text})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func text(s *Store, key string) (out string) {
	s.View(func(r Reader) {
		if v, ok := Get(r, Meta, key); ok {
			out = v.Text
		}
	})
	return out
}

// increment adds one to a counter.
func increment(ctx context.Context, s *Store, key string) error {
	return s.Update(ctx, func(tx *Tx) error {
		n := 0
		if v, ok := Get(tx, Meta, key); ok {
			var err error
			if n, err = strconv.Atoi(v.Text); err != nil {
				return err
			}
		}
		Put(tx, Meta, key, &Value{Text: strconv.Itoa(n + 1)})
		return nil
	})
}

func TestUpdateIsReadBack(t *testing.T) {
	s := open(t, t.TempDir())
	for i := range 50 {
		key := fmt.Sprint("k", i)
		put(t, s, key, "v")
		if got := text(s, key); got != "v" {
			t.Fatalf("after Update, %s reads %q", key, got)
		}
	}
	boom := errors.New("boom")
	err := s.Update(t.Context(), func(tx *Tx) error {
		Put(tx, Meta, "k0", &Value{Text: "never"})
		return boom
	})
	if err != boom || text(s, "k0") != "v" {
		t.Fatalf("a failing update returned %v and left %q", err, text(s, "k0"))
	}
	if err := s.Update(t.Context(), func(tx *Tx) error {
		Delete(tx, Meta, "k0")
		Delete(tx, Meta, "never was")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := text(s, "k0"); got != "" {
		t.Fatalf("deleted record reads %q", got)
	}
}

func TestHundredGoroutinesIncrement(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for range 3 {
				if err := increment(t.Context(), s, "n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := text(s, "n"); got != "300" {
		t.Fatalf("300 increments gave %s", got)
	}
}

// TestConflicts runs a transaction against a change that is committed
// between its run and its commit.
func TestConflicts(t *testing.T) {
	tests := map[string]struct {
		read  func(tx *Tx)
		write func(tx *Tx)
		runs  int
	}{
		"read key changed": {
			func(tx *Tx) { Get(tx, Meta, "a") },
			func(tx *Tx) { Put(tx, Meta, "a", &Value{"2"}) }, 2,
		},
		"absent key appeared": {
			func(tx *Tx) { Get(tx, Meta, "new") },
			func(tx *Tx) { Put(tx, Meta, "new", &Value{"2"}) }, 2,
		},
		"read key deleted": {
			func(tx *Tx) { Get(tx, Meta, "a") },
			func(tx *Tx) { Delete(tx, Meta, "a") }, 2,
		},
		"other key changed": {
			func(tx *Tx) { Get(tx, Meta, "a") },
			func(tx *Tx) { Put(tx, Meta, "b", &Value{"2"}) }, 1,
		},
		"scanned range got a record": {
			func(tx *Tx) { List(tx, Meta, "p/") },
			func(tx *Tx) { Put(tx, Meta, "p/1", &Value{"2"}) }, 2,
		},
		"peeked key changed": {
			func(tx *Tx) { Get(Peek(tx), Meta, "a") },
			func(tx *Tx) { Put(tx, Meta, "a", &Value{"2"}) }, 1,
		},
		"written key changed": {
			func(tx *Tx) { Put(tx, Meta, "a", &Value{"mine"}) },
			func(tx *Tx) { Put(tx, Meta, "a", &Value{"2"}) }, 2,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			put(t, s, "a", "1")
			// Update itself cannot be interrupted between run and commit, so
			// take its two halves apart.
			runs := 0
			for {
				runs++
				c, err := s.run(func(tx *Tx) error {
					tc.read(tx)
					Put(tx, Meta, "result", &Value{"x"})
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if runs == 1 {
					if err := s.Update(t.Context(), func(tx *Tx) error { tc.write(tx); return nil }); err != nil {
						t.Fatal(err)
					}
				}
				done, _, err := s.commit(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				if done {
					break
				}
			}
			if runs != tc.runs {
				t.Fatalf("committed after %d runs, want %d", runs, tc.runs)
			}
		})
	}
}

func TestTransactionSeesItsOwnWrites(t *testing.T) {
	s := open(t, t.TempDir())
	for _, k := range []string{"p/a", "p/c", "p/e", "q/x"} {
		put(t, s, k, k)
	}
	err := s.Update(t.Context(), func(tx *Tx) error {
		Put(tx, Meta, "p/b", &Value{"new b"})
		Put(tx, Meta, "p/c", &Value{"new c"})
		Put(tx, Meta, "p/z", &Value{"new z"})
		Delete(tx, Meta, "p/e")
		var got []string
		Scan(tx, Meta, "p/", func(k string, v *Value) bool {
			got = append(got, k+"="+v.Text)
			return true
		})
		want := []string{"p/a=p/a", "p/b=new b", "p/c=new c", "p/z=new z"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error("scan", d)
		}
		got = nil
		ScanAfter(tx, Meta, "p/", "p/b", func(k string, v *Value) bool {
			got = append(got, k)
			return len(got) < 1
		})
		if d := cmp.Diff([]string{"p/c"}, got); d != "" {
			t.Error("scan after", d)
		}
		if _, ok := Get(tx, Meta, "p/e"); ok {
			t.Error("deleted record is still read")
		}
		Put(tx, Tasks, "c/1", &Task{ID: "1", InstanceID: "i"})
		n := 0
		Lookup(tx, TasksByInstance, "i", func(string, *Task) bool { n++; return true })
		if n != 1 {
			t.Errorf("lookup yields %d of the own writes, want 1", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestIndexesFollowTheRecords(t *testing.T) {
	s := open(t, t.TempDir())
	move := func(instance string) {
		t.Helper()
		if err := s.Update(t.Context(), func(tx *Tx) error {
			Put(tx, Tasks, Key("c", "1"), &Task{ID: "1", InstanceID: instance})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	on := func(instance string) (ids []string) {
		s.View(func(r Reader) {
			Lookup(r, TasksByInstance, instance, func(_ string, v *Task) bool {
				ids = append(ids, v.ID)
				return true
			})
		})
		return ids
	}
	move("a")
	move("b")
	if len(on("a")) != 0 || len(on("b")) != 1 {
		t.Fatalf("after the move a has %v and b has %v", on("a"), on("b"))
	}
	move("")
	if len(on("b")) != 0 {
		t.Fatalf("after leaving, b has %v", on("b"))
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UTC().Truncate(time.Millisecond)
	want := &Task{
		Task: types.Task{
			TaskArn: aws.String("arn"), CreatedAt: &now, LastStatus: aws.String("RUNNING"), Version: 3,
			Containers: []types.Container{{Name: aws.String("web"), ExitCode: aws.Int32(0)}},
		},
		ClusterName: "default", ID: "1", InstanceID: "i",
	}
	s := open(t, dir)
	if err := s.Update(t.Context(), func(tx *Tx) error {
		Put(tx, Tasks, Key("default", "1"), want)
		for i := range 100 {
			Put(tx, ClientTokens, Key("i", fmt.Sprintf("%020d", i)), &ClientToken{Digest: fmt.Sprint(i)})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := increment(t.Context(), s, "n"); !errors.Is(err, ErrClosed) {
		t.Fatalf("update of a closed store: %v", err)
	}

	start := time.Now()
	s = open(t, dir)
	t.Logf("reopened in %v", time.Since(start))
	s.View(func(r Reader) {
		got, _ := Get(r, Tasks, Key("default", "1"))
		if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(types.Task{}, types.Container{})); d != "" {
			t.Error(d)
		}
		seq := 0
		Scan(r, ClientTokens, Prefix("i"), func(_ string, c *ClientToken) bool {
			if c.Digest != fmt.Sprint(seq) {
				t.Errorf("record %d is %s", seq, c.Digest)
			}
			seq++
			return true
		})
		if seq != 100 {
			t.Errorf("%d records", seq)
		}
		n := 0
		Lookup(r, TasksByInstance, "i", func(string, *Task) bool { n++; return true })
		if n != 1 {
			t.Errorf("index has %d tasks after the restart", n)
		}
	})
	if err := increment(t.Context(), s, "n"); err != nil {
		t.Fatal(err)
	}
}

func TestWatchOrder(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "n", "0")
	const n = 200
	var got []string
	started := make(chan string, 1)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- s.WatchFrom(ctx, func(r Reader) {
			v, _ := Get(r, Meta, "n")
			started <- v.Text
		}, func(c Change) {
			if old := c.Old.(*Value).Text; len(got) > 0 && old != got[len(got)-1] {
				t.Errorf("old value %s follows %s", old, got[len(got)-1])
			}
			got = append(got, c.New.(*Value).Text)
			if len(got) == n {
				cancel()
			}
		})
	}()
	if first := <-started; first != "0" {
		t.Fatalf("state before the first change is %s", first)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range n / 4 {
				if err := increment(t.Context(), s, "n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("watch ended with %v", err)
	}
	if !slices.IsSortedFunc(got, func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	}) || got[n-1] != strconv.Itoa(n) {
		t.Fatalf("changes came as %v", got)
	}
}

func TestSlowWatchIsEnded(t *testing.T) {
	w := newWatch()
	for i := range watchQueue + 10 {
		w.offer(Change{Revision: int64(i)})
	}
	if q, err := w.take(); len(q) != 0 || !errors.Is(err, ErrLagged) {
		t.Fatalf("a full watch holds %d changes and says %v", len(q), err)
	}
}

func TestCloseEndsWatches(t *testing.T) {
	s := open(t, t.TempDir())
	started := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- s.WatchFrom(t.Context(), func(Reader) { close(started) }, func(Change) {})
	}()
	<-started
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Fatalf("watch ended with %v", err)
	}
	if err := s.Watch(t.Context(), func(Change) {}); !errors.Is(err, ErrClosed) {
		t.Fatalf("watch of a closed store: %v", err)
	}
}

// externalEtcd starts an etcd with a listener and returns its endpoint.
func externalEtcd(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client := url.URL{Scheme: "http", Host: l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := embed.NewConfig()
	c.Dir = filepath.Join(t.TempDir(), "etcd")
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.ListenPeerUrls, c.ListenClientUrls = nil, []url.URL{client}
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = []url.URL{peer}, []url.URL{client}
	c.InitialCluster = c.Name + "=" + peer.String()
	c.TickMs, c.ElectionMs = 10, 100
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quietLogger(nil))
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return client.Host
}

func TestTwoStoresOnOneEtcd(t *testing.T) {
	endpoint := externalEtcd(t)
	a, b := open(t, "", endpoint), open(t, "", endpoint)
	seen := make(chan string, 1)
	started := make(chan struct{})
	go func() {
		_ = b.WatchFrom(t.Context(), func(Reader) { close(started) }, func(c Change) {
			if c.Key == "hello" {
				seen <- c.New.(*Value).Text
			}
		})
	}()
	<-started
	put(t, a, "hello", "from a")
	if got := <-seen; got != "from a" || text(b, "hello") != "from a" {
		t.Fatalf("b saw %q and reads %q", got, text(b, "hello"))
	}
	var wg sync.WaitGroup
	for _, s := range []*Store{a, b} {
		for range 5 {
			wg.Go(func() {
				for range 10 {
					if err := increment(t.Context(), s, "n"); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	// Whoever wrote last has seen all; an update sees it through conflicts.
	for _, s := range []*Store{a, b} {
		if err := increment(t.Context(), s, "n"); err != nil {
			t.Fatal(err)
		}
	}
	if got := text(b, "n"); got != "102" {
		t.Fatalf("102 increments from two stores gave %s", got)
	}
}

// TestSync: what one store has committed, another shows after Sync, also when others use
// the same etcd, whose changes are none of ours.
func TestSync(t *testing.T) {
	endpoint := externalEtcd(t)
	a, b := open(t, "", endpoint), open(t, "", endpoint)
	for i := range 200 {
		key := fmt.Sprint("k", i)
		put(t, a, key, "v")
		if i%20 == 0 {
			if _, err := a.backend.client.Put(t.Context(), "/another/program", key); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := text(b, key); got != "v" {
			t.Fatalf("after Sync, %s reads %q", key, got)
		}
	}
	put(t, b, "k0", "still")
	if got := text(b, "k0"); got != "still" {
		t.Fatalf("an update after it reads %q", got)
	}
	alone := open(t, t.TempDir())
	if err := alone.Sync(t.Context()); err != nil {
		t.Errorf("a store of one process: %v", err)
	}
}

// TestCompactedHistory makes a store miss changes whose history is gone.
func TestCompactedHistory(t *testing.T) {
	endpoint := externalEtcd(t)
	a, b := open(t, "", endpoint), open(t, "", endpoint)
	put(t, a, "kept", "1")
	put(t, a, "gone", "1")
	put(t, b, "seen", "1") // b is in step when this returns
	// Stop b's follower, as a long break of its connection would.
	b.stop()
	<-b.stopped
	put(t, a, "kept", "2")
	if err := a.Update(t.Context(), func(tx *Tx) error { Delete(tx, Meta, "gone"); return nil }); err != nil {
		t.Fatal(err)
	}
	put(t, a, "new", "1")
	r, err := a.backend.client.Get(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.backend.client.Compact(t.Context(), r.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	changes := make(chan string, 10)
	started := make(chan struct{})
	go func() {
		_ = b.WatchFrom(t.Context(), func(Reader) { close(started) }, func(c Change) { changes <- c.Key })
	}()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	b.stopped, b.stop = make(chan struct{}), cancel
	go b.follow(ctx)
	got := []string{<-changes, <-changes, <-changes}
	slices.Sort(got)
	if d := cmp.Diff([]string{"gone", "kept", "new"}, got); d != "" {
		t.Error(d)
	}
	if text(b, "kept") != "2" || text(b, "gone") != "" || text(b, "new") != "1" {
		t.Errorf("after the break b reads %q %q %q", text(b, "kept"), text(b, "gone"), text(b, "new"))
	}
}

func TestNewerRecordIsRefused(t *testing.T) {
	if err := unmarshal([]byte(`{"v":99,"d":{}}`), &Value{}); err == nil {
		t.Fatal("a record of version 99 was read")
	}
	for _, bad := range []string{"", "{", `{"v":1}`, `{"v":1,"d":3}`, `[]`} {
		if err := unmarshal([]byte(bad), &Value{}); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestRecordsAreWhole finds fields of records that would be lost in etcd.
func TestRecordsAreWhole(t *testing.T) {
	// Unions of API features that the cluster does not offer.
	known := []string{"Container.GpuSharingStrategy", "ResourceRequirement.SharingStrategy"}
	for _, def := range []any{
		Cluster{}, Family{}, TaskDefinition{}, Instance{}, Allocation{}, Task{},
		AccessKey{}, ClientToken{}, Setting{}, Value{},
	} {
		for _, f := range awsjson.Skipped(reflect.TypeOf(def)) {
			if !slices.Contains(known, f) {
				t.Errorf("%T: field %s cannot be stored", def, f)
			}
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, c := range []int{1, 16} {
		b.Run(fmt.Sprint("c=", c), func(b *testing.B) {
			s := open(b, b.TempDir())
			b.ResetTimer()
			var wg sync.WaitGroup
			work := make(chan int)
			for range c {
				wg.Go(func() {
					for i := range work {
						put(b, s, fmt.Sprint("k", i%1000), "some text")
					}
				})
			}
			for i := range b.N {
				work <- i
			}
			close(work)
			wg.Wait()
		})
	}
}

// BenchmarkOpen is a restart with 10,000 tasks.
func BenchmarkOpen(b *testing.B) {
	const tasks = 10000
	dir := b.TempDir()
	s := open(b, dir)
	for from := 0; from < tasks; from += 500 {
		if err := s.Update(b.Context(), func(tx *Tx) error {
			for i := from; i < from+500; i++ {
				id := fmt.Sprintf("%032x", i)
				Put(tx, Tasks, Key("default", id), &Task{ID: id, ClusterName: "default", InstanceID: fmt.Sprint(i % 1000), Task: types.Task{
					TaskArn: aws.String(id), LastStatus: aws.String("RUNNING"), DesiredStatus: aws.String("RUNNING"),
					Containers: []types.Container{{Name: aws.String("web"), Image: aws.String("my-image"), LastStatus: aws.String("RUNNING")}},
				}})
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s := open(b, dir)
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
