package plugintest

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/eni/enitest"
)

// Call attaches in the process of the test what the program attaches when it is executed.
type Call struct {
	Add func(ns string) (types.Result, error)
	Del func() error
}

// Same attaches one namespace by the program, as the container "box", and then another by
// the call, and holds the results, the namespaces and the host to be the same.
func Same(t *testing.T, p *Network, call Call) {
	t.Helper()
	byProgram, byCall := enitest.Namespace(t), enitest.Namespace(t)
	printed := p.Must("ADD", "box", byProgram)
	ours := result(t, printed, byProgram)
	var want []string
	enitest.Eventually(t, "the interface has all of its addresses", func() bool {
		want = state(t, byProgram)
		return complete(printed, want)
	})
	host := p.Snapshot()
	p.Must("DEL", "box", byProgram)

	made, err := call.Add(byCall)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ours, result(t, made, byCall)); diff != "" {
		t.Errorf("result (-program +call):\n%s", diff)
	}
	var got []string
	if !enitest.Within(func() bool { got = state(t, byCall); return slices.Equal(want, got) }) {
		t.Errorf("namespace (-program +call):\n%s", cmp.Diff(want, got))
	}
	if diff := cmp.Diff(host, p.Snapshot()); diff != "" {
		t.Errorf("host (-program +call):\n%s", diff)
	}
	if err := call.Del(); err != nil {
		t.Fatal(err)
	}
}

// result is a result as JSON, whatever the path of its namespace.
func result(t *testing.T, r any, ns string) (v map[string]any) {
	t.Helper()
	text, err := json.Marshal(r)
	if err == nil {
		err = json.Unmarshal([]byte(strings.ReplaceAll(string(text), ns, "NAMESPACE")), &v)
	}
	if err != nil {
		t.Fatalf("result %v: %v", r, err)
	}
	delete(v, "dns") // the library of CNI prints an empty one
	return v
}

// complete reports whether the kernel has done what it does in its own time once an
// interface is up: it finds the carrier and makes a local route for each address.
func complete(printed map[string]any, state []string) bool {
	for _, ip := range printed["ips"].([]any) {
		address, _, _ := strings.Cut(ip.(map[string]any)["address"].(string), "/")
		if !slices.ContainsFunc(state, func(s string) bool { return strings.HasPrefix(s, "local "+address+" ") }) {
			return false
		}
	}
	return slices.ContainsFunc(state, func(s string) bool { return strings.HasPrefix(s, "eth0") && strings.Contains(s, " state UP ") })
}

// all prints everything that a network namespace consists of.
const all = `ip -d -o link; ip -o addr; ip route show table all; ip rule; ip -6 rule
cd /proc/sys/net && grep -r . ipv4/conf ipv4/ip_forward ipv6/conf; true`

var (
	// numbers are those of interfaces, which no two have in common.
	numbers = regexp.MustCompile(`^[0-9]+: |@if[0-9]+|link-netnsid [0-9]+ `)
	// own marks what the kernel makes of itself, at some time after the interface is up.
	own = regexp.MustCompile(`fe80:|^(multicast|anycast) |^ff00::/8`)
)

// state is everything that a namespace has, sorted.
func state(t *testing.T, ns string) []string {
	t.Helper()
	var out []byte
	if err := enitest.In(ns, func() (err error) {
		out, err = exec.Command("sh", "-c", all).Output() // ip complains of the other end of a veth pair now and then
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		line = numbers.ReplaceAllString(strings.TrimSpace(line), "")
		if line != "" && !own.MatchString(line) {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}
