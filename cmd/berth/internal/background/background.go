// Package background starts Berth's programs so that they outlive the command that
// started them, finds them again, and ends them.
//
// A program is found by its pid file, which names the process by pid, start time and
// boot: a pid that was given to another process, or a file left by a host that went
// down, is never taken for the program.
package background

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/cmd/berth/internal/layout"
)

// Program is one background program, running or not.
type Program struct {
	Name    string
	PIDFile string
	LogFile string // its standard output and error, appended to
}

// Process is one run of a program.
type Process struct {
	PID     int       `json:"pid"`
	Ticks   uint64    `json:"startTicks"` // start time since boot, in clock ticks: proc(5), stat field 22
	Boot    string    `json:"bootId"`
	Exe     string    `json:"exe"`
	Started time.Time `json:"started"`
}

// Running returns the process of the program, or nil when it does not run.
func (p Program) Running() (*Process, error) {
	var proc Process
	err := layout.ReadJSON(p.PIDFile, &proc)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pid file of %s: %w", p.Name, err)
	}
	alive, err := proc.alive()
	if err != nil || !alive {
		return nil, err
	}
	return &proc, nil
}

// Start starts argv in a session of its own with the environment env, and returns when
// the process exists; whether it works is for the caller to find out.
func (p Program) Start(argv, env []string) (*Process, error) {
	for _, dir := range []string{filepath.Dir(p.PIDFile), filepath.Dir(p.LogFile)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(p.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	// Someone has to collect it if it ends while this command still runs.
	go func() { _ = cmd.Wait() }() // how it ended is in its log
	proc, err := identify(cmd.Process.Pid)
	if err != nil {
		return nil, fmt.Errorf("%s ended at once; its log is %s", p.Name, p.LogFile)
	}
	proc.Exe, proc.Started = argv[0], time.Now()
	if err := layout.WriteJSON(p.PIDFile, proc); err != nil {
		return nil, errors.Join(fmt.Errorf("pid file of %s: %w", p.Name, err), cmd.Process.Kill())
	}
	return proc, nil
}

// Stop asks the program to end, ends it when it has not after grace, and removes its
// pid file. It reports whether there was anything to stop.
func (p Program) Stop(ctx context.Context, grace time.Duration) (bool, error) {
	proc, err := p.Running()
	if err != nil {
		return false, err
	}
	if proc != nil {
		if err := proc.stop(ctx, grace); err != nil {
			return true, fmt.Errorf("stop %s (pid %d): %w", p.Name, proc.PID, err)
		}
	}
	if err := os.Remove(p.PIDFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return proc != nil, err
	}
	return proc != nil, nil
}

// Tail returns the last lines of the program's log, at most 4 KiB.
func (p Program) Tail(lines int) string {
	f, err := os.Open(p.LogFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 4096
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, 2); err != nil {
			return ""
		}
	}
	b := make([]byte, most)
	n, _ := f.Read(b) // whatever could be read is the answer
	all := strings.Split(strings.TrimRight(string(b[:n]), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Replaced reports whether the file the process was started from is another one now,
// as after a build.
func (proc *Process) Replaced() bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", proc.PID))
	return err == nil && strings.HasSuffix(exe, " (deleted)")
}

func (proc *Process) alive() (bool, error) {
	now, err := identify(proc.PID)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return now.Ticks == proc.Ticks && now.Boot == proc.Boot, nil
}

// stop signals through a pid descriptor, so that no other process can be hit.
func (proc *Process) stop(ctx context.Context, grace time.Duration) error {
	fd, err := unix.PidfdOpen(proc.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	if alive, err := proc.alive(); err != nil || !alive { // it may have changed before the descriptor was open
		return err
	}
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, 10 * time.Second}} {
		if err := unix.PidfdSendSignal(fd, step.signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if ended, err := waitEnd(ctx, fd, step.wait); err != nil || ended {
			return err
		}
	}
	return errors.New("still there after SIGKILL")
}

// waitEnd waits until the process of a pid descriptor has ended.
func waitEnd(ctx context.Context, fd int, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false, nil
		}
		// In short waits, so that the context is looked at.
		wait := min(left, 200*time.Millisecond)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds())+1)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, err
		case n > 0:
			return true, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		}
	}
}

// identify reads what tells the process with this pid from any other; the error is
// fs.ErrNotExist when there is none, or only an unreaped one.
func identify(pid int) (*Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		if errors.Is(err, syscall.ESRCH) {
			return nil, fs.ErrNotExist
		}
		return nil, err
	}
	// The name in parentheses may itself hold spaces and parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const state, start = 3 - 3, 22 - 3 // proc(5) numbers fields from 1, and two are before the ')'
	if len(fields) <= start {
		return nil, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return nil, fs.ErrNotExist
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("/proc/%d/stat: start time %q", pid, fields[start])
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	return &Process{PID: pid, Ticks: ticks, Boot: strings.TrimSpace(string(boot))}, nil
}
