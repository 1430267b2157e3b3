// Command berth-shipper sends the output of this host's containers to where their log
// drivers say: one process for all containers, started by the first logger that needs it
// and ended by itself when there is nothing left to send. It depends neither on the agent
// nor on containerd being alive. See agent/logs/DESIGN.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"berth.dev/berth/agent/logs/ship"
)

// maxOwnLog bounds the shipper's own log in bytes. One older file is kept.
const maxOwnLog = 1 << 20

func main() {
	run := flag.String("run", "/run/berth", "directory of the sockets")
	logs := flag.String("logs", "/var/log/berth/tasks", "directory of the containers' logs")
	idle := flag.Duration("idle", 5*time.Second, "how long to go on when there is nothing to send")
	journal := flag.String("journal", "", "socket of the journal instead of the system's")
	flag.Parse()
	// Many small buffers that live for a moment: less memory is worth more than speed.
	debug.SetGCPercent(50)
	log := slog.New(slog.NewTextHandler(&ownLog{path: filepath.Join(filepath.Dir(*logs), "shipper.log")}, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := ship.New(ship.Config{Run: *run, Logs: *logs, Idle: *idle, JournalPath: *journal, Log: log}).Run(ctx)
	if err != nil && !errors.Is(err, ship.ErrRunning) {
		log.Error("the shipper ends", "err", err)
		fmt.Fprintln(os.Stderr, "berth-shipper:", err)
		os.Exit(1)
	}
}

// ownLog is the shipper's own log, made when there is something to say. Without it the
// shipper works as well.
type ownLog struct {
	path string
	f    *os.File
	size int64
}

// Write appends one line. Handlers of log/slog call it from one goroutine at a time.
func (l *ownLog) Write(b []byte) (int, error) {
	if l.f == nil {
		if st, err := os.Stat(l.path); err == nil && st.Size() > maxOwnLog {
			if err := os.Rename(l.path, l.path+".1"); err != nil {
				return 0, err
			}
		}
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
		if err != nil {
			return 0, err
		}
		l.f, l.size = f, 0
	}
	n, err := l.f.Write(b)
	if l.size += int64(n); l.size > maxOwnLog {
		err = errors.Join(err, l.f.Close())
		l.f = nil
	}
	return n, err
}
