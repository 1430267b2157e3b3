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

// localHosts is what every hosts file of a container's own namespace begins with.
const localHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
`

// writeContainerFiles makes the hosts, resolv.conf and hostname of a container with a
// network of its own, and fills the handle. A file that is there is kept: the container
// may have changed it.
func (n *Network) writeContainerFiles(t *task.Task, name string, h *Handle) error {
	c := t.Container(name)
	extra, err := extraHosts(c)
	if err != nil {
		return err
	}
	links, err := n.linkHosts(t, c)
	if err != nil {
		return err
	}
	resolv, err := n.resolvBase(t, h)
	if err != nil {
		return err
	}
	resolv = overrideResolv(resolv, &task.HostConfig{DNS: h.NameServers, DNSSearch: h.Search})
	return h.write(n.filesOf(keyOf(t, name)), localHosts+hostLine(h)+extra+links, overrideResolv(resolv, &c.HostConfig))
}

// setElastic enters the namespace and the first interface of an awsvpc task.
func (h *Handle) setElastic(path string, i *task.Interface) {
	h.Path, h.MAC = path, i.MAC
	address := i.First(false)
	if !address.IsValid() {
		address = i.First(true)
	}
	h.IP = address.String()
	if gws := i.Gateways(); len(gws) > 0 {
		h.Gateway = gws[0].Addr().String()
	}
	if i.PrivateDNSName != "" {
		h.Hostname = i.PrivateDNSName
	}
}

// writeElasticFiles makes the files that the containers of an awsvpc task share. Name
// servers and search list are those of the interface, else the host's (agent protocol,
// "Modes").
func (n *Network) writeElasticFiles(t *task.Task, _ string, h *Handle) error {
	hosts := localHosts
	for i := range t.Interfaces {
		e := &t.Interfaces[i]
		if e.PrivateDNSName == "" {
			continue
		}
		for _, a := range e.Addresses {
			hosts += a.String() + "\t" + e.PrivateDNSName + "\n"
		}
	}
	first := &t.Interfaces[0]
	resolv, err := n.resolvBase(t, h)
	if err != nil {
		return err
	}
	resolv = overrideResolv(resolv, &task.HostConfig{DNS: first.NameServers, DNSSearch: first.Domains})
	return h.write(n.filesOf(t.ID()), hosts, resolv)
}

// writeTaskFiles makes the files that the containers of a task share in host mode, and
// those of containers that have their own settings, and fills the handle.
func (n *Network) writeTaskFiles(t *task.Task, _ string, h *Handle) error {
	dir := n.filesOf(t.ID())
	hosts, err := n.hostsBase()
	if err != nil {
		return err
	}
	resolv, err := n.resolvBase(t, h)
	if err != nil {
		return err
	}
	if err := h.write(dir, hosts, resolv); err != nil {
		return err
	}
	for i := range t.Containers {
		c := &t.Containers[i]
		own := Files{}
		// Numbered, because a container's name may be as long as a file's.
		file := func(kind string) string { return filepath.Join(dir, fmt.Sprintf("%s.%d", kind, i)) }
		extra, err := extraHosts(c)
		if err != nil {
			return err
		}
		if extra != "" {
			own.Hosts = file("hosts")
			if err := writeOnce(own.Hosts, hosts+extra); err != nil {
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

// write makes the three files in dir and enters them into the handle.
func (h *Handle) write(dir, hosts, resolv string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("network files: %w", err)
	}
	h.Hosts, h.Resolv, h.HostnameFile = filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hostname")
	return errors.Join(
		writeOnce(h.Hosts, hosts),
		writeOnce(h.Resolv, resolv),
		writeOnce(h.HostnameFile, h.Hostname+"\n"),
	)
}

// hostLine names the container's own addresses.
func hostLine(h *Handle) string {
	var out string
	for _, ip := range []string{h.IP, h.IPv6} {
		if ip != "" {
			out += ip + "\t" + h.Hostname + "\n"
		}
	}
	return out
}

// extraHosts are a container's extraHosts.
func extraHosts(c *task.Container) (string, error) {
	var b strings.Builder
	for _, e := range c.HostConfig.ExtraHosts {
		name, addr, ok := strings.Cut(e, ":")
		if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); !ok || err != nil || name == "" || strings.ContainsAny(name, " \t\r\n#") {
			return "", faultf(task.Invalid, "container %s: extraHosts entry %q: must be NAME:ADDRESS", c.Name, e)
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(addr, "[]"), name)
	}
	return b.String(), nil
}

// linkHosts are the addresses of the containers that a container links to, by alias, name
// and host name. They must be there; in mode none there are no addresses to name.
func (n *Network) linkHosts(t *task.Task, c *task.Container) (string, error) {
	if t.NetworkMode != task.NetworkBridge {
		return "", nil
	}
	var b strings.Builder
	for _, l := range c.Links {
		name, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = name
		}
		target := t.Container(name)
		if target == nil || alias == "" || strings.ContainsAny(l, " \t\r\n#") {
			return "", faultf(task.Invalid, "container %s: link %q: must be NAME or NAME:ALIAS of a container of the task", c.Name, l)
		}
		if target.Config.NetworkDisabled {
			return "", faultf(task.Invalid, "container %s: link %q: container %s has disableNetworking and so no address", c.Name, l, name)
		}
		a := n.host.Lookup(attachment(keyOf(t, name)))
		if a == nil {
			return "", faultf(task.Unavailable, "container %s: link %q: container %s has no network yet", c.Name, l, name)
		}
		names := []string{alias}
		for _, other := range []string{name, target.Config.Hostname} {
			if other != "" && !slices.Contains(names, other) {
				names = append(names, other)
			}
		}
		for _, addr := range []netip.Addr{a.Address, a.Address6} {
			if addr.IsValid() {
				fmt.Fprintf(&b, "%s\t%s\n", addr, strings.Join(names, " "))
			}
		}
	}
	return b.String(), nil
}

// hostsBase is the host's own hosts file.
func (n *Network) hostsBase() (string, error) {
	data, err := os.ReadFile(n.cfg.Hosts)
	if errors.Is(err, fs.ErrNotExist) {
		return localHosts, nil
	}
	if err != nil {
		return "", fmt.Errorf("hosts of the host: %w", err)
	}
	return withNewline(string(data)), nil
}

// resolvBase is the host's resolv.conf, without the name servers that a network of its
// own does not reach.
func (n *Network) resolvBase(t *task.Task, h *Handle) (string, error) {
	data, err := os.ReadFile(n.cfg.Resolv)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("name servers of the host: %w", err)
	}
	var v4, v6 bool
	for i := range t.Interfaces {
		for _, a := range t.Interfaces[i].Addresses {
			v4, v6 = v4 || a.Is4(), v6 || a.Is6()
		}
	}
	if len(t.Interfaces) == 0 {
		v4, v6 = h.IP != "", h.IPv6 != ""
	}
	if t.NetworkMode == task.NetworkHost || !v4 && !v6 {
		return withNewline(string(data)), nil
	}
	text, servers := reachable(string(data), v4, v6)
	if servers > 0 {
		return text, nil
	}
	upstream, err := os.ReadFile(n.cfg.ResolvUpstream)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("name servers of the host: %w", err)
	}
	if text, servers := reachable(string(upstream), v4, v6); servers > 0 {
		return text, nil
	}
	n.log.Warn("the host has no name server that tasks with a network of their own could reach; set dnsServers in the container definition, or a name server that is not on a loopback address",
		"file", n.cfg.Resolv)
	return text, nil
}

// reachable is a resolv.conf without comments and without name servers on loopback
// addresses or in a family that the network does not have, and how many name servers it has.
func reachable(text string, v4, v6 bool) (out string, servers int) {
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
			if err != nil || addr.IsLoopback() || addr.Is4() && !v4 || addr.Is6() && (!v6 || addr.IsLinkLocalUnicast()) {
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
