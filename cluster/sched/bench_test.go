package sched

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// batch is how many placements one operation of the benchmark makes, so that even a
// single operation says something.
const batch = 2000

// BenchmarkPlace fills a cluster to two thirds with tasks of 50 groups and then keeps
// placing one task and releasing the oldest, so that every placement is counted with
// the release that makes room for it.
func BenchmarkPlace(b *testing.B) {
	constraint, err := ParseQuery("attribute:ecs.instance-type =~ m5.* and agentConnected == true")
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{1000, 10000} {
		for _, bb := range []struct {
			name string
			r    Request
		}{
			{"default", Request{}},
			{"binpack-memory", Request{Strategies: []Strategy{{Kind: BinpackMemory}}}},
			{"binpack-cpu", Request{Strategies: []Strategy{{Kind: BinpackCPU}}}},
			{"spread-binpack", Request{Strategies: []Strategy{{Kind: SpreadAttribute, Attribute: zone}, {Kind: BinpackCPU}}}},
			{"random", Request{Strategies: []Strategy{{Kind: Random}}}},
			{"memberOf", Request{Constraints: []Constraint{{Query: constraint}}}},
			{"port", Request{Need: Need{TCP: []uint16{80}}}},
			{"scan", Request{Strategies: []Strategy{{Kind: BinpackCPU}, {Kind: BinpackMemory}}}},
		} {
			b.Run(fmt.Sprintf("%s-%d", bb.name, size), func(b *testing.B) { benchPlace(b, size, bb.r) })
		}
	}
}

func benchPlace(b *testing.B, size int, r Request) {
	s := NewState()
	for i := range size {
		in := host(fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:container-instance/default/%032x", i*7919),
			zone, fmt.Sprint("us-east-1", i%3), "ecs.instance-type", []string{"m5.large", "c5.large"}[i%2],
			"ecs.os-type", "linux", "ecs.capability.execution-role-awslogs", "", "com.amazonaws.ecs.capability.docker-remote-api.1.24", "")
		in.Total = Resources{CPU: 16384, Memory: 65536}
		s.SetInstance(in)
	}
	r.Attributes = []Attribute{{Name: "ecs.capability.execution-role-awslogs"}, {Name: "com.amazonaws.ecs.capability.docker-remote-api.1.24"}}
	r.Need.CPU, r.Need.Memory = 256, 512
	full := size * 64 * 2 / 3
	if len(r.Need.TCP) > 0 {
		full = size * 2 / 3
	}
	ids := func(n int) string { return fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:task/default/%032x", n) }
	groups := func(n int) string { return fmt.Sprintf("family:app-%d", n%50) }
	arns := slices.Sorted(maps.Keys(s.nodes))
	for n := range full {
		if err := s.Reserve(Reservation{Task: ids(n), Instance: arns[n%size], Group: groups(n), Need: r.Need}); err != nil {
			b.Fatal(err)
		}
	}
	next, oldest := full, 0
	b.ReportAllocs()
	for b.Loop() {
		for range batch {
			r.Tasks, r.Group = []string{ids(next)}, groups(next)
			next++
			if out, err := Place(s, r); err != nil || len(out.Placed) != 1 {
				b.Fatalf("not placed: %v %+v", err, out)
			}
			s.Release(ids(oldest))
			oldest++
		}
	}
	b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "placements/s")
}
