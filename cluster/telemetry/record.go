package telemetry

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"berth.dev/berth/cluster/series"
	"berth.dev/berth/cluster/store"
)

const (
	// tick is how often points are saved and minutes that are over are entered into the
	// series.
	tick = 10 * time.Second
	// settle is how long after its end a minute is entered, for agents publish every 20 s.
	settle = 25 * time.Second
	// horizon is how far back a minute is entered again for what comes late. The points of
	// all containers must still be there (Points).
	horizon = 14 * time.Minute
	// sweepEvery is how often series that are too old are removed.
	sweepEvery = 10 * time.Minute
)

// Recorder brings the points of a Keeper to disk: the points themselves, for a restart,
// and the series of minutes that are made of them.
type Recorder struct {
	keeper  *Keeper
	records *store.Store
	series  *series.Store
	log     *slog.Logger
	last    time.Time             // begin of the newest minute that was entered
	late    map[int64][]minuteUse // by minute, what came late and is to be entered
	swept   time.Time
}

// NewRecorder makes a recorder and gives the keeper the points that are on disk.
func NewRecorder(k *Keeper, records *store.Store, s *series.Store, log *slog.Logger) (*Recorder, error) {
	r := &Recorder{keeper: k, records: records, series: s, log: log}
	if err := s.Samples(r.load); err != nil {
		return nil, fmt.Errorf("read the last samples: %w", err)
	}
	return r, nil
}

// Run records until ctx ends, and saves once more then.
func (r *Recorder) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), r.end())
		case <-t.C:
		}
		if err := r.Record(); err != nil {
			r.log.Error("telemetry was not recorded", "err", err)
		}
	}
}

// end records what would be lost.
func (r *Recorder) end() error {
	now := r.keeper.now()
	err := r.save(now)
	for range 2 { // the first time may leave the last minutes
		err = errors.Join(err, r.enterLate(now.Add(-settle).Truncate(time.Minute)))
	}
	return err
}

// Record saves the points that are new, and then enters the minutes that have any. In
// this order a minute is never entered again with less after a restart.
func (r *Recorder) Record() error {
	now := r.keeper.now()
	if err := r.save(now); err != nil {
		return fmt.Errorf("save the last samples: %w", err)
	}
	newest := now.Add(-settle).Truncate(time.Minute).Add(-time.Minute)
	minutes := r.keeper.takeDirty(newest, now.Add(-horizon))
	if newest.After(r.last) && !slices.ContainsFunc(minutes, newest.Equal) {
		minutes = append(minutes, newest) // for what has no containers
	}
	for i, m := range minutes {
		rows := r.roll(m, m.Equal(newest) && newest.After(r.last))
		if err := r.series.Put(m, newest.Add(time.Minute), rows); err != nil {
			r.keeper.putBack(minutes[i:])
			return fmt.Errorf("enter the series of %s: %w", m.Format(time.RFC3339), err)
		}
		if m.After(r.last) {
			r.last = m
		}
	}
	if err := r.enterLate(newest.Add(time.Minute)); err != nil {
		return err
	}
	if now.Sub(r.swept) < sweepEvery {
		return nil
	}
	r.swept = now
	return r.series.Sweep(now)
}

// saved is a container with some of its points, as on disk.
type saved struct {
	Task, Container, Instance, Family string
	Points                            []Point
}

func (r *Recorder) save(now time.Time) error {
	list := r.keeper.takeFresh()
	var b bytes.Buffer
	if len(list) > 0 {
		if err := gob.NewEncoder(&b).Encode(list); err != nil {
			return err
		}
	}
	return r.series.SaveSamples(b.Bytes(), now.Add(-2*horizon), now)
}

func (r *Recorder) load(batch []byte) error {
	var list []saved
	if err := gob.NewDecoder(bytes.NewReader(batch)).Decode(&list); err != nil {
		r.log.Warn("saved samples are not understood and are left out", "err", err)
		return nil
	}
	r.keeper.restore(list)
	return nil
}

func minuteOf(t time.Time) int64 {
	// A point is about the time before it: one at the full minute is of the minute before.
	return (t.UnixNano() - 1) / int64(time.Minute)
}

// takeDirty is the minutes with new points up to newest, the oldest first. The points of
// those before oldest, of which there are some after a time in which nothing was recorded,
// are late.
func (k *Keeper) takeDirty(newest, oldest time.Time) []time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []time.Time
	for n := range k.dirty {
		at := time.Unix(n*60, 0)
		if at.After(newest) {
			continue
		}
		delete(k.dirty, n)
		if !at.Before(oldest) {
			out = append(out, at)
			continue
		}
		for _, c := range k.containers {
			for _, p := range c.points {
				if minuteOf(p.At) == n {
					k.putLate(c, p)
				}
			}
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return out
}

func (k *Keeper) putBack(minutes []time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range minutes {
		k.dirty[m.Unix()/60] = true
	}
}

// takeFresh is the points that are not on disk yet.
func (k *Keeper) takeFresh() []saved {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []saved
	for id, c := range k.containers {
		if len(c.fresh) > 0 {
			out = append(out, saved{id.task, id.container, c.instance, c.family, c.fresh})
			c.fresh = nil
		}
	}
	return out
}

// restore enters points from disk. The minutes they are of are entered again, for that may
// not have been done.
func (k *Keeper) restore(list []saved) {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range list {
		s := &list[i]
		for _, p := range s.Points {
			if p.At.Before(now.Add(-lateLimit)) || p.At.After(now.Add(future)) {
				continue
			}
			k.enter(key{s.Task, s.Container}, s.Instance, s.Family, p.At, p)
			k.containers[key{s.Task, s.Container}].fresh = nil
		}
	}
}
