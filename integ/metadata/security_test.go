package metadata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	wire "berth.dev/berth/wire/acs"
	"berth.dev/berth/wire/tmds"
)

// link is the interface of a guest.
type link struct {
	mac  net.HardwareAddr
	addr netip.Addr
}

func (g *guest) link() link {
	g.t.Helper()
	var l struct {
		MAC       []byte
		Addresses []string
		Err       string
	}
	if err := g.ask("/link", nil, &l); err != nil || l.Err != "" {
		g.t.Fatalf("%v %s", err, l.Err)
	}
	for _, a := range l.Addresses {
		if p, err := netip.ParsePrefix(a); err == nil && p.Addr().Is4() {
			return link{l.MAC, p.Addr()}
		}
	}
	g.t.Fatalf("no address in %v", l.Addresses)
	return link{}
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func frame(to, from net.HardwareAddr, kind uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(bytes.Clone(to), from...), kind), body...)
}

// claim is an ARP answer that nobody has asked for: addr is at mac (RFC 826).
func claim(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	b = append(append(b, mac...), addr.AsSlice()...)
	b = append(append(b, broadcast...), addr.AsSlice()...)
	return frame(broadcast, mac, 0x0806, b)
}

// datagram is a UDP packet with a source of its own choosing and no UDP checksum.
func datagram(to, from net.HardwareAddr, source, target netip.AddrPort, text string) []byte {
	n := uint16(28 + len(text))
	h := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 1, 0, 0, 64, 17, 0, 0}
	h = append(append(h, source.Addr().AsSlice()...), target.Addr().AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	h = binary.BigEndian.AppendUint16(h, source.Port())
	h = binary.BigEndian.AppendUint16(h, target.Port())
	h = binary.BigEndian.AppendUint16(h, n-20)
	return frame(to, from, 0x0800, append(append(h, 0, 0), text...))
}

// spoofed has a task pretend to be another one and the gateway, with frames of its own
// making.
func spoofed(t *testing.T, l *lab) {
	a, b := l.guests(t, types.NetworkModeBridge, 1, nil)[0], l.guests(t, types.NetworkModeBridge, 1, nil)[0]
	evil, victim := a.link(), b.link()
	gateway := netip.AddrFrom4([4]byte{victim.addr.As4()[0], victim.addr.As4()[1], victim.addr.As4()[2], 1})
	c, err := net.ListenPacket("udp4", host.Address+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := netip.MustParseAddrPort(c.LocalAddr().String())
	from := func(addr netip.Addr) netip.AddrPort { return netip.AddrPortFrom(addr, 5555) }
	var list [][]byte
	for range 20 {
		list = append(list, claim(evil.mac, victim.addr), claim(evil.mac, gateway), claim(victim.mac, victim.addr))
		list = append(list, datagram(broadcast, evil.mac, from(victim.addr), at, "spoofed"), datagram(broadcast, victim.mac, from(victim.addr), at, "spoofed"))
		// A DHCP server's offer for everybody (RFC 2131: from port 67 to 68).
		list = append(list, datagram(broadcast, evil.mac, netip.AddrPortFrom(evil.addr, 67), netip.MustParseAddrPort("255.255.255.255:68"), "offer"))
	}
	var sent answer
	if err := a.ask("/frames", list, &sent); err != nil || sent.Err != "" {
		t.Fatalf("frames: %v %s", err, sent.Err)
	}
	// Whoever is reached at the victim's port is still the victim, and it reaches its own.
	for range 5 {
		var env []string
		if err := b.ask("/env", nil, &env); err != nil || !strings.Contains(strings.Join(env, " "), b.v4()) {
			t.Fatalf("at the victim's port: %v, %q", err, env)
		}
		var tk tmds.Task
		b.get(b.v4()+"/task", &tk)
		if tk.TaskARN != aws.ToString(b.task.TaskArn) {
			t.Errorf("the victim is told of %s", tk.TaskARN)
		}
	}
	if got := b.do(fetch{URL: l.forward}); got.Status == 0 {
		t.Errorf("the victim has lost its gateway: %+v", got)
	}
	for _, f := range []string{"/proc/net/arp"} {
		table, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(table)) {
			if strings.HasPrefix(line, victim.addr.String()+" ") && strings.Contains(line, evil.mac.String()) {
				t.Errorf("the host believes it: %s", line)
			}
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, addr, err := c.ReadFrom(buf); err == nil {
		t.Errorf("the host got %q from %s", buf[:n], addr)
	}
	if err := a.ask("/address", nil, &sent); err != nil || !strings.Contains(sent.Err, "operation not permitted") {
		t.Errorf("a task gave its interface the well-known address: %v, %+v", err, sent)
	}
}

// impersonated has a task ask for the agent's session with what it could get hold of.
func impersonated(t *testing.T, l *lab) {
	g := l.guests(t, types.NetworkModeBridge, 1, withRole(l.role(t, "impersonator", "*")))[0]
	var mine tmds.Credentials
	g.get(g.credentialsURL(), &mine)
	st, err := l.AgentState()
	if err != nil {
		t.Fatal(err)
	}
	agents, err := l.Cluster.InstanceKey("AKIATESTINSTANCE0001").Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Cluster.InstanceKey("AKIAIMPERSONATOR01").Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stale := time.Now().Add(-20 * time.Minute)
	for name, tt := range map[string]struct {
		keys aws.Credentials
		at   time.Time
		edit func(http.Header)
	}{
		"no key":                  {},
		"a key of another host":   {keys: other, at: time.Now()},
		"the keys of a task role": {keys: aws.Credentials{AccessKeyID: mine.AccessKeyID, SecretAccessKey: mine.SecretAccessKey, SessionToken: mine.Token}, at: time.Now()},
		"a wrong secret":          {keys: aws.Credentials{AccessKeyID: agents.AccessKeyID, SecretAccessKey: "guess"}, at: time.Now()},
		"an old handshake":        {keys: agents, at: stale},
		"another handshake's signature": {keys: agents, at: time.Now(), edit: func(h http.Header) {
			h.Set("X-Amz-Date", time.Now().Add(time.Minute).UTC().Format("20060102T150405Z"))
		}},
	} {
		q := url.Values{"clusterArn": {st.Cluster}, "containerInstanceArn": {st.InstanceARN}, "sendCredentials": {"true"}, "seqNum": {"1"}, "protocolVersion": {"2"}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, l.forward+"/ws?"+q.Encode(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.keys.AccessKeyID != "" {
			sum := sha256.Sum256(nil)
			k, err := credentials.StaticCredentialsProvider{Value: tt.keys}.Retrieve(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if err := v4.NewSigner().SignHTTP(t.Context(), k, req, hex.EncodeToString(sum[:]), "ecs", acstest.LabRegion, tt.at); err != nil {
				t.Fatal(err)
			}
		}
		f := fetch{URL: req.URL.String(), Header: map[string]string{
			"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
		}}
		if tt.edit != nil {
			tt.edit(req.Header)
		}
		for k := range req.Header {
			f.Header[k] = req.Header.Get(k)
		}
		if got := g.do(f); got.Status != http.StatusBadRequest || !strings.Contains(got.Body, "Exception") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	after, err := l.AgentState()
	if err != nil || !after.Connected || after.PID != st.PID {
		t.Errorf("the agent's own session: %+v, %v", after, err)
	}
	g.get(g.credentialsURL(), &mine) // and it serves
}

// faults has a task in the host's network ask for faults. Where the kernel cannot delay
// packets it is told so; where it can, the guest of package vm measures it.
func faults(t *testing.T, l *lab) {
	g := l.guests(t, types.NetworkModeHost, 1, func(in *ecs.RegisterTaskDefinitionInput) { in.EnableFaultInjection = aws.Bool(true) })[0]
	post := func(path, body string) answer {
		return g.do(fetch{Method: http.MethodPost, URL: g.env["ECS_AGENT_URI"] + "/fault/v1/" + path, Body: body})
	}
	if got := post("network-latency/status", ""); got.Status != 200 || got.Body != `{"Status":"not-running"}` {
		t.Errorf("status: %+v", got)
	}
	const delay = `{"DelayMilliseconds":10,"JitterMilliseconds":1,"Sources":["192.0.2.0/24"]}`
	switch got := post("network-latency/start", delay); {
	case got.Status == 200 && got.Body == `{"Status":"running"}`:
	case got.Status == 500 && (strings.Contains(got.Body, "this host's kernel cannot delay packets") || strings.Contains(got.Body, "failed to resolve default host network interface")):
		t.Logf("no latency here: %s", got.Body)
	default:
		t.Errorf("start: %+v", got)
	}
	if got := post("network-latency/stop", ""); got.Status != 200 || got.Body != `{"Status":"stopped"}` {
		t.Errorf("stop: %+v", got)
	}
	if got := post("network-packet-loss/start", `{"LossPercent":100,"Sources":["192.0.2.0/24"]}`); got.Status != 200 {
		t.Errorf("loss: %+v", got)
	}
	if got := post("network-packet-loss/start", `{"LossPercent":100,"Sources":["192.0.2.0/24"]}`); got.Status != http.StatusTooManyRequests {
		t.Errorf("twice within 5 s: %+v", got)
	}
	if got := post("network-packet-loss/stop", ""); got.Body != `{"Status":"stopped"}` {
		t.Errorf("stop: %+v", got)
	}
}

// environmentOnTheHost has another user of the host look for what a container has in its
// environment.
func environmentOnTheHost(t *testing.T, l *lab) {
	const canary = "canary-7f3a9c1e55"
	g := l.guests(t, types.NetworkModeBridge, 1, func(in *ecs.RegisterTaskDefinitionInput) {
		in.ContainerDefinitions[0].Environment = []types.KeyValuePair{{Name: aws.String("PASSWORD"), Value: aws.String(canary)}}
	})[0]
	if g.env["PASSWORD"] != canary {
		t.Fatal("the container has no such variable")
	}
	// The directory of this system is closed as a whole, which that of a host is not.
	if err := os.Chmod(l.Dir, 0o755); err != nil { //nolint:gosec // as /var/lib is
		t.Fatal(err)
	}
	defer os.Chmod(l.Dir, 0o700) //nolint:errcheck // it is removed soon
	control := filepath.Join(l.Dir, "control")
	if err := os.WriteFile(control, []byte(canary), 0o644); err != nil { //nolint:gosec // everybody is to read it
		t.Fatal(err)
	}
	look := func(user ...string) string {
		t.Helper()
		args := append(user, "sh", "-c", `grep -rlsaF -D skip -f - "$0" /proc/[0-9]*/environ /proc/[0-9]*/cmdline; true`, l.Dir)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(canary)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if out := look("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"); out != control {
		t.Errorf("another user finds it in:\n%s\nwant %s alone", out, control)
	}
	if out := look("env"); !strings.Contains(out, "/environ") || !strings.Contains(out, control) {
		t.Errorf("root finds it in:\n%s\nso this test does not look", out)
	}
}

// foreignCredentials has a payload give a task the credentials of another.
func foreignCredentials(t *testing.T, l *lab) {
	b := l.guests(t, types.NetworkModeBridge, 1, withRole(l.role(t, "owner", "ecs:List*")))[0]
	var before, after tmds.Credentials
	b.get(b.credentialsURL(), &before)
	id := b.credentialsURL()[strings.LastIndexByte(b.credentialsURL(), '/')+1:]
	family := "borrower"
	alter := func(m *wire.PayloadMessage) {
		for i := range m.Tasks {
			if m.Tasks[i].Family == family && m.Tasks[i].RoleCredentials != nil {
				c := *m.Tasks[i].RoleCredentials
				c.CredentialsID, c.AccessKeyID = id, "AKIAFORGED"
				m.Tasks[i].RoleCredentials = &c
			}
		}
	}
	l.alter.Store(&alter)
	defer l.alter.Store(nil)
	in := guestDefinition(types.NetworkModeBridge, 30998)
	in.Family, in.TaskRoleArn = &family, aws.String(l.role(t, "borrower", "ecs:List*"))
	d := l.On(t)
	arn := d.Run(d.Register(in), 1)[0]
	defer d.Stop(arn)
	// Whatever becomes of the task, the other one's credentials are as they were.
	system.Until(t, 20*time.Second, "the task has been told to the agent", func() error {
		if tk := d.Describe(arn)[0]; aws.ToString(tk.LastStatus) == "PENDING" {
			return fmt.Errorf("it is PENDING")
		}
		return nil
	})
	tk := d.Describe(arn)[0]
	t.Logf("a task with another's credentials: %s", system.Explain(tk))
	b.get(b.credentialsURL(), &after)
	if after != before {
		t.Errorf("the owner's credentials were %s and are %s", before.AccessKeyID, after.AccessKeyID)
	}
}
