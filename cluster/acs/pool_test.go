package acs

import (
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

const (
	poolVolume   = "vol-0123456789abcdef0"
	poolSnapshot = "snap-0123456789abcdef0"
)

// What an instance answers changes the records that it was asked about, and no others.
func TestResultsOfTheVolumePool(t *testing.T) {
	for name, tt := range map[string]struct {
		volume   string
		snapshot store.Snapshot
		result   acs.VolumePoolResult
		other    bool // another instance answers
		orders   int  // before
		want     store.Snapshot
		kept     bool // the volume
		gone     bool // the snapshot
	}{
		"made": {
			volume: store.VolumeAvailable, snapshot: store.Snapshot{State: store.SnapshotPending}, orders: 1, kept: true,
			result: acs.VolumePoolResult{Order: acs.PoolCreateSnapshot, SnapshotID: poolSnapshot, VolumeID: poolVolume}, want: store.Snapshot{State: store.SnapshotCompleted},
		},
		"not made": {
			volume: store.VolumeInUse, snapshot: store.Snapshot{State: store.SnapshotPending}, orders: 1, kept: true,
			result: acs.VolumePoolResult{Order: acs.PoolCreateSnapshot, SnapshotID: poolSnapshot, Fault: "why"}, want: store.Snapshot{State: store.SnapshotError, Fault: "why"},
		},
		"made long ago": {
			volume: store.VolumeAvailable, snapshot: store.Snapshot{State: store.SnapshotCompleted}, kept: true,
			result: acs.VolumePoolResult{Order: acs.PoolCreateSnapshot, SnapshotID: poolSnapshot, Fault: "why"}, want: store.Snapshot{State: store.SnapshotCompleted},
		},
		"by another": {
			volume: store.VolumeAvailable, snapshot: store.Snapshot{State: store.SnapshotPending}, orders: 1, kept: true, other: true,
			result: acs.VolumePoolResult{Order: acs.PoolCreateSnapshot, SnapshotID: poolSnapshot}, want: store.Snapshot{State: store.SnapshotPending},
		},
		"snapshot removed": {
			volume: store.VolumeAvailable, snapshot: store.Snapshot{State: store.SnapshotCompleted, Deleting: true}, orders: 1, kept: true, gone: true,
			result: acs.VolumePoolResult{Order: acs.PoolDeleteSnapshot, SnapshotID: poolSnapshot},
		},
		"snapshot that nobody wants removed": {
			volume: store.VolumeAvailable, snapshot: store.Snapshot{State: store.SnapshotCompleted}, kept: true,
			result: acs.VolumePoolResult{Order: acs.PoolDeleteSnapshot, SnapshotID: poolSnapshot}, want: store.Snapshot{State: store.SnapshotCompleted},
		},
		"volume removed": {
			volume: store.VolumeDeleting, snapshot: store.Snapshot{State: store.SnapshotCompleted}, orders: 1,
			result: acs.VolumePoolResult{Order: acs.PoolDeleteVolume, VolumeID: poolVolume}, want: store.Snapshot{State: store.SnapshotCompleted},
		},
		"volume in use": {
			volume: store.VolumeInUse, snapshot: store.Snapshot{State: store.SnapshotCompleted}, kept: true,
			result: acs.VolumePoolResult{Order: acs.PoolDeleteVolume, VolumeID: poolVolume}, want: store.Snapshot{State: store.SnapshotCompleted},
		},
	} {
		t.Run(name, func(t *testing.T) {
			st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			const instance = "0a1b2c"
			tt.snapshot.ID, tt.snapshot.VolumeID, tt.snapshot.InstanceID = poolSnapshot, poolVolume, instance
			err = st.Update(t.Context(), func(tx *store.Tx) error {
				store.Put(tx, store.Volumes, poolVolume, &store.Volume{ID: poolVolume, InstanceID: instance, State: tt.volume})
				store.Put(tx, store.Snapshots, poolSnapshot, &tt.snapshot)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			st.View(func(r store.Reader) {
				if got := poolOrders(r, instance); len(got) != tt.orders {
					t.Errorf("orders %+v, want %d", got, tt.orders)
				}
			})
			ss := &session{server: &Server{Config: Config{Store: st}}, id: instance, log: slog.New(slog.DiscardHandler)}
			if tt.other {
				ss.id = "other"
			}
			ss.poolResult(t.Context(), &tt.result)
			st.View(func(r store.Reader) {
				_, kept := store.Get(r, store.Volumes, poolVolume)
				s, there := store.Get(r, store.Snapshots, poolSnapshot)
				if kept != tt.kept || there == tt.gone {
					t.Errorf("volume is there: %t, snapshot: %t", kept, there)
				}
				if there {
					if diff := cmp.Diff([]string{tt.want.State, tt.want.Fault}, []string{s.State, s.Fault}); diff != "" {
						t.Error(diff)
					}
				}
			})
		})
	}
}
