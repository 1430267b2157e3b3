package tasks

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
)

// web is a container that serves a page with its own name.
func web(name string, port int, ports ...types.PortMapping) types.ContainerDefinition {
	c := named(name, shell(fmt.Sprintf("trap 'exit 0' TERM; mkdir /tmp/www && echo page of %s > /tmp/www/index.html && httpd -p %d -h /tmp/www && %s", name, port, loop)))
	c.PortMappings = ports
	return c
}

func port(container, host int32) types.PortMapping {
	return types.PortMapping{ContainerPort: &container, HostPort: &host, Protocol: types.TransportProtocolTcp}
}

// networks are about what a task can reach and who can reach it.
func networks() []scenario {
	mode := func(m types.NetworkMode) func(in *ecs.RegisterTaskDefinitionInput) {
		return func(in *ecs.RegisterTaskDefinitionInput) { in.NetworkMode = m }
	}
	return []scenario{
		{
			name: "bridge with ports", want: stopped(end{"main", 0, ""}, end{"other", 0, ""}),
			define:  task(mode(types.NetworkModeBridge), web("main", 80, port(80, 8080)), web("other", 81, port(81, 0))),
			running: bridgeWithPorts,
		},
		{
			name: "same port twice", want: stopped(end{"main", 0, ""}, end{"other", 0, ""}, end{"client", 0, ""}),
			define: task(mode(types.NetworkModeBridge),
				with(web("main", 80, port(80, 8082)), linksTo("other:peer")), web("other", 80, port(80, 8083)),
				with(named("client", shell("trap 'exit 0' TERM; "+fetch("peer")+"; "+fetch("main")+"; "+waits(0))), linksTo("other:peer", "main"))),
			running: samePortTwice,
		},
		{
			name: "bridge alone", want: exited(end{"main", 0, ""}), output: []string{"eth0", "lo"},
			define: task(mode(types.NetworkModeBridge), container("ls", "/sys/class/net")),
		},
		{
			name: "host network", want: stopped(end{"main", 0, ""}),
			define: task(mode(types.NetworkModeHost), web("main", 8090, types.PortMapping{ContainerPort: aws.Int32(8090)})),
			running: func(t *testing.T, l *lab, tk types.Task) {
				reachable(t, "127.0.0.1:8090", "page of main")
				outside(t, host.Address+":8090", "page of main")
				want := []types.NetworkBinding{{BindIP: aws.String("0.0.0.0"), ContainerPort: aws.Int32(8090), HostPort: aws.Int32(8090), Protocol: types.TransportProtocolTcp}}
				if diff := cmp.Diff(want, tk.Containers[0].NetworkBindings, cmpopts.IgnoreUnexported(types.NetworkBinding{})); diff != "" {
					t.Errorf("bindings (-want +got):\n%s", diff)
				}
			},
		},
		{
			name: "no network", want: exited(end{"main", 0, ""}), output: []string{"lo"},
			define: task(mode(types.NetworkModeNone), container("ls", "/sys/class/net")),
		},
		{
			name: "host name of the host", want: exited(end{"main", 0, ""}),
			define: task(mode(types.NetworkModeHost), container("hostname")),
			ended: func(t *testing.T, l *lab, tk types.Task) {
				name, err := os.Hostname()
				if err != nil {
					t.Fatal(err)
				}
				l.prints(t, tk, []string{name})
			},
		},
		{
			name: "names", want: exited(end{"main", 0, ""}),
			output: []string{"box", "192.0.2.7\tdb", "nameserver 192.0.2.53", "search example.org"},
			define: task(mode(types.NetworkModeBridge), with(
				shell("hostname; grep db /etc/hosts; cat /etc/resolv.conf; grep -q box /etc/hosts && test $(cat /etc/hostname) = box"),
				func(c *types.ContainerDefinition) {
					c.Hostname, c.DnsServers, c.DnsSearchDomains = aws.String("box"), []string{"192.0.2.53"}, []string{"example.org"}
					c.ExtraHosts = []types.HostEntry{{Hostname: aws.String("db"), IpAddress: aws.String("192.0.2.7")}}
				})),
		},
	}
}

// linksTo adds links to a container.
func linksTo(links ...string) func(c *types.ContainerDefinition) {
	return func(c *types.ContainerDefinition) { c.Links = links }
}

// fetch is a script that prints the page of a server on port 80, once it serves. Not
// wget: the one in Debian's static busybox crashes. Nor names for nc, for which that one
// needs libraries of the C library: the hosts file is read as a resolver would.
func fetch(name string) string {
	ip := fmt.Sprintf("$(awk '{for(i=2;i<=NF;i++) if($i==\"%s\") print $1}' /etc/hosts)", name)
	return fmt.Sprintf("until printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 %s 80 | tail -n 1 | grep page; do sleep 0.1; done", ip)
}

// samePortTwice reaches two containers of a task that serve the same port, from outside
// and from a third one by the names of its links.
func samePortTwice(t *testing.T, l *lab, tk types.Task) {
	for port, text := range map[int]string{8082: "page of main", 8083: "page of other"} {
		reachable(t, fmt.Sprintf("127.0.0.1:%d", port), text)
		outside(t, fmt.Sprintf("%s:%d", host.Address, port), text)
	}
	l.printed(t, tk, "client", "page of other")
	l.printed(t, tk, "client", "page of main")
	l.printed(t, tk, "client", "ready")
}

// bridgeWithPorts reaches a task from everywhere it can be reached from.
func bridgeWithPorts(t *testing.T, l *lab, tk types.Task) {
	bindings := map[string][]types.NetworkBinding{}
	for _, c := range tk.Containers {
		bindings[*c.Name] = c.NetworkBindings
	}
	want := []types.NetworkBinding{{BindIP: aws.String("0.0.0.0"), ContainerPort: aws.Int32(80), HostPort: aws.Int32(8080), Protocol: types.TransportProtocolTcp}}
	if diff := cmp.Diff(want, bindings["main"], cmpopts.IgnoreUnexported(types.NetworkBinding{})); diff != "" {
		t.Errorf("bindings (-want +got):\n%s", diff)
	}
	if len(bindings["other"]) != 1 {
		t.Fatalf("bindings of other: %+v", bindings["other"])
	}
	dynamic := aws.ToInt32(bindings["other"][0].HostPort)
	if dynamic < 40000 || dynamic > 40099 {
		t.Errorf("dynamic port %d, want one of 40000-40099", dynamic)
	}
	for _, page := range []struct {
		port int32
		text string
	}{{8080, "page of main"}, {dynamic, "page of other"}} {
		reachable(t, fmt.Sprintf("127.0.0.1:%d", page.port), page.text)
		outside(t, fmt.Sprintf("%s:%d", host.Address, page.port), page.text)
		l.fromTask(t, fmt.Sprintf("%s:%d", host.Address, page.port), page.text)
	}
}

// reachable gets a page from this host.
func reachable(t *testing.T, address, want string) {
	t.Helper()
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	system.Until(t, 10*time.Second, "page of "+address, func() error {
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if got := strings.TrimSpace(string(b)); err == nil && got != want {
			return fmt.Errorf("%s: %q", resp.Status, got)
		}
		return err
	})
}

// outside gets a page from another host.
func outside(t *testing.T, address, want string) {
	t.Helper()
	system.Until(t, 10*time.Second, "page of "+address+" from outside", func() error {
		out, err := host.OutsideCommand("curl", "-sS", "--max-time", "2", "http://"+address+"/").CombinedOutput()
		if got := strings.TrimSpace(string(out)); err == nil && got != want {
			return fmt.Errorf("got %q", got)
		}
		return err
	})
}

// fromTask gets a page from within another task.
func (l *lab) fromTask(t *testing.T, address, want string) {
	t.Helper()
	d := l.On(t)
	ip, port, _ := strings.Cut(address, ":")
	// Not wget: the one in Debian's static busybox crashes.
	get := fmt.Sprintf("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 %s %s | tail -n 1", ip, port)
	arn := d.Run(d.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("client"), ContainerDefinitions: []types.ContainerDefinition{shell(get)},
	}), 1)[0]
	tk := d.Wait("STOPPED", 20*time.Second, arn)[0]
	l.prints(t, tk, []string{want})
}
