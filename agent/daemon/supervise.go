package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// statusInterval is how often the line that systemd shows is looked at where there is no
// watchdog to feed.
const statusInterval = 10 * time.Second

// supervisor tells systemd how the agent is: a line for people, and that its loops turn
// (sd_notify(3), STATUS and WATCHDOG).
type supervisor struct {
	watchdog time.Duration // after which systemd ends an agent that is silent; 0 means never
	notify   func(state string) error
	// check asks every loop whether it turns. It gets as long as there is until the next
	// time, and may hang.
	check   func(ctx context.Context) error
	status  func() string
	changed <-chan struct{} // the status may be another: of the health
	news    <-chan struct{} // and of the rest
	log     *slog.Logger

	said string // the last status
	hung bool   // what check said last
}

// supervise runs until ctx ends. Without systemd it does nothing.
func (a *agent) supervise(ctx context.Context) {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		a.log.Warn("the watchdog is not fed: its settings cannot be read", "err", err)
	}
	changed, cancel := a.health.Subscribe()
	defer cancel()
	s := &supervisor{
		watchdog: watchdog, check: func(ctx context.Context) error { return a.turns(ctx, watchdog) }, status: a.statusLine, changed: changed, news: a.news, log: a.log,
		notify: func(state string) error {
			_, err := daemon.SdNotify(false, state)
			return err
		},
	}
	s.run(ctx)
}

// run feeds the watchdog three times in its interval, if the loops turn. What it asks is
// asked in a goroutine, so that a hanging answer is no answer.
func (s *supervisor) run(ctx context.Context) {
	interval := statusInterval
	if s.watchdog > 0 {
		interval = s.watchdog / 3
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var asked chan error // the answer that is awaited
	for {
		s.say()
		if asked == nil {
			asked = make(chan error, 1)
			go func(answer chan<- error) {
				ctx, cancel := context.WithTimeout(ctx, interval/2)
				defer cancel()
				answer <- s.check(ctx)
			}(asked)
		} else {
			s.feed(errors.New("a loop of the agent does not answer"))
		}
		for waiting := true; waiting; {
			select {
			case err := <-asked:
				asked = nil
				if ctx.Err() == nil {
					s.feed(err)
				}
			case <-s.changed:
				s.say()
			case <-s.news:
				s.say()
			case <-tick.C:
				waiting = false
			case <-ctx.Done():
				return
			}
		}
	}
}

// say tells the status where it is another than before.
func (s *supervisor) say() {
	if line := s.status(); line != s.said {
		s.said = line
		s.tell("STATUS=" + line)
	}
}

// feed feeds the watchdog unless a loop hangs.
func (s *supervisor) feed(err error) {
	if err != nil {
		s.hung = true
		s.log.Error("a loop hangs; systemd's watchdog is not fed", "err", err)
		return
	}
	if s.hung {
		s.hung = false
		s.log.Info("all loops turn again")
	}
	if s.watchdog > 0 {
		s.tell(daemon.SdNotifyWatchdog)
	}
}

func (s *supervisor) tell(state string) {
	if err := s.notify(state); err != nil {
		s.log.Warn("systemd could not be told", "state", state, "err", err)
	}
}

// tellNews has the status looked at.
func (a *agent) tellNews() {
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// turns reports which loop of the agent hangs. An agent that starts is waited for by
// systemd in another way.
func (a *agent) turns(ctx context.Context, limit time.Duration) error {
	a.health.Snapshot()
	a.db.Pending()
	if !a.ready.Load() {
		return nil
	}
	if limit > 0 {
		if ids := a.engine.Stalled(limit); len(ids) > 0 {
			return fmt.Errorf("the loops of these tasks hang: %s", strings.Join(ids, ", "))
		}
	}
	a.engine.Views()
	a.engine.Waiting()
	return a.reporter.Ping(ctx)
}

// statusLine is what "systemctl status" shows.
func (a *agent) statusLine() string {
	var b strings.Builder
	switch i := a.instance(); {
	case !a.ready.Load():
		b.WriteString("starting")
	case a.connected.Load():
		fmt.Fprintf(&b, "%d tasks; connected to cluster %s", len(a.engine.Views()), i.Cluster)
	default:
		fmt.Fprintf(&b, "%d tasks; not connected to cluster %s", len(a.engine.Views()), i.Cluster)
	}
	if n := a.db.Pending(); n > 0 {
		fmt.Fprintf(&b, "; %d state changes to send", n)
	}
	if err := a.health.Ready(); err != nil {
		b.WriteString("; " + strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return b.String()
}
