package netns

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/eni"
)

// Owned lists every network on the host with the id of its task, and interfaces on the bridge that no
// task has.
func (n *Network) Owned(context.Context) ([]task.Owned, error) {
	keys := map[string]bool{}
	for _, dir := range []string{n.namespaces(), filepath.Join(n.cfg.Dir, "files")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, classify(err)
		}
		for _, e := range entries {
			keys[e.Name()] = true
		}
	}
	for _, a := range n.host.Attachments() {
		keys[a.ID] = true
	}
	enis, err := n.elastic.Attachments()
	if err != nil {
		return nil, classify(err)
	}
	for _, a := range enis {
		keys[a.ID] = true
	}
	joined, err := n.joinedKeys()
	if err != nil {
		return nil, classify(err)
	}
	maps.Copy(keys, joined)
	var out []task.Owned
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		data, err := json.Marshal(found{Key: key})
		if err != nil {
			return nil, err
		}
		// The container's name is not known, only its hash.
		id, name, own := strings.Cut(key, separator)
		if !own {
			name = sharedName
		}
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindNetwork, Name: name}, TaskID: id, Handle: data})
	}
	strays, err := n.strays()
	if err != nil {
		return nil, classify(err)
	}
	for _, name := range strays {
		data, err := json.Marshal(found{Interface: name})
		if err != nil {
			return nil, err
		}
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindNetwork, Name: name}, Handle: data})
	}
	return out, nil
}

// found is the handle of what Owned lists: a network, or an interface that it cannot
// ascribe to a task.
type found struct {
	Key       string `json:"key,omitempty"`
	Interface string `json:"interface,omitempty"`
}

// Sweep removes one thing that Owned listed.
func (n *Network) Sweep(ctx context.Context, o task.Owned) error {
	var s found
	if err := json.Unmarshal(o.Handle, &s); err != nil {
		return fault(task.Invalid, err)
	}
	if s.Key != "" {
		if s.Key[0] == '.' || strings.ContainsAny(s.Key, "/\x00") || TaskID(s.Key) != o.TaskID {
			return faultf(task.Invalid, "network %q of task %q is not a file name of that task", s.Key, o.TaskID)
		}
		return classify(n.remove(ctx, s.Key, forGood))
	}
	// Only what is a stray now: an interface may have got an owner since.
	strays, err := n.strays()
	if err != nil || !slices.Contains(strays, s.Interface) {
		return classify(err)
	}
	if n.cfg.Pool != nil && eni.OfPool(s.Interface) {
		return classify(n.cfg.Pool.RemoveStray(s.Interface))
	}
	return classify(n.host.RemoveStray(s.Interface))
}

// strays are the interfaces on the host that nobody has.
func (n *Network) strays() ([]string, error) {
	strays, err := n.host.Strays()
	if err != nil || n.cfg.Pool == nil {
		return strays, err
	}
	more, err := n.cfg.Pool.Strays(func(mac net.HardwareAddr) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.expected[mac.String()]
	})
	return append(strays, more...), err
}
