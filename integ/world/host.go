package world

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

// programs lists the processes of our executables with their first arguments; pids
// are left out, so that a program that was started again counts as the same.
func programs(o Options) ([]string, error) {
	if len(o.Programs) == 0 {
		return nil, nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, dir := range dirs {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil {
			continue // a kernel thread, or gone since
		}
		if !slices.Contains(o.Programs, filepath.Base(strings.TrimSuffix(exe, " (deleted)"))) {
			continue
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue // gone since, or a zombie
		}
		if o.Mentioning != "" {
			env, err := os.ReadFile(filepath.Join(dir, "environ"))
			if err != nil || !strings.Contains(string(line)+string(env), o.Mentioning) {
				continue
			}
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		found = append(found, strings.Join(args[:min(len(args), 7)], " "))
	}
	return found, nil
}

// cgroups lists the directories below our roots in every hierarchy.
func cgroups(o Options) ([]string, error) {
	hierarchies, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, h := range hierarchies {
		for _, root := range o.CgroupRoots {
			dirs, err := walk(filepath.Join(h.Mountpoint, root), fs.FileMode.IsDir)
			if err != nil {
				return nil, err
			}
			found = append(found, dirs...)
		}
	}
	return found, nil
}

// files lists what lies below our directories, with its kind and permissions.
func files(o Options) ([]string, error) {
	var found []string
	for _, dir := range o.Dirs {
		some, err := walk(dir, func(fs.FileMode) bool { return true })
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return found, nil
}

// walk lists path and what is below it; nothing when it does not exist. What
// disappears meanwhile is left out.
func walk(path string, want func(fs.FileMode) bool) ([]string, error) {
	var found []string
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if want(info.Mode()) {
			found = append(found, fmt.Sprintf("%s %s", info.Mode(), path))
		}
		return nil
	})
	return found, err
}

// mounts lists the mount points below our prefixes, as this process sees them.
func mounts(o Options) ([]string, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range all {
		if below(m.Mountpoint, o.MountPrefixes) {
			found = append(found, m.FSType+" "+m.Mountpoint)
		}
	}
	return found, nil
}

func below(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool {
		return path == p || strings.HasPrefix(path, p+"/")
	})
}

// netnsFiles lists the named network namespaces; the inode tells one that was made
// again under the same name.
func netnsFiles(o Options) ([]string, error) {
	var found []string
	for _, dir := range o.NetnsDirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			info, err := os.Stat(filepath.Join(dir, e.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			st, isStat := info.Sys().(*syscall.Stat_t)
			if !isStat {
				return nil, fmt.Errorf("%s: no inode", e.Name())
			}
			found = append(found, fmt.Sprintf("%s inode %d", filepath.Join(dir, e.Name()), st.Ino))
		}
	}
	return found, nil
}

// tcpListen is TCP_LISTEN of the kernel's net/tcp_states.h, as /proc/net/tcp shows it.
const tcpListen = "0A"

// sockets lists listening TCP sockets, bound UDP sockets and listening unix sockets
// below our prefixes, of the present network namespace.
func sockets(o Options) ([]string, error) {
	var found []string
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		err := lines("/proc/thread-self/net/"+proto, func(f []string) {
			// sl local_address rem_address st …; UDP sockets that wait for anyone have the
			// remote port 0.
			if len(f) < 4 || strings.HasPrefix(proto, "tcp") && f[3] != tcpListen || !strings.HasSuffix(f[2], ":0000") {
				return
			}
			host, port, _ := strings.Cut(f[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil || strings.HasPrefix(proto, "udp") && n == 0 {
				return
			}
			found = append(found, fmt.Sprintf("%s %s port %d", proto, host, n))
		})
		if err != nil {
			return nil, err
		}
	}
	const accepting = 0x10000 // __SO_ACCEPTCON of the kernel's net.h, in the flags of /proc/net/unix
	err := lines("/proc/thread-self/net/unix", func(f []string) {
		// Num RefCount Protocol Flags Type St Inode Path
		if len(f) < 8 {
			return
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err == nil && flags&accepting != 0 && below(f[7], o.SocketPrefixes) {
			found = append(found, "unix "+f[7])
		}
	})
	return found, err
}

// lines calls each with the fields of every line after the heading. A protocol that
// the kernel does not have has no lines.
func lines(path string, each func(fields []string)) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		each(strings.Fields(scan.Text()))
	}
	return scan.Err()
}
