package engine

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
)

// claimant is a task whose one container needs so much.
func claimant(id string, cpu, memory int64, edit ...func(t *task.Task)) *task.Task {
	t := newTask(id, "web")
	t.NetworkMode = task.NetworkBridge
	t.Containers[0].CPU, t.Containers[0].Memory = cpu, memory
	for _, e := range edit {
		e(t)
	}
	return t
}

func ports(mappings ...task.Port) func(*task.Task) {
	return func(t *task.Task) { t.Containers[0].Ports = mappings }
}

// desk asks an Admission for shares, each in a goroutine of its own.
type desk struct {
	a    *Admission
	mu   sync.Mutex
	got  map[string]bool
	errs map[string]error
	stop map[string]context.CancelFunc
	work sync.WaitGroup
}

func newDesk(a *Admission) *desk {
	return &desk{a: a, got: map[string]bool{}, errs: map[string]error{}, stop: map[string]context.CancelFunc{}}
}

func (d *desk) ask(tasks ...*task.Task) {
	for _, tk := range tasks {
		ctx, cancel := context.WithCancel(context.Background())
		d.stop[tk.ID()] = cancel
		d.work.Go(func() {
			_, err := d.a.Ensure(ctx, tk, "task", Deps{})
			d.mu.Lock()
			defer d.mu.Unlock()
			d.got[tk.ID()], d.errs[tk.ID()] = err == nil, err
		})
		synctest.Wait()
	}
}

func (d *desk) give(t *testing.T, tk *task.Task) {
	t.Helper()
	if err := d.a.Remove(t.Context(), tk, "task", nil); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.got[tk.ID()] = false
	d.mu.Unlock()
	synctest.Wait()
}

func (d *desk) want(t *testing.T, holders string) {
	t.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.stop {
		if want := strings.Contains(" "+holders+" ", " "+id+" "); d.got[id] != want {
			t.Errorf("%s has its share: %t, want %t (waiting %+v)", id, d.got[id], want, d.a.Waiting())
		}
	}
}

func (d *desk) close() {
	for _, stop := range d.stop {
		stop()
	}
	d.work.Wait()
}

func TestALargeTaskIsPassedForSomeTimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(NewAdmission(Share{CPU: 1000, Memory: 1000}, nil))
		defer d.close()
		first, second := claimant("first", 600, 100), claimant("second", 300, 100)
		large := claimant("large", 900, 100)
		d.ask(first, second, large)
		d.want(t, "first second")
		small := claimant("small", 100, 100)
		d.ask(small) // it passes
		d.want(t, "first second small")
		time.Sleep(DefaultPatience)
		d.give(t, small)
		d.ask(claimant("late", 100, 100), claimant("free", 0, 500))
		d.want(t, "first second free") // late needs what large waits for, and free does not
		d.give(t, first)
		d.want(t, "second free") // 700 are free, and kept
		if got := d.a.Waiting(); len(got) != 2 || !got[0].Next || got[0].Why != "waits for 900 CPU units, of which 700 are free" ||
			got[1].Why != "waits for 100 CPU units, of which 0 are free" {
			t.Errorf("waiting: %+v", got)
		}
		d.give(t, second)
		d.want(t, "free large late")
	})
}

func TestATaskThatGivesUpMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(NewAdmission(Share{CPU: 1000, Memory: 1000}, nil))
		defer d.close()
		d.ask(claimant("holder", 500, 1), claimant("large", 1000, 1))
		time.Sleep(DefaultPatience)
		d.ask(claimant("small", 100, 1))
		d.want(t, "holder")
		d.stop["large"]()
		d.want(t, "holder small")
	})
}

func TestWaitingForAPortKeepsNoProcessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(NewAdmission(Share{CPU: 1000, Memory: 1000}, nil))
		defer d.close()
		web := task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}
		d.ask(claimant("holder", 100, 1, ports(web)), claimant("second", 900, 1, ports(web)))
		time.Sleep(2 * DefaultPatience)
		d.ask(claimant("other", 900, 1), claimant("third", 0, 1, ports(web)))
		d.want(t, "holder other")
		if got := d.a.Waiting()[0].Why; got != "waits for 900 CPU units, of which 0 are free; port 8080/tcp, which task holder has" {
			t.Error(got)
		}
		d.give(t, claimant("holder", 0, 0))
		d.want(t, "other") // the port is kept for the second, which needs processors now
		d.give(t, claimant("other", 0, 0))
		d.want(t, "second")
	})
}

func TestNeed(t *testing.T) {
	tcp := func(n ...uint16) []Port {
		var out []Port
		for _, p := range n {
			out = append(out, Port{p, "tcp"})
		}
		return out
	}
	for _, tt := range []struct {
		name string
		task *task.Task
		want Share
	}{
		{"containers", claimant("a", 256, 128), Share{CPU: 256, Memory: 128}},
		{"limits of the task", claimant("a", 256, 128, func(t *task.Task) { t.CPU, t.Memory = 0.5, 64 }), Share{CPU: 512, Memory: 64}},
		{"reservation", claimant("a", 1, 128, func(t *task.Task) { t.Containers[0].HostConfig.MemoryReservation = 32 << 20 }), Share{CPU: 1, Memory: 32}},
		{"static and dynamic port", claimant("a", 0, 0, ports(task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}, task.Port{ContainerPort: 81, Protocol: "tcp"})), Share{Ports: tcp(8080)}},
		{"range in bridge mode", claimant("a", 0, 0, ports(task.Port{ContainerRange: "80-82", Protocol: "tcp"})), Share{}},
		{"range in host mode", claimant("a", 0, 0, ports(task.Port{ContainerRange: "80-82", Protocol: "tcp"}, task.Port{ContainerPort: 81, Protocol: "tcp"}), func(t *task.Task) { t.NetworkMode = task.NetworkHost }), Share{Ports: tcp(80, 81, 82)}},
		{"no network", claimant("a", 0, 0, ports(task.Port{ContainerPort: 80, HostPort: 80, Protocol: "tcp"}), func(t *task.Task) { t.NetworkMode = task.NetworkNone }), Share{}},
		{"GPUs", claimant("a", 0, 0, func(t *task.Task) { t.Containers[0].GPUs = []string{"b", "a"} }), Share{GPUs: []string{"a", "b"}}},
	} {
		if diff := cmp.Diff(tt.want, Need(tt.task)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestWhatAHostNeverHas(t *testing.T) {
	a := NewAdmission(Share{CPU: 1024, Memory: 1024, GPUs: []string{"gpu0"}}, []Port{{22, "tcp"}})
	for want, tk := range map[string]*task.Task{
		"the task needs 2048 CPU units and 1 MiB of memory; this host has 1024 and 1024 in all":                   claimant("a", 2048, 1),
		"the task needs port 22/tcp, which is reserved on this host (ECS_RESERVED_PORTS, ECS_RESERVED_PORTS_UDP)": claimant("b", 1, 1, ports(task.Port{ContainerPort: 22, HostPort: 22, Protocol: "tcp"})),
		"the task needs GPU gpu1, which this host does not have":                                                  claimant("c", 1, 1, func(t *task.Task) { t.Containers[0].GPUs = []string{"gpu1"} }),
	} {
		_, err := a.Ensure(t.Context(), tk, "task", Deps{})
		if r := task.ReasonOf(err, ""); err == nil || r.Code != task.HostResourcesExhausted || r.Detail != want {
			t.Errorf("%s: %v", tk.ID(), err)
		}
	}
	ok := claimant("d", 1, 1, ports(task.Port{ContainerPort: 22, HostPort: 22, Protocol: "udp"}), func(t *task.Task) { t.Containers[0].GPUs = []string{"gpu0"} })
	if _, err := a.Ensure(t.Context(), ok, "task", Deps{}); err != nil {
		t.Error(err)
	}
}

// TestNothingIsSharedTwice has random tasks come, wait, give up and go, and checks that the
// host is never promised twice and that everybody is served in the end.
func TestNothingIsSharedTwice(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) { sharing(t, rand.New(rand.NewPCG(seed, 3))) })
	}
}

func sharing(t *testing.T, r *rand.Rand) {
	d := newDesk(NewAdmission(Share{CPU: 1000, Memory: 1000, GPUs: []string{"g0", "g1"}}, nil))
	defer d.close()
	live := map[string]*task.Task{}
	for i := range 60 {
		tk := claimant("t"+string(rune('A'+i)), int64(r.IntN(1001)), int64(r.IntN(1001)))
		if r.IntN(3) == 0 {
			ports(task.Port{ContainerPort: 80, HostPort: uint16(80 + r.IntN(3)), Protocol: "tcp"})(tk)
		}
		if r.IntN(4) == 0 {
			tk.Containers[0].GPUs = []string{"g" + string(rune('0'+r.IntN(2)))}
		}
		live[tk.ID()] = tk
		d.ask(tk)
		d.consistent(t)
		time.Sleep(time.Duration(r.IntN(20)) * time.Second)
		for id, tk := range live {
			if d.got[id] && r.IntN(3) == 0 {
				d.give(t, tk)
				delete(live, id)
			}
		}
		d.consistent(t)
	}
	for range 60 {
		for id, tk := range live {
			if d.got[id] {
				d.give(t, tk)
				delete(live, id)
			}
		}
	}
	if len(live) > 0 {
		t.Errorf("%d tasks were never served: %+v", len(live), d.a.Waiting())
	}
	if d.a.free.CPU != 1000 || d.a.free.Memory != 1000 || len(d.a.owners) > 0 || len(d.a.held) > 0 {
		t.Errorf("left: %+v %v %v", d.a.free, d.a.owners, d.a.held)
	}
}

func (d *desk) consistent(t *testing.T) {
	t.Helper()
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	var cpu, memory int64
	seen := map[claim]string{}
	for arn, s := range d.a.held {
		cpu, memory = cpu+s.CPU, memory+s.Memory
		for _, c := range s.claims() {
			if other, twice := seen[c]; twice {
				t.Fatalf("%s belongs to %s and %s", c, arn, other)
			}
			seen[c] = arn
		}
	}
	if cpu > 1000 || memory > 1000 || cpu+d.a.free.CPU != 1000 || memory+d.a.free.Memory != 1000 {
		t.Fatalf("%d CPU units and %d MiB are held, %+v free", cpu, memory, d.a.free)
	}
}
