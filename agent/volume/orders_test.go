package volume

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/volumes/block"
)

// told collects results.
type told struct {
	mu   sync.Mutex
	list []string
}

func (r *told) tell(_ context.Context, o task.PoolOrder, fault error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := string(o.Kind) + " " + o.Volume + o.Snapshot
	if fault != nil {
		text += " " + fault.Error()[strings.LastIndexByte(fault.Error(), ':')+1:]
	}
	r.list = append(r.list, text)
}

func (r *told) want(t *testing.T, what string, want ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(want, r.list); diff != "" {
		t.Errorf("%s (-want +got): %s", what, diff)
	}
	r.list = nil
}

func TestOrders(t *testing.T) {
	s, _ := host(t)
	pool := s.c.Pool
	const kept, own, snap = "vol-01234567", "vol-01234568", "snap-01234567"
	for id, o := range map[string]block.Owned{kept: {Task: "t"}, own: {Task: "t", Delete: true}} {
		if err := pool.Create(t.Context(), id, block.Content{Size: 16 << 20, Kind: "ext4"}, o); err != nil {
			t.Fatal(err)
		}
	}
	create := task.PoolOrder{Kind: task.PoolCreateSnapshot, Volume: kept, Snapshot: snap, TaskID: "t", Name: "data"}
	absent := create
	absent.Volume, absent.Snapshot = "vol-01234569", "snap-01234568"
	synctest.Test(t, func(t *testing.T) {
		o, r := s.Orders(), &told{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := o.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("run: %v", err)
			}
		}()
		o.Order([]task.PoolOrder{create, absent, create}, r.tell)
		r.want(t, "snapshots", "CreateSnapshot vol-01234567snap-01234567", "CreateSnapshot vol-01234569snap-01234568  it is not in the pool of this host")
		o.Order([]task.PoolOrder{create}, r.tell)
		r.want(t, "one that is there", "CreateSnapshot vol-01234567snap-01234567")
		remove := []task.PoolOrder{
			{Kind: task.PoolDeleteVolume, Volume: own}, {Kind: task.PoolDeleteVolume, Volume: kept}, {Kind: task.PoolDeleteSnapshot, Snapshot: snap},
		}
		o.Order(remove, r.tell)
		r.want(t, "removed", "DeleteVolume "+kept, "DeleteSnapshot "+snap)
		time.Sleep(10 * time.Minute)
		r.want(t, "what goes with its task stays")
		late := &told{}
		o.Order(remove[:1], late.tell) // as in a new session
		if err := pool.Delete(own); err != nil {
			t.Error(err)
		}
		time.Sleep(removeMax)
		late.want(t, "its task has ended", "DeleteVolume "+own)
		r.want(t, "the old session")
		cancel()
		<-done
	})
	if all, err := pool.Volumes(); err != nil || len(all) > 0 {
		t.Errorf("left: %v, %v", all, err)
	}
}
