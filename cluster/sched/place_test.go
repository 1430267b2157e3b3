package sched

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const zone = AttributeZone

// host makes an ACTIVE instance with 4096 CPU units and 8192 MiB.
func host(arn string, attributes ...string) Instance {
	i := Instance{
		ARN: arn, Status: StatusActive, AgentConnected: true, Attributes: map[string]string{},
		Total: Resources{CPU: 4096, Memory: 8192}, ReservedTCP: []uint16{22}, ReservedUDP: []uint16{5353},
	}
	for n := 0; n+1 < len(attributes); n += 2 {
		i.Attributes[attributes[n]] = attributes[n+1]
	}
	return i
}

func stateOf(instances ...Instance) *State {
	s := NewState()
	for _, i := range instances {
		s.SetInstance(i)
	}
	return s
}

func tasks(prefix string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s%d", prefix, i))
	}
	return out
}

func query(t *testing.T, text string) Constraint {
	t.Helper()
	q, err := ParseQuery(text)
	if err != nil {
		t.Fatal(err)
	}
	return Constraint{Query: q}
}

func place(t *testing.T, s *State, r Request) Result {
	t.Helper()
	out, err := Place(s, r)
	if err != nil {
		t.Fatalf("Place: %v", err)
	}
	return out
}

func where(r Result) []string {
	var out []string
	for _, p := range r.Placed {
		out = append(out, p.Instance)
	}
	return out
}

var small = Need{CPU: 256, Memory: 512}

func TestPlaceStrategies(t *testing.T) {
	zones := func() *State {
		return stateOf(host("a1", zone, "a"), host("a2", zone, "a"), host("b1", zone, "b"))
	}
	tests := []struct {
		name       string
		state      *State
		strategies []Strategy
		before     []Reservation
		count      int
		want       []string
	}{
		{"default spreads over zones, then instances", zones(), nil, nil, 5, []string{"a1", "b1", "a2", "b1", "a1"}},
		{"default counts the group only", zones(), nil,
			[]Reservation{{Task: "x", Instance: "b1", Group: "other", Need: small}}, 2, []string{"a1", "b1"}},
		{"default sees tasks of the group", zones(), nil,
			[]Reservation{{Task: "x", Instance: "a1", Group: "g", Need: small}}, 2, []string{"b1", "a2"}},
		{"spread over instances", zones(), []Strategy{{Kind: SpreadInstance}}, nil, 4, []string{"a1", "a2", "b1", "a1"}},
		{"spread over an attribute that one lacks", stateOf(host("h1", "rack", "r"), host("h2", "rack", "r"), host("h3")),
			[]Strategy{{Kind: SpreadAttribute, Attribute: "rack"}}, nil, 3, []string{"h1", "h3", "h2"}},
		{"binpack memory takes the fullest", zones(), []Strategy{{Kind: BinpackMemory}},
			[]Reservation{{Task: "x", Instance: "b1", Group: "g", Need: Need{Memory: 7200}}}, 2, []string{"b1", "a1"}},
		{"binpack cpu", zones(), []Strategy{{Kind: BinpackCPU}},
			[]Reservation{{Task: "x", Instance: "a2", Group: "g", Need: Need{CPU: 3584}}}, 3, []string{"a2", "a2", "a1"}},
		{"spread zone, binpack memory", zones(), []Strategy{{Kind: SpreadAttribute, Attribute: zone}, {Kind: BinpackMemory}},
			[]Reservation{{Task: "x", Instance: "a2", Group: "o", Need: Need{Memory: 100}}}, 4, []string{"a2", "b1", "a2", "b1"}},
		{"binpack cpu, then memory (scanned)", zones(), []Strategy{{Kind: BinpackCPU}, {Kind: BinpackMemory}},
			[]Reservation{{Task: "x", Instance: "a2", Group: "o", Need: Need{Memory: 100}}}, 1, []string{"a2"}},
		{"spread instance, then zone (scanned)", zones(), []Strategy{{Kind: SpreadInstance}, {Kind: SpreadAttribute, Attribute: zone}}, nil,
			3, []string{"a1", "b1", "a2"}},
		{"ties go to the instance with fewest tasks", zones(), []Strategy{{Kind: SpreadInstance}},
			[]Reservation{{Task: "x", Instance: "a1", Group: "o"}, {Task: "y", Instance: "a2", Group: "o"}}, 1, []string{"b1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range tt.before {
				if err := tt.state.Reserve(r); err != nil {
					t.Fatal(err)
				}
			}
			r := place(t, tt.state, Request{Tasks: tasks("t", tt.count), Group: "g", Need: small, Strategies: tt.strategies})
			if d := cmp.Diff(tt.want, where(r)); d != "" || len(r.Failed) > 0 {
				t.Errorf("placed (-want +got):\n%s failed: %v", d, r.Failed)
			}
		})
	}
}

func TestPlaceFailures(t *testing.T) {
	draining, away := host("d"), host("w")
	draining.Status, away.AgentConnected = StatusDraining, false
	gpus := host("g", "kind", "gpu")
	gpus.Total.GPUs = []string{"g0", "g1"}
	bare, tiny, big := host("b"), host("t", "ssd", ""), host("big")
	tiny.Total.CPU, big.Total.CPU = 100, 8192
	tests := []struct {
		name    string
		state   *State
		request Request
		want    Failure
	}{
		{"cpu", stateOf(host("a")), Request{Need: Need{CPU: 5000}}, Failure{Instance: "a", Reason: ReasonCPU}},
		{"memory", stateOf(host("a")), Request{Need: Need{Memory: 9000}}, Failure{Instance: "a", Reason: ReasonMemory}},
		{"cpu is named before memory", stateOf(host("a")), Request{Need: Need{CPU: 5000, Memory: 9000}}, Failure{Instance: "a", Reason: ReasonCPU}},
		{"reserved tcp port", stateOf(host("a")), Request{Need: Need{TCP: []uint16{22}}}, Failure{Instance: "a", Reason: ReasonPorts}},
		{"udp port", stateOf(host("a")), Request{Need: Need{UDP: []uint16{5353}}}, Failure{Instance: "a", Reason: ReasonPortsUDP}},
		{"gpu", stateOf(host("a"), gpus), Request{Need: Need{GPUs: 3}}, Failure{Instance: "g", Reason: ReasonGPU}},
		{"agent", stateOf(away), Request{}, Failure{Instance: "w", Reason: ReasonAgent}},
		{"draining is not considered", stateOf(draining, away), Request{}, Failure{Instance: "w", Reason: ReasonAgent}},
		{"attribute", stateOf(host("a")), Request{Attributes: []Attribute{{Name: "ssd"}}}, Failure{Instance: "a", Reason: ReasonAttribute}},
		{"attribute value", stateOf(host("a", "os", "x")), Request{Attributes: []Attribute{{"os", "y"}}}, Failure{Instance: "a", Reason: ReasonAttribute}},
		{"memberOf", stateOf(host("a")), Request{Constraints: []Constraint{query(t, "attribute:x == y")}}, Failure{Instance: "a", Reason: ReasonMemberOf}},
		{"memberOf that changes with tasks", stateOf(host("a")), Request{Constraints: []Constraint{query(t, "runningTasksCount > 0")}},
			Failure{Instance: "a", Reason: ReasonMemberOf}},
		{"the closest comes furthest", stateOf(host("a"), host("b", "ssd", "", "full", "")), Request{Need: Need{UDP: []uint16{5353}}, Attributes: []Attribute{{Name: "full"}}},
			Failure{Instance: "b", Reason: ReasonPortsUDP}},
		{"a resource is closer than an attribute", stateOf(bare, tiny), Request{Need: Need{CPU: 500}, Attributes: []Attribute{{Name: "ssd"}}},
			Failure{Instance: "t", Reason: ReasonCPU}},
		{"the smaller shortfall is closer", stateOf(host("a"), big), Request{Need: Need{CPU: 9000}}, Failure{Instance: "big", Reason: ReasonCPU}},
		{"the closest lacks least", stateOf(host("a"), host("b", "ssd", "")), Request{Need: Need{CPU: 5000}, Attributes: []Attribute{{Name: "ssd"}}},
			Failure{Instance: "b", Reason: ReasonCPU}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.request.Tasks, tt.request.Group, tt.want.Task = []string{"t"}, "g", "t"
			r := place(t, tt.state, tt.request)
			if d := cmp.Diff([]Failure{tt.want}, r.Failed); d != "" || len(r.Placed) > 0 {
				t.Errorf("failures (-want +got):\n%s placed: %v", d, r.Placed)
			}
		})
	}
}

func TestPlaceNoInstances(t *testing.T) {
	draining := host("d")
	draining.Status = StatusDraining
	for _, s := range []*State{NewState(), stateOf(draining)} {
		if _, err := Place(s, Request{Tasks: []string{"t"}}); !errors.Is(err, ErrNoInstances) {
			t.Errorf("got %v, want ErrNoInstances", err)
		}
	}
}

func TestPlacePartly(t *testing.T) {
	s := stateOf(host("a"), host("b"))
	r := place(t, s, Request{Tasks: tasks("t", 4), Group: "g", Need: Need{TCP: []uint16{80}}})
	if d := cmp.Diff([]string{"a", "b"}, where(r)); d != "" {
		t.Errorf("placed (-want +got):\n%s", d)
	}
	want := []Failure{{"t2", "a", ReasonPorts}, {"t3", "a", ReasonPorts}}
	if d := cmp.Diff(want, r.Failed); d != "" {
		t.Errorf("failed (-want +got):\n%s", d)
	}
	s.Release("t0")
	if r := place(t, s, Request{Tasks: []string{"u"}, Group: "g", Need: Need{TCP: []uint16{80}}}); len(r.Placed) != 1 || r.Placed[0].Instance != "a" {
		t.Errorf("after a release: %+v", r)
	}
}

func TestPlaceDistinctInstance(t *testing.T) {
	s := stateOf(host("a"), host("b"))
	distinct := []Constraint{{}}
	r := place(t, s, Request{Tasks: tasks("t", 3), Group: "g", Need: small, Constraints: distinct, Strategies: []Strategy{{Kind: BinpackCPU}}})
	if d := cmp.Diff([]string{"a", "b"}, where(r)); d != "" {
		t.Errorf("placed (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]Failure{{"t2", "a", ReasonDistinct}}, r.Failed); d != "" {
		t.Errorf("failed (-want +got):\n%s", d)
	}
	if r := place(t, s, Request{Tasks: tasks("o", 1), Group: "other", Need: small, Constraints: distinct}); len(r.Placed) != 1 {
		t.Errorf("another group: %+v", r)
	}
}

func TestPlaceConstraintsFollowTasks(t *testing.T) {
	s := stateOf(host("a"), host("b"))
	apart := []Constraint{query(t, "task:group != db"), query(t, "attribute:x !exists")}
	if err := s.Reserve(Reservation{Task: "d", Instance: "a", Group: "db"}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		r := place(t, s, Request{Tasks: []string{fmt.Sprint("t", i)}, Group: "web", Need: small, Constraints: apart})
		if d := cmp.Diff([]string{"b"}, where(r)); d != "" {
			t.Errorf("placed (-want +got):\n%s", d)
		}
	}
	s.Release("d")
	r := place(t, s, Request{Tasks: []string{"u"}, Group: "web", Need: small, Constraints: apart})
	if d := cmp.Diff([]string{"a"}, where(r)); d != "" {
		t.Errorf("after the release (-want +got):\n%s", d)
	}
}

func TestPlaceRandom(t *testing.T) {
	at := map[string]int{}
	for seed := range 400 {
		s := stateOf(host("a"), host("b"), host("c"), host("full"))
		if err := s.Reserve(Reservation{Task: "x", Instance: "full", Need: Need{CPU: 4096}}); err != nil {
			t.Fatal(err)
		}
		q := Request{Tasks: []string{"t"}, Group: "g", Need: small, Strategies: []Strategy{{Kind: Random}}, Seed: uint64(seed)}
		r := place(t, s, q)
		at[r.Placed[0].Instance]++
		s.Release("t")
		if again := place(t, s, q); again.Placed[0].Instance != r.Placed[0].Instance {
			t.Fatalf("seed %d: %s, then %s", seed, r.Placed[0].Instance, again.Placed[0].Instance)
		}
	}
	for _, arn := range []string{"a", "b", "c"} {
		if at[arn] < 90 {
			t.Errorf("400 random choices of three: %v", at)
		}
	}
	if at["full"] > 0 {
		t.Errorf("placed on a full instance: %v", at)
	}
}

func TestStart(t *testing.T) {
	draining, away := host("d"), host("w")
	draining.Status, away.AgentConnected = StatusDraining, false
	s := stateOf(host("a"), draining, away)
	for _, tt := range []struct{ instance, reason string }{
		{"a", ""}, {"d", ReasonInactive}, {"w", ReasonAgent}, {"none", ReasonMissing}, {"a", ReasonPorts},
	} {
		r, err := Start(s, tt.instance, Request{Tasks: []string{"t-" + tt.instance + tt.reason}, Group: "g", Need: Need{TCP: []uint16{80}}})
		if err != nil {
			t.Fatal(err)
		}
		if tt.reason == "" && len(r.Placed) == 1 && r.Placed[0].Instance == tt.instance {
			continue
		}
		if len(r.Failed) != 1 || r.Failed[0].Reason != tt.reason || r.Failed[0].Instance != tt.instance {
			t.Errorf("Start on %s: %+v, want %q", tt.instance, r, tt.reason)
		}
	}
	if _, err := Start(s, "a", Request{Tasks: tasks("x", 2)}); err == nil {
		t.Error("two tasks on one instance: no error")
	}
}

func TestPlaceRefuses(t *testing.T) {
	s := stateOf(host("a"))
	place(t, s, Request{Tasks: []string{"t"}, Need: small})
	for name, r := range map[string]Request{
		"a task placed before": {Tasks: []string{"t"}},
		"a task named twice":   {Tasks: []string{"u", "u"}},
		"a negative need":      {Tasks: []string{"v"}, Need: Need{CPU: -1}},
	} {
		if _, err := Place(s, r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := s.Reserve(Reservation{Task: "t", Instance: "a"}); err == nil {
		t.Error("a second reservation of one task: no error")
	}
	if err := s.Reserve(Reservation{Task: "n", Instance: "nowhere"}); err == nil {
		t.Error("a reservation on an unknown instance: no error")
	}
}

func TestStateKeepsReservations(t *testing.T) {
	i := host("a")
	i.Total.GPUs = []string{"g0", "g1", "g2"}
	s := stateOf(i)
	r := place(t, s, Request{Tasks: []string{"t"}, Group: "g", Need: Need{CPU: 1000, Memory: 2000, GPUs: 2, TCP: []uint16{80}, UDP: []uint16{53}}})
	if d := cmp.Diff([]string{"g0", "g1"}, r.Placed[0].GPUs); d != "" {
		t.Errorf("devices (-want +got):\n%s", d)
	}
	want := Remaining{CPU: 3096, Memory: 6192, TCP: []uint16{22, 80}, UDP: []uint16{53, 5353}, GPUs: []string{"g2"}}
	check := func(when string) {
		t.Helper()
		got, _ := s.Remaining("a")
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
	}
	check("after Place")
	i.Total.CPU, i.AgentConnected = 500, false
	s.SetInstance(i)
	want.CPU = -500
	check("after re-registering with less")
	s.SetRunning("t", true)
	if v, ok := s.View("a"); !ok || v.RunningTasks != 1 {
		t.Errorf("view: %+v", v)
	}
	if h, ok := s.Reserved("t"); !ok || !h.Running || h.Instance != "a" {
		t.Errorf("reserved: %+v", h)
	}
	s.Release("t")
	s.Release("t")
	want = Remaining{CPU: 500, Memory: 8192, TCP: []uint16{22}, UDP: []uint16{5353}, GPUs: []string{"g0", "g1", "g2"}}
	check("after Release")
	s.RemoveInstance("a")
	s.RemoveInstance("a")
	if _, ok := s.Remaining("a"); ok || s.Len() != 0 || len(s.groups) != 0 || len(s.classes.byKey) != 0 || len(s.classes.values) != 0 {
		t.Errorf("something is left after RemoveInstance: %+v", s)
	}
}

// A task without CPU may run where others hold more than there is now.
func TestPlaceZeroNeedOnOvercommitted(t *testing.T) {
	i := host("a")
	s := stateOf(i)
	if err := s.Reserve(Reservation{Task: "x", Instance: "a", Need: Need{CPU: 5000}}); err != nil {
		t.Fatal(err)
	}
	for n, kind := range []Kind{SpreadInstance, BinpackCPU, BinpackMemory} {
		r := place(t, s, Request{Tasks: tasks(fmt.Sprint(n), 1), Need: Need{Memory: 10}, Strategies: []Strategy{{Kind: kind}}})
		if len(r.Placed) != 1 {
			t.Errorf("strategy %d: %+v", kind, r.Failed)
		}
	}
}

func TestClassesStayFew(t *testing.T) {
	s := NewState()
	for n := range 2000 {
		s.SetInstance(host(fmt.Sprintf("i%04d", n), zone, fmt.Sprint(n%3), "name", fmt.Sprint("n", n), "rack", fmt.Sprint(n%200)))
	}
	if len(s.classes.byKey) > maxClasses || !s.classes.leftOut["name"] || s.classes.leftOut[zone] {
		t.Errorf("%d classes, left out %v", len(s.classes.byKey), s.classes.leftOut)
	}
	r := place(t, s, Request{Tasks: []string{"t"}, Need: small, Constraints: []Constraint{query(t, "attribute:name == n1234")}})
	if d := cmp.Diff([]string{"i1234"}, where(r)); d != "" {
		t.Errorf("by a name (-want +got):\n%s", d)
	}
	r = place(t, s, Request{Tasks: []string{"u"}, Need: small, Attributes: []Attribute{{"name", "n77"}}})
	if d := cmp.Diff([]string{"i0077"}, where(r)); d != "" {
		t.Errorf("by a required name (-want +got):\n%s", d)
	}
	// Spread over an attribute that is not part of the classes.
	r = place(t, s, Request{Tasks: tasks("v", 10), Group: "v", Need: small, Strategies: []Strategy{{Kind: SpreadAttribute, Attribute: "name"}}})
	seen := map[string]bool{}
	for _, arn := range where(r) {
		seen[arn] = true
	}
	if len(seen) != 10 {
		t.Errorf("spread over names used %d instances", len(seen))
	}
}
