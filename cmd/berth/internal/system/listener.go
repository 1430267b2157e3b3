package system

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ours are the base names of Berth's programs.
var ours = []string{"berth", "berth-agent", "berth-logger", "berth-shipper", "berth-pause", "my-image"}

// Listener says who listens on a TCP address of this network namespace: "" for
// nobody, "berth" for one of Berth's programs, else the program's name and pid.
func Listener(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	want, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return ""
	}
	inodes := map[string]bool{}
	for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		listening(file, want, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*") // one that cannot be read is not there
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil || !inodes[strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil {
			continue
		}
		name := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
		if slices.Contains(ours, name) {
			return "berth"
		}
		return fmt.Sprintf("%s (pid %s)", name, filepath.Base(dir))
	}
	return "a program that cannot be seen from here"
}

// listening adds the inodes of the sockets of a /proc/net/tcp file that listen on port.
func listening(file string, port uint64, inodes map[string]bool) {
	f, err := os.Open(file)
	if err != nil {
		return // no such protocol
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode; state 0A is LISTEN
		fields := strings.Fields(scan.Text())
		if len(fields) < 10 || fields[3] != "0A" {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && n == port {
			inodes[fields[9]] = true
		}
	}
}
