// Command berth-logger writes the output of one container to its log file. The
// containerd shim starts it for a "binary://" log URI and hands it the container's
// standard output as descriptor 3, its standard error as 4, and in 5 a pipe that it
// waits on until the logger is ready. It ends when both streams have ended, does not
// depend on the agent or on containerd being alive, and never makes the container wait
// for the disk: what cannot be written is dropped and counted in the log.
//
// Arguments come as key and value in any order: path FILE, max BYTES, files N, compress 1
// to have rotated files compressed; for output that is sent on, run DIR of the sockets, logs DIR of all logs, and block 1 if
// the container is to wait for its destination and for the disk.
package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth.dev/berth/agent/logs/link"
	"berth.dev/berth/agent/runtime/logfile"
)

// idleAfterTerm is how long the logger goes on after a SIGTERM when nothing comes. The
// shim sends the signal right after closing its own ends of the pipes, so normally the
// end of both streams is there at once; a process that outlives its container and
// holds one open must not keep the logger.
const idleAfterTerm = 500 * time.Millisecond

// diskAgain is how often a blocking log tries a disk again that cannot be written.
const diskAgain = 200 * time.Millisecond

func main() {
	// Ready as early as possible: the container's creation waits for this.
	os.NewFile(5, "ready").Close()

	args := map[string]string{}
	for i := 1; i+1 < len(os.Args); i += 2 {
		args[os.Args[i]] = os.Args[i+1]
	}
	if args["path"] == "" {
		os.Stderr.WriteString("berth-logger: usage: berth-logger path FILE [max BYTES] [files N] [compress 1] [run DIR logs DIR [block 1]]; started by the containerd shim\n")
		os.Exit(2)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)

	max, _ := strconv.ParseInt(args["max"], 10, 64)  // 0 means the default
	files, _ := strconv.Atoi(args["files"])          // likewise
	w := logfile.NewWriter(args["path"], max, files) // never fails
	w.Compress = args["compress"] == "1"

	var touched atomic.Int64
	touch := func(int) { touched.Add(1) }
	release := func() {}
	hangUp := func() {}
	if args["run"] != "" {
		l := link.Dial(link.Config{
			Run: args["run"], Root: args["logs"], Dir: filepath.Dir(args["path"]), Blocking: args["block"] == "1",
			Program: filepath.Join(filepath.Dir(os.Args[0]), "berth-shipper"),
		})
		var ending atomic.Bool
		if args["block"] == "1" {
			w.Again = func(error) bool {
				touched.Add(1)
				time.Sleep(diskAgain)
				return !ending.Load()
			}
		}
		touch = func(n int) { touched.Add(1); l.Wrote(n) }
		release = func() { ending.Store(true); l.Release() }
		hangUp = l.Close
	}
	var streams sync.WaitGroup
	for fd, name := range map[uintptr]string{3: logfile.Stdout, 4: logfile.Stderr} {
		streams.Go(func() {
			// A read error means that the stream is gone, as its end does.
			_ = logfile.Copy(w, name, os.NewFile(fd, name), touch)
		})
	}
	done := make(chan struct{})
	go func() { streams.Wait(); close(done) }()

	select {
	case <-done:
	case <-term:
		// The container has ended: nothing waits for its destination any more.
		release()
		drain(done, &touched)
	}
	w.Close()
	hangUp()
}

// drain waits for the end of the streams, or until nothing has come for a while.
func drain(done <-chan struct{}, touched *atomic.Int64) {
	tick := time.NewTicker(idleAfterTerm)
	defer tick.Stop()
	for last := touched.Load(); ; {
		select {
		case <-done:
			return
		case <-tick.C:
			now := touched.Load()
			if now == last {
				return
			}
			last = now
		}
	}
}
