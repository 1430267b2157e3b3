// Command probe runs inside test containers. With no argument it prints what it sees of
// itself as JSON and ends; other verbs: "exit N", "sleep", "ignore-term" (goes on after
// SIGTERM), "alloc MIB" (touches that much memory, then sleeps), "print N" (N lines).
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// View is what the probe prints.
type View struct {
	Args     []string          `json:"args"`
	Env      []string          `json:"env"`
	Dir      string            `json:"dir"`
	Hostname string            `json:"hostname"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	Groups   []int             `json:"groups"`
	FDs      []string          `json:"fds"`
	Status   map[string]string `json:"status"` // Cap*, Seccomp, NoNewPrivs of /proc/self/status
	Cgroup   string            `json:"cgroup"`
	Files    map[string]string `json:"files"` // first bytes of some files, or the error
}

func main() {
	verb, arg := "", ""
	if len(os.Args) > 1 {
		verb = os.Args[1]
	}
	if len(os.Args) > 2 {
		arg = os.Args[2]
	}
	n, _ := strconv.Atoi(arg) // 0 where there is no number
	switch verb {
	case "":
		view()
	case "exit":
		os.Exit(n)
	case "sleep":
		wait(syscall.SIGTERM)
	case "ignore-term":
		signal.Ignore(syscall.SIGTERM)
		wait(syscall.SIGUSR2)
	case "alloc":
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		wait(syscall.SIGTERM)
	case "print":
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintf(w, "line %d\n", i)
		}
		w.Flush()
	default:
		fmt.Fprintln(os.Stderr, "probe: unknown verb", verb)
		os.Exit(64)
	}
}

func wait(s os.Signal) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, s)
	fmt.Println("ready")
	<-c
	os.Exit(0)
}

func view() {
	v := View{Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid(), Status: map[string]string{}, Files: map[string]string{}}
	// What cannot be asked is left empty: the test that wants it then fails.
	v.Dir, _ = os.Getwd()
	v.Hostname, _ = os.Hostname()
	v.Groups, _ = os.Getgroups()
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		target, err := os.Readlink(l)
		if err == nil {
			v.FDs = append(v.FDs, filepath.Base(l)+" "+target)
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		k, val, _ := strings.Cut(strings.TrimSpace(line), ":")
		if strings.HasPrefix(k, "Cap") || k == "Seccomp" || k == "NoNewPrivs" {
			v.Status[k] = strings.TrimSpace(val)
		}
	}
	cg, _ := os.ReadFile("/proc/self/cgroup")
	v.Cgroup = string(cg)
	for _, f := range []string{"/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/proc/kcore", "/proc/sys/kernel/core_pattern"} {
		b := make([]byte, 256)
		h, err := os.Open(f)
		if err == nil {
			var n int
			n, _ = h.Read(b)
			h.Close()
			v.Files[f] = string(b[:n])
			continue
		}
		v.Files[f] = "error: " + err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}
