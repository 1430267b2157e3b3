package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"
)

// localHosts is what every hosts file of a task's own namespace begins with.
const localHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
`

// writeFiles makes the task's hosts, resolv.conf and hostname, and those of containers
// that have their own settings, and fills the handle. A file that is there is kept: a
// container may have changed it.
func (n *Network) writeFiles(t *task.Task, h *Handle) error {
	dir := n.filesOf(t.ID())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("network files of the task: %w", err)
	}
	hosts, err := n.hostsBase(t.NetworkMode)
	if err != nil {
		return err
	}
	resolv, err := n.resolvBase(t.NetworkMode)
	if err != nil {
		return err
	}
	h.Hosts, h.Resolv, h.HostnameFile = filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hostname")
	if err := errors.Join(
		writeOnce(h.Hosts, hosts+hostLine(h, h.Hostname)),
		writeOnce(h.Resolv, resolv),
		writeOnce(h.HostnameFile, h.Hostname+"\n"),
	); err != nil {
		return err
	}
	for i := range t.Containers {
		c := &t.Containers[i]
		own := Files{}
		// Numbered, because a container's name may be as long as a file's.
		file := func(kind string) string { return filepath.Join(dir, fmt.Sprintf("%s.%d", kind, i)) }
		name := h.Hostname
		if c.Config.Hostname != "" && t.NetworkMode != task.NetworkHost {
			name = c.Config.Hostname
			own.HostnameFile = file("hostname")
			if err := writeOnce(own.HostnameFile, name+"\n"); err != nil {
				return err
			}
		}
		extra, err := extraHosts(c, h)
		if err != nil {
			return err
		}
		if extra != "" || name != h.Hostname {
			own.Hosts = file("hosts")
			if err := writeOnce(own.Hosts, hosts+hostLine(h, name)+extra); err != nil {
				return err
			}
		}
		if hc := &c.HostConfig; len(hc.DNS)+len(hc.DNSSearch)+len(hc.DNSOptions) > 0 {
			own.Resolv = file("resolv.conf")
			if err := writeOnce(own.Resolv, overrideResolv(resolv, hc)); err != nil {
				return err
			}
		}
		if own != (Files{}) {
			if h.Containers == nil {
				h.Containers = map[string]Files{}
			}
			h.Containers[c.Name] = own
		}
	}
	return nil
}

// hostLine names the task's own address.
func hostLine(h *Handle, name string) string {
	if h.IP == "" {
		return ""
	}
	return h.IP + "\t" + name + "\n"
}

// extraHosts are a container's extraHosts and, as the containers of a task share one
// address, the names of those that it links to.
func extraHosts(c *task.Container, h *Handle) (string, error) {
	var b strings.Builder
	for _, e := range c.HostConfig.ExtraHosts {
		name, addr, ok := strings.Cut(e, ":")
		if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); !ok || err != nil || name == "" || strings.ContainsAny(name, " \t\r\n#") {
			return "", faultf(task.Invalid, "container %s: extraHosts entry %q: must be NAME:ADDRESS", c.Name, e)
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(addr, "[]"), name)
	}
	if h.IP != "" {
		for _, l := range c.Links {
			name, alias, ok := strings.Cut(l, ":")
			if !ok {
				alias = name
			}
			if strings.ContainsAny(l, " \t\r\n#") {
				return "", faultf(task.Invalid, "container %s: link %q: must be NAME or NAME:ALIAS", c.Name, l)
			}
			fmt.Fprintf(&b, "%s\t%s\n", h.IP, strings.Join(slices.Compact([]string{alias, name}), " "))
		}
	}
	return b.String(), nil
}

func (n *Network) hostsBase(mode string) (string, error) {
	if mode != task.NetworkHost {
		return localHosts, nil
	}
	data, err := os.ReadFile(n.cfg.Hosts)
	if errors.Is(err, fs.ErrNotExist) {
		return localHosts, nil
	}
	if err != nil {
		return "", fmt.Errorf("hosts of the host: %w", err)
	}
	return withNewline(string(data)), nil
}

func (n *Network) resolvBase(mode string) (string, error) {
	data, err := os.ReadFile(n.cfg.Resolv)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("name servers of the host: %w", err)
	}
	if mode != task.NetworkBridge {
		return withNewline(string(data)), nil
	}
	text, servers := reachable(string(data))
	if servers > 0 {
		return text, nil
	}
	upstream, err := os.ReadFile(n.cfg.ResolvUpstream)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("name servers of the host: %w", err)
	}
	if text, servers := reachable(string(upstream)); servers > 0 {
		return text, nil
	}
	n.log.Warn("the host has no name server that tasks in bridge mode could reach; set dnsServers in the container definition, or a name server that is not on a loopback address",
		"file", n.cfg.Resolv)
	return text, nil
}

// reachable is a resolv.conf without name servers on loopback addresses and comments,
// and how many name servers it has.
func reachable(text string) (out string, servers int) {
	var b strings.Builder
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		if fields[0] == "nameserver" {
			if len(fields) < 2 {
				continue
			}
			addr, err := netip.ParseAddr(fields[1])
			// Tasks have IPv4 only.
			if err != nil || !addr.Is4() || addr.IsLoopback() {
				continue
			}
			servers++
		}
		b.WriteString(strings.Join(fields, " ") + "\n")
	}
	return b.String(), servers
}

// overrideResolv replaces what a container sets itself.
func overrideResolv(base string, hc *task.HostConfig) string {
	var b strings.Builder
	for line := range strings.Lines(base) {
		kind, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case kind == "nameserver" && len(hc.DNS) > 0,
			(kind == "search" || kind == "domain") && len(hc.DNSSearch) > 0,
			kind == "options" && len(hc.DNSOptions) > 0:
		default:
			b.WriteString(line)
		}
	}
	// A line of its own each: a newline inside a value must not start another.
	oneLine := strings.NewReplacer("\n", " ", "\r", " ")
	for _, s := range hc.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", oneLine.Replace(s))
	}
	if len(hc.DNSSearch) > 0 && !slices.Equal(hc.DNSSearch, []string{"."}) {
		fmt.Fprintf(&b, "search %s\n", oneLine.Replace(strings.Join(hc.DNSSearch, " ")))
	}
	if len(hc.DNSOptions) > 0 {
		fmt.Fprintf(&b, "options %s\n", oneLine.Replace(strings.Join(hc.DNSOptions, " ")))
	}
	return b.String()
}

func withNewline(s string) string {
	if s != "" && !strings.HasSuffix(s, "\n") {
		return s + "\n"
	}
	return s
}

// writeOnce makes a file that appears complete or not at all, and leaves one that is
// there. It is not fsynced: after a power cut the task's network is made anew.
func writeOnce(path, text string) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
