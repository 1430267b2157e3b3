package series

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// noon is a time at the begin of a segment of every resolution but the longest.
var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func open(t testing.TB, c Config) *Store {
	t.Helper()
	if c.Path == "" {
		c.Path = filepath.Join(t.TempDir(), "series.db")
	}
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() }) //nolint:errcheck // some tests have closed it
	return s
}

// put enters one metric of rows of services.
func put(t testing.TB, s *Store, at time.Time, values map[string]Set) {
	t.Helper()
	var rows Rows
	for name, set := range values {
		r := Row{Name: name}
		r.Set(CPUUtilization, set)
		rows[Service] = append(rows[Service], r)
	}
	if err := s.Put(at, at.Add(time.Minute), &rows); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s *Store, name string, from, to, now time.Time) []Point {
	t.Helper()
	got, err := s.Read(Service, []Selector{{name, CPUUtilization}}, from, to, now)
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

func TestRowsAreReadAsTheyWerePut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "series.db")
	s := open(t, Config{Path: path})
	third := Set{Min: 1.0 / 3, Max: 7, Sum: 1e9 + 1.0/3, Count: 3}
	put(t, s, noon, map[string]Set{"a/web": One(12.5), "a/db": third})
	put(t, s, noon.Add(time.Minute), map[string]Set{"a/web": One(0.1)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Path: path})
	want := []Point{{noon, One(12.5)}, {noon.Add(time.Minute), One(0.1)}}
	if diff := cmp.Diff(want, get(t, s, "a/web", noon, noon.Add(time.Hour), noon.Add(time.Hour))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Point{{noon, third}}, get(t, s, "a/db", noon, noon.Add(time.Hour), noon)); diff != "" {
		t.Error(diff)
	}
	if got := get(t, s, "a/web", noon.Add(time.Minute), noon.Add(2*time.Minute), noon); len(got) != 1 {
		t.Errorf("one minute has %v", got)
	}
	names, err := s.Names(Service, noon, 10)
	const cpu = MetricSet(1 << CPUUtilization)
	if diff := cmp.Diff([]Named{{"a/db", cpu}, {"a/web", cpu}}, names); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// A row has the metrics that any minute gave it, and one from before they were kept may
// have any.
func TestMetricsOfRows(t *testing.T) {
	s := open(t, Config{})
	put(t, s, noon, map[string]Set{"a/web": One(1), "a/db": One(2)})
	var rows Rows
	r := Row{Name: "a/web"}
	r.Set(RunningTasks, One(1))
	rows[Service] = []Row{r}
	if err := s.Put(noon.Add(time.Minute), noon.Add(2*time.Minute), &rows); err != nil {
		t.Fatal(err)
	}
	check := func(want ...Named) {
		t.Helper()
		got, err := s.Names(Service, noon, 10)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
	check(Named{"a/db", 1 << CPUUtilization}, Named{"a/web", 1<<CPUUtilization | 1<<RunningTasks})
	err := s.db.Update(func(tx *bbolt.Tx) error {
		g, err := s.segment(tx, Minute, Service, noon)
		if err != nil {
			return err
		}
		return g.b.Delete(metricsKey)
	})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, noon.Add(2*time.Minute), map[string]Set{"a/new": One(3)})
	check(Named{"a/db", allMetrics}, Named{"a/new", 1 << CPUUtilization}, Named{"a/web", allMetrics})
}

// What comes late has its place: other rows and metrics of the minute stay, and the longer
// intervals have it.
func TestLateRowsAreMerged(t *testing.T) {
	s := open(t, Config{})
	for i := range 60 {
		if i != 7 {
			put(t, s, noon.Add(time.Duration(i)*time.Minute), map[string]Set{"a/web": One(10), "a/db": One(1)})
		}
	}
	var rows Rows
	r := Row{Name: "a/web"}
	r.Set(CPUUtilization, One(30))
	r.Set(RunningTasks, One(2))
	rows[Service] = []Row{r}
	if err := s.Put(noon.Add(7*time.Minute), noon.Add(time.Hour), &rows); err != nil {
		t.Fatal(err)
	}
	points := get(t, s, "a/web", noon, noon.Add(time.Hour), noon.Add(time.Hour))
	if len(points) != 60 || points[7].Set != One(30) {
		t.Fatalf("%d points, the late one is %v", len(points), points[min(7, len(points)-1)])
	}
	// So much later that only the longest intervals are left to be read.
	later := noon.Add(20 * day)
	want := []Point{{noon, Set{Min: 10, Max: 30, Sum: 59*10 + 30, Count: 60}}}
	if diff := cmp.Diff(want, get(t, s, "a/web", noon, noon.Add(time.Hour), later)); diff != "" {
		t.Error(diff)
	}
	five := get(t, s, "a/web", noon, noon.Add(time.Hour), noon.Add(4*day))
	if len(five) != 12 || five[1].Set != (Set{Min: 10, Max: 30, Sum: 70, Count: 5}) {
		t.Errorf("in five minutes: %v", five)
	}
}

func TestOldSegmentsGo(t *testing.T) {
	s := open(t, Config{})
	put(t, s, noon, map[string]Set{"a/web": One(1)})
	put(t, s, noon.Add(time.Hour), map[string]Set{"a/web": One(2)})
	if err := s.Sweep(noon.Add(Retention(Service, Minute) + time.Hour + time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, "a/web", noon, noon.Add(2*time.Hour), noon); len(got) != 1 || got[0].Set != One(2) {
		t.Errorf("%v is left", got)
	}
}

func TestRoomIsBounded(t *testing.T) {
	const room = 2 << 20
	s := open(t, Config{MaxBytes: room})
	var rows Rows
	for i := range 2000 {
		r := Row{Name: fmt.Sprintf("a/task-%d/web", i*7919)}
		for m := range Metrics {
			r.Set(m, One(float64(i)*1.1+float64(m)))
		}
		rows[Container] = append(rows[Container], r)
	}
	at := noon
	for range 90 {
		for i := range rows[Container] {
			rows[Container][i].Set(CPUUtilized, One(float64(at.Unix()%977*int64(i+1))/3))
		}
		put(t, s, at, map[string]Set{"a/web": One(1)})
		if err := s.Put(at, at.Add(time.Minute), &rows); err != nil {
			t.Fatal(err)
		}
		if err := s.Sweep(at); err != nil {
			t.Fatal(err)
		}
		at = at.Add(10 * time.Minute)
	}
	used, err := s.Used()
	if err != nil {
		t.Fatal(err)
	}
	if used > room {
		t.Errorf("%d bytes are in use", used)
	}
	if got := get(t, s, "a/web", noon, at, at); len(got) != 90 {
		t.Errorf("%d points of a small series are left, and not all", len(got))
	}
	t.Logf("%d bytes in use", used)
}

func TestSamples(t *testing.T) {
	s := open(t, Config{})
	for i := range 3 {
		at := noon.Add(time.Duration(i) * time.Minute)
		if err := s.SaveSamples([]byte{byte(i)}, at.Add(-time.Minute), at); err != nil {
			t.Fatal(err)
		}
	}
	var got []byte
	if err := s.Samples(func(b []byte) error { got = append(got, b...); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]byte{1, 2}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzFrame(f *testing.F) {
	r := Row{}
	r.Set(CPUUtilization, One(1.0/3))
	r.Set(MemoryUtilized, Set{Min: 1, Max: 2, Sum: 3, Count: 2})
	f.Add(appendFrame(nil, []numbered{{3, r.Values}, {900, nil}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var list []numbered
		if eachRow(data, nil, func(id uint32, values []Value) {
			list = append(list, numbered{id, append([]Value(nil), values...)})
		}) != nil {
			return
		}
		var again []numbered
		if err := eachRow(appendFrame(nil, list), nil, func(id uint32, values []Value) {
			again = append(again, numbered{id, append([]Value(nil), values...)})
		}); err != nil {
			t.Fatal(err)
		}
		if len(list) != len(again) {
			t.Fatalf("%d rows, then %d", len(list), len(again))
		}
		_ = eachName(data, func(string) {})   // it must only not fail badly
		_ = eachSet(data, func(MetricSet) {}) // the same
	})
}

// BenchmarkPut is a minute of 50,000 containers.
func BenchmarkPut(b *testing.B) {
	s := open(b, Config{MaxBytes: 4 << 30})
	var rows Rows
	for i := range 50_000 {
		r := Row{Name: fmt.Sprintf("default/%032x/web", i*7919)}
		for _, m := range []Metric{CPUUtilization, MemoryUtilization, CPUReserved, MemoryReserved, CPUUtilized, MemoryUtilized, NetworkRxBytes, NetworkTxBytes, StorageReadBytes, StorageWriteBytes, RestartCount} {
			r.Set(m, One(float64(float32(i)*1.37)))
		}
		rows[Container] = append(rows[Container], r)
	}
	at := noon
	before, err := s.Used()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for i := range rows[Container] {
			rows[Container][i].Set(CPUUtilized, One(float64(float32(at.Unix()*int64(i))*0.37)))
		}
		if err := s.Put(at, at.Add(time.Minute), &rows); err != nil {
			b.Fatal(err)
		}
		at = at.Add(time.Minute)
	}
	after, err := s.Used()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(after-before)/float64(b.N)/50_000, "bytes/container-minute")
}
