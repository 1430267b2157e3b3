package intake

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// pooled collects orders and answers each at once.
type pooled struct {
	list  []task.PoolOrder
	fault error
}

func (p *pooled) Order(orders []task.PoolOrder, tell func(ctx context.Context, o task.PoolOrder, fault error)) {
	p.list = append(p.list, orders...)
	for _, o := range orders {
		tell(context.Background(), o, p.fault)
	}
}

// results collects what is sent.
type results struct{ list []acs.VolumePoolResult }

func (r *results) Send(_ context.Context, m acs.Message) error {
	if result, ok := m.(*acs.VolumePoolResult); ok {
		r.list = append(r.list, *result)
	}
	return nil
}

func TestOrdersForThePool(t *testing.T) {
	const volume, snapshot = "vol-0123456789abcdef0", "snap-0123456789abcdef0"
	orders := []acs.PoolOrder{
		{Order: acs.PoolCreateSnapshot, VolumeID: volume, SnapshotID: snapshot, TaskID: "0a1b", VolumeName: "data"},
		{Order: acs.PoolDeleteSnapshot, SnapshotID: snapshot}, {Order: acs.PoolDeleteVolume, VolumeID: volume},
	}
	p, r := &pooled{fault: errors.New(strings.Repeat("é", 400))}, &results{}
	in := New(Config{Pool: p, Log: slog.New(slog.DiscardHandler)})
	if err := in.Pool(t.Context(), &acs.VolumePoolMessage{MessageID: "m", Orders: orders}, r); err != nil {
		t.Fatal(err)
	}
	want := []task.PoolOrder{
		{Kind: task.PoolCreateSnapshot, Volume: volume, Snapshot: snapshot, TaskID: "0a1b", Name: "data"},
		{Kind: task.PoolDeleteSnapshot, Snapshot: snapshot}, {Kind: task.PoolDeleteVolume, Volume: volume},
	}
	if diff := cmp.Diff(want, p.list); diff != "" {
		t.Error(diff)
	}
	if len(r.list) != 3 || r.list[0].MessageID != "m" || r.list[0].SnapshotID != snapshot || len(r.list[2].Fault) > maxFault || r.list[2].VolumeID != volume {
		t.Errorf("results %+v", r.list)
	}
	for name, o := range map[string]acs.PoolOrder{
		"nothing":          {},
		"unknown":          {Order: "Format", VolumeID: volume},
		"a path":           {Order: acs.PoolDeleteVolume, VolumeID: "vol-../../etc"},
		"no snapshot":      {Order: acs.PoolDeleteSnapshot, VolumeID: volume},
		"a path as a task": {Order: acs.PoolCreateSnapshot, VolumeID: volume, SnapshotID: snapshot, TaskID: "../x", VolumeName: "data"},
		"no name":          {Order: acs.PoolCreateSnapshot, VolumeID: volume, SnapshotID: snapshot, TaskID: "0a1b"},
	} {
		p := &pooled{}
		in := New(Config{Pool: p})
		if err := in.Pool(t.Context(), &acs.VolumePoolMessage{Orders: []acs.PoolOrder{orders[2], o}}, r); err == nil || len(p.list) > 0 {
			t.Errorf("%s: %v, %+v", name, err, p.list)
		}
	}
	if err := New(Config{}).Pool(t.Context(), &acs.VolumePoolMessage{}, r); err == nil {
		t.Error("orders were taken without a pool")
	}
	if err := in.Pool(t.Context(), &acs.VolumePoolMessage{Orders: make([]acs.PoolOrder, maxPoolOrders+1)}, r); err == nil {
		t.Error("too many orders were taken")
	}
}
