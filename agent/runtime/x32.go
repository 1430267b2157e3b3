package runtime

import (
	"bufio"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lacksX32 reports whether this host's kernel, whose files are below root, is known to
// have no x32 ABI. The kernel itself is asked only where no seccomp filter is set: one of
// systemd's SystemCallArchitectures=native ends the thread that asks. Elsewhere the
// configuration that the kernel was built with says it, if it is there to be read.
func lacksX32(root string) bool {
	if status, err := os.ReadFile(filepath.Join(root, "proc/self/status")); err == nil && strings.Contains(string(status), "\nSeccomp:\t0\n") {
		return !hasX32()
	}
	release := firstLine(filepath.Join(root, "proc/sys/kernel/osrelease"))
	for _, name := range []string{"boot/config-" + release, "lib/modules/" + release + "/config", "proc/config.gz"} {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			continue
		}
		defer f.Close()
		var text io.Reader = f
		if strings.HasSuffix(name, ".gz") {
			if text, err = gzip.NewReader(f); err != nil {
				return false
			}
		}
		return builtWithoutX32(text)
	}
	return false
}

// builtWithoutX32 reads a kernel's configuration, in which the option was CONFIG_X86_X32
// until Linux 5.18.
func builtWithoutX32(config io.Reader) bool {
	const limit = 4 << 20 // of bytes; they have a quarter of a million
	amd64 := false
	lines := bufio.NewScanner(io.LimitReader(config, limit))
	for lines.Scan() {
		switch lines.Text() {
		case "CONFIG_X86_64=y":
			amd64 = true
		case "CONFIG_X86_X32_ABI=y", "CONFIG_X86_X32=y":
			return false
		}
	}
	return amd64 && lines.Err() == nil
}

// hasX32 asks the kernel for getpid(2) by its x32 number.
func hasX32() bool {
	const x32Bit, getpid = 0x40000000, 39
	_, _, errno := unix.RawSyscall(x32Bit|getpid, 0, 0, 0)
	return errno != unix.ENOSYS
}
