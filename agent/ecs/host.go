package ecs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// HostFacts is what a registration says of the machine.
type HostFacts struct {
	CPUs         int    // logical processors that are online
	MemoryMiB    int64  // MemTotal
	OSFamily     string // ID_VERSION_ID of /etc/os-release, such as debian_12; empty when unknown
	Architecture string // as the attribute ecs.cpu-architecture has it: x86_64, arm64

	// IPv6 and VLAN say what the kernel has. The caller fills them in.
	IPv6, VLAN bool

	// GPUs are the ids of those that tasks may be given. The caller fills them in.
	GPUs []string

	// Capabilities are the attributes for what this host has and others may lack:
	// runtimes, AppArmor, SELinux. The caller fills them in.
	Capabilities []string

	// IdentityDocument and IdentitySignature are those of an EC2 instance, Tags its owner's.
	// The caller fills them in.
	IdentityDocument, IdentitySignature string
	Tags                                map[string]string
}

// Gather reads the facts of this host from /proc and /etc/os-release.
func Gather() (HostFacts, error) {
	var h HostFacts
	stat, err1 := os.ReadFile("/proc/stat")
	info, err2 := os.ReadFile("/proc/meminfo")
	if err := errors.Join(err1, err2); err != nil {
		return h, fmt.Errorf("host facts: %w", err)
	}
	h.CPUs = parseCPUs(stat)
	var err error
	if h.MemoryMiB, err = parseMemory(info); err != nil {
		return h, fmt.Errorf("host facts: %w", err)
	}
	if h.CPUs == 0 {
		return h, errors.New("host facts: /proc/stat lists no processor")
	}
	if release, err := os.ReadFile("/etc/os-release"); err == nil { // many images have none
		h.OSFamily = parseOSFamily(release)
	}
	h.Architecture = architecture(runtime.GOARCH)
	return h, nil
}

// parseCPUs counts the lines "cpuN" of /proc/stat, one per processor that is online.
func parseCPUs(stat []byte) int {
	n := 0
	for line := range bytes.Lines(stat) {
		name, _, _ := bytes.Cut(line, []byte(" "))
		if number, ok := bytes.CutPrefix(name, []byte("cpu")); ok {
			if _, err := strconv.ParseUint(string(number), 10, 16); err == nil {
				n++
			}
		}
	}
	return n
}

// parseMemory finds MemTotal in /proc/meminfo, which is in KiB, and gives MiB.
func parseMemory(info []byte) (int64, error) {
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "MemTotal:" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil || kib < 0 || len(fields) > 2 && fields[2] != "kB" {
			break
		}
		return kib / 1024, nil
	}
	return 0, errors.New("/proc/meminfo has no usable MemTotal")
}

// parseOSFamily gives ID_VERSION_ID of an os-release file, or ID alone.
func parseOSFamily(release []byte) string {
	values := map[string]string{}
	for line := range strings.Lines(string(release)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[name] = strings.Trim(value, `"'`)
		}
	}
	id, version := values["ID"], values["VERSION_ID"]
	if id == "" || version == "" {
		return id
	}
	return id + "_" + version
}

func architecture(goarch string) string {
	switch goarch {
	case "amd64":
		return "x86_64"
	case "386":
		return "i386"
	default:
		return goarch
	}
}
