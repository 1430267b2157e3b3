package resource

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchies are the cgroup mounts of the host.
type hierarchies struct {
	unified     bool     // version 2 alone; Mounts has one element
	mounts      []string // every mount, named and unified ones included
	controllers map[string]string
	second      string // the version 2 mount; empty if there is none
}

// findHierarchies reads the cgroup mounts below root from a mountinfo file (proc(5)).
// A host in hybrid mode, with version 1 controllers and an empty version 2 mount beside
// them, counts as version 1.
func findHierarchies(mountinfo, root string) (hierarchies, error) {
	h := hierarchies{controllers: map[string]string{}}
	f, err := os.Open(mountinfo)
	if err != nil {
		return h, fmt.Errorf("find cgroup mounts: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		place, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(place) < 5 || len(kind) < 3 || (place[4] != root && !strings.HasPrefix(place[4], root+"/")) {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			h.mounts = append(h.mounts, place[4])
			if h.second == "" || place[4] == root {
				h.second = place[4]
			}
			h.unified = h.unified || place[4] == root
		case "cgroup":
			h.mounts = append(h.mounts, place[4])
			for o := range strings.SplitSeq(kind[2], ",") {
				if !strings.HasPrefix(o, "name=") && !isMountOption(o) {
					h.controllers[o] = place[4]
				}
			}
		}
	}
	if err := sc.Err(); err != nil {
		return h, fmt.Errorf("find cgroup mounts: %w", err)
	}
	if len(h.mounts) == 0 {
		return h, fmt.Errorf("no cgroup file system is mounted below %s: mount it, or set ECS_CGROUP_PATH to where it is", root)
	}
	slices.Sort(h.mounts)
	h.mounts = slices.Compact(h.mounts)
	return h, nil
}

// isMountOption tells options of a version 1 mount from names of controllers.
func isMountOption(o string) bool {
	return slices.Contains([]string{"rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"}, o) || strings.HasPrefix(o, "release_agent=")
}

// tree is what is done to cgroup directories; tests put one of plain files in its place.
type tree struct {
	mkdir func(path string) error
	rmdir func(path string) error
}

func kernelTree() tree {
	return tree{
		mkdir: func(p string) error { return os.Mkdir(p, 0o755) },
		// os.Remove would try to unlink first, which costs a system call and hides EBUSY.
		rmdir: func(p string) error {
			if err := unix.Rmdir(p); err != nil {
				return &os.PathError{Op: "rmdir", Path: p, Err: err}
			}
			return nil
		},
	}
}

// make creates a directory that may exist.
func (t tree) make(path string) error {
	if err := t.mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	return nil
}

// removeAll removes a cgroup and those below it, deepest first. One that is not there
// is success; one that has processes gives EBUSY.
func (t tree) removeAll(path string) error {
	err := t.rmdir(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, listErr := os.ReadDir(path)
	if errors.Is(listErr, fs.ErrNotExist) {
		return nil
	}
	if listErr != nil {
		return fmt.Errorf("remove cgroup: %w", listErr)
	}
	nested := false
	for _, e := range entries {
		if e.IsDir() {
			nested = true
			if err := t.removeAll(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if nested {
		err = t.rmdir(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

// write sets one control file. It never creates one: a file that is not there means
// that the kernel lacks the control.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("cgroup control: %w", err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set %s of cgroup to %q: %w", file, value, err)
	}
	return nil
}

func readControl(dir, file string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return "", fmt.Errorf("cgroup control: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
