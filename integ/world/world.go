// Package world takes snapshots of everything on a host that running tasks may leave
// behind, and compares them: tests use it to show that nothing was leaked.
//
// A snapshot is sets of names without what changes by itself (counters, handles,
// sizes, times). Neighbour entries are left out, because the kernel keeps them for
// minutes after the last user is gone; so are links' addresses made by chance.
package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Names of the sets of a snapshot.
const (
	Containers = "containers" // containerd, per namespace
	Processes  = "processes"  // containerd's task records, per namespace
	Snapshots  = "snapshots"
	Leases     = "leases"
	Ingests    = "ingests"
	Programs   = "programs" // Berth's own programs, shims, log writers
	Cgroups    = "cgroups"
	Mounts     = "mounts"
	Netns      = "netns"
	Links      = "links"
	Routes     = "routes"
	Firewall   = "firewall"
	Files      = "files"
	Sockets    = "sockets"
)

// Options say where to look. Empty members leave the sets that need them out, except
// the ones of the present network namespace, which are always taken.
type Options struct {
	// Containerds are clients of containerd, each for one namespace.
	Containerds []Containerd
	// Programs are base names of executables that count as Berth's.
	Programs []string
	// Mentioning, when set, counts only those of them whose arguments or environment
	// mention it, such as the directory of one system of several.
	Mentioning string
	// CgroupRoots are the names of our top cgroups in every hierarchy, without slashes.
	CgroupRoots []string
	// MountPrefixes are the paths below which mounts are ours.
	MountPrefixes []string
	// NetnsDirs hold the mounts of network namespaces.
	NetnsDirs []string
	// Dirs are walked for files.
	Dirs []string
	// SocketPrefixes are the paths below which listening unix sockets are ours.
	SocketPrefixes []string
}

// Host is the options for the system that "berth up" starts with its default paths.
func Host() Options {
	return Options{
		Programs:       []string{"berth", "berth-agent", "berth-logger", "berth-shipper", "berth-pause", "containerd-shim-runc-v2", "my-image"},
		CgroupRoots:    []string{"ecs", "ecstasks.slice"},
		MountPrefixes:  []string{"/run/berth", "/var/lib/berth", "/run/netns"},
		NetnsDirs:      []string{"/run/netns", "/run/berth/network/namespaces"},
		Dirs:           []string{"/run/berth", "/var/lib/berth", "/var/log/berth"},
		SocketPrefixes: []string{"/run/berth", "/run/containerd"},
	}
}

// Below moves the paths of o below root, as "berth --root" does.
func (o Options) Below(root string) Options {
	under := func(paths []string) []string {
		moved := make([]string, len(paths))
		for i, p := range paths {
			if moved[i] = p; !strings.HasPrefix(p, "/run/netns") {
				moved[i] = root + p
			}
		}
		return moved
	}
	o.MountPrefixes, o.NetnsDirs = under(o.MountPrefixes), under(o.NetnsDirs)
	o.Dirs, o.SocketPrefixes = under(o.Dirs), under(o.SocketPrefixes)
	return o
}

// Snapshot is what exists, by set; the items of a set are sorted.
type Snapshot map[string][]string

// Containerd lists what one namespace of a containerd holds, by kind: Containers,
// Processes, Snapshots, Leases and Ingests.
type Containerd interface {
	List(ctx context.Context) (map[string][]string, error)
}

// Take takes a snapshot. An error means that something could not be asked, and that
// there is no snapshot.
func Take(ctx context.Context, o Options) (Snapshot, error) {
	s := Snapshot{}
	for _, c := range o.Containerds {
		sets, err := c.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("world: containerd: %w", err)
		}
		for set, items := range sets {
			s[set] = append(s[set], items...)
		}
	}
	for _, take := range []struct {
		set  string
		list func(Options) ([]string, error)
	}{
		{Programs, programs}, {Cgroups, cgroups}, {Mounts, mounts}, {Netns, netnsFiles},
		{Links, links}, {Routes, routes}, {Files, files}, {Sockets, sockets},
	} {
		items, err := take.list(o)
		if err != nil {
			return nil, fmt.Errorf("world: %s: %w", take.set, err)
		}
		s[take.set] = items
	}
	rules, err := firewall(ctx)
	if err != nil {
		return nil, fmt.Errorf("world: %s: %w", Firewall, err)
	}
	s[Firewall] = rules
	for _, items := range s {
		slices.Sort(items)
	}
	return s, nil
}

// Residue is something that may differ, with the reason why that is no leak.
type Residue struct {
	Set    string
	Match  *regexp.Regexp
	Reason string
}

// Diff lists how after differs from before, one line an item: "+ set: item" for what
// is new and "- set: item" for what is gone. Items that a Residue matches are left out.
func Diff(before, after Snapshot, allowed ...Residue) []string {
	all := maps.Clone(before)
	maps.Copy(all, after)
	var lines []string
	for _, set := range slices.Sorted(maps.Keys(all)) {
		for sign, items := range map[string][]string{"+": without(after[set], before[set]), "-": without(before[set], after[set])} {
			for _, item := range items {
				if !slices.ContainsFunc(allowed, func(r Residue) bool { return r.Set == set && r.Match.MatchString(item) }) {
					lines = append(lines, fmt.Sprintf("%s %s: %s", sign, set, item))
				}
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// without is a less b, as multisets.
func without(a, b []string) []string {
	count := map[string]int{}
	for _, item := range b {
		count[item]++
	}
	var rest []string
	for _, item := range a {
		if count[item]--; count[item] < 0 {
			rest = append(rest, item)
		}
	}
	return rest
}

// Save writes s to a file.
func (s Snapshot) Save(path string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

// Load reads what Save wrote.
func Load(path string) (Snapshot, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s Snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s == nil {
		return nil, errors.New(path + " holds no snapshot")
	}
	return s, nil
}
