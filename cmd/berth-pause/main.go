// Command berth-pause is what Berth mounts into containers that need a process which
// does nothing:
//
//	berth-pause               holds the namespaces that the containers of a task share.
//	                          As process 1 it takes in orphans, and it ends on SIGTERM
//	                          or SIGINT with exit code 0.
//	berth-pause stdin CMD...  becomes CMD with a standard input that stays open and
//	                          never has anything to read, as an interactive container
//	                          without a terminal has it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "stdin" {
		os.Exit(hold(os.Args[2:]))
	}
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "berth-pause: usage: berth-pause [stdin CMD ...]")
		os.Exit(2)
	}
	pause()
}

// pause waits for the end and reaps what became an orphan in between.
func pause() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range c {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
}

// Exit codes of a command that cannot be run, as shells have them.
const (
	notFound = 127
	notRun   = 126
)

// hold makes a pipe whose both ends are the standard input, so that there is always
// somebody who could write, and becomes the command. It returns only if that fails.
func hold(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "berth-pause: stdin: no command")
		return 2
	}
	if err := endlessInput(); err != nil {
		fmt.Fprintln(os.Stderr, "berth-pause: standard input:", err)
		return notRun
	}
	path, err := exec.LookPath(args[0])
	if err == nil {
		err = os.NewSyscallError("exec "+path, syscall.Exec(path, args, os.Environ()))
	}
	fmt.Fprintln(os.Stderr, err)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return notFound
	}
	return notRun
}

func endlessInput() error {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return err
	}
	// A pipe that is opened to read and write at once has its writer in its reader.
	fd, err := syscall.Open("/proc/self/fd/"+strconv.Itoa(p[0]), syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return syscall.Dup3(fd, 0, 0)
}
