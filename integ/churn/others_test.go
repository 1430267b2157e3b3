package churn

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/integ/system"
)

// others is other software on the host: a bridge with a port and an address, a firewall
// with sets and rules, and a container in a namespace of containerd's that is its own.
type others struct {
	t       *testing.T
	address string // of containerd
}

const (
	otherBridge    = "docker0"
	otherNamespace = "moby"
	otherContainer = "web-of-somebody"
)

// otherFirewall is like what other container tools and operators have: translations and
// drops on the hooks that Berth's rules are on.
const otherFirewall = `
table ip nat {
	map ports {
		type inet_service : ipv4_addr . inet_service
		elements = { 9999 : 172.29.0.2 . 80 }
	}
	chain DOCKER {
		tcp dport 9998 dnat to 172.29.0.2:80
	}
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump DOCKER
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.29.0.0/24 oifname != "docker0" masquerade
	}
}
table inet guard {
	set friends {
		type ipv4_addr
		flags interval
		elements = { 192.0.2.0/24 }
	}
	chain input {
		type filter hook input priority filter; policy accept;
		ip saddr @friends tcp dport 4444 drop
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "docker0" ip daddr 203.0.113.7 drop
	}
}
table bridge guard {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ether saddr 02:00:00:00:00:99 drop
	}
}
`

func (o *others) run(stdin string, args ...string) string {
	o.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		o.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newOthers is to be called before the system is started, so that it outlives the system
// and sees its teardown.
func newOthers(t *testing.T) *others {
	t.Helper()
	o := &others{t: t}
	o.run("", "ip", "link", "add", otherBridge, "type", "bridge")
	t.Cleanup(func() { o.run("", "ip", "link", "delete", otherBridge) })
	o.run("", "ip", "addr", "add", "172.29.0.1/24", "dev", otherBridge)
	o.run("", "ip", "link", "add", "vethother", "type", "veth", "peer", "name", "vethinside")
	t.Cleanup(func() { o.run("", "ip", "link", "delete", "vethother") })
	o.run("", "ip", "link", "set", "vethother", "master", otherBridge)
	o.run(otherFirewall, "nft", "-f", "-")
	t.Cleanup(func() {
		for _, table := range []string{"ip nat", "inet guard", "bridge guard"} {
			o.run("", append([]string{"nft", "delete", "table"}, strings.Fields(table)...)...)
		}
	})
	before := o.network()
	t.Cleanup(func() {
		if after := o.network(); after != before {
			t.Errorf("the network of others after the teardown:\n%s\nbefore:\n%s", after, before)
		}
	})
	return o
}

// inContainerd starts a container of somebody else's beside Berth's.
func (o *others) inContainerd(l *lab) {
	o.t.Helper()
	o.address = l.Containerd.Address
	if _, err := exec.LookPath("ctr"); err != nil {
		o.t.Fatalf("needs ctr of containerd: %v", err)
	}
	archive := o.t.TempDir() + "/image.tar"
	o.ctr("berth", "images", "export", archive, "docker.io/library/busybox:latest")
	o.ctr(otherNamespace, "images", "import", archive)
	o.ctr(otherNamespace, "run", "-d", "docker.io/library/busybox:latest", otherContainer, "sh", "-c", idle)
	o.t.Cleanup(func() {
		o.ctr(otherNamespace, "tasks", "kill", "-s", "SIGKILL", otherContainer)
		system.Until(o.t, 10*time.Second, "the other container is gone", func() error {
			out, err := exec.Command("ctr", "-a", o.address, "-n", otherNamespace, "containers", "delete", otherContainer).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	})
}

func (o *others) ctr(namespace string, args ...string) string {
	o.t.Helper()
	return o.run("", append([]string{"ctr", "-a", o.address, "-n", namespace}, args...)...)
}

// network is everything of the others' network, without what counts.
func (o *others) network() string {
	o.t.Helper()
	var b strings.Builder
	for _, table := range []string{"ip nat", "inet guard", "bridge guard"} {
		b.WriteString(o.run("", append([]string{"nft", "-s", "list", "table"}, strings.Fields(table)...)...))
	}
	for _, link := range []string{otherBridge, "vethother", "vethinside"} {
		b.WriteString(o.run("", "ip", "-d", "addr", "show", "dev", link))
	}
	b.WriteString(o.run("", "ip", "route", "show", "dev", otherBridge))
	// The timers of a bridge go on by themselves.
	var out []string
	for line := range strings.Lines(b.String()) {
		if !strings.Contains(line, "hello_timer") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// hash is everything of the others'.
func (o *others) hash() string {
	o.t.Helper()
	return o.network() + o.ctr(otherNamespace, "containers", "list") + o.ctr(otherNamespace, "tasks", "list") + o.ctr(otherNamespace, "images", "list", "-q")
}

func (o *others) unchanged(before string) {
	o.t.Helper()
	if after := o.hash(); after != before {
		o.t.Errorf("what others have has changed:\n%s\nbefore:\n%s", after, before)
	}
}

// fetches waits for the page of a task.
func fetches(t *testing.T, url string) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	system.Until(t, 15*time.Second, url, func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && string(b) != "page\n" {
			err = fmt.Errorf("%s: %q", resp.Status, b)
		}
		return err
	})
}
