package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/eni/enitest"
)

const asPlugin = "BERTH_TEST_AS_PLUGIN"

func TestMain(m *testing.M) {
	if os.Getenv(asPlugin) != "" {
		os.Exit(run())
	}
	os.Exit(enitest.Main(m))
}

const mac = "02:00:00:00:05:01"

// plug adds the device to the host.
func plug(t *testing.T) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ens8", HardwareAddr: hw}, PeerName: "gw8"}); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName("gw8")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(peer) })
	if err := netlink.LinkSetUp(peer); err != nil {
		t.Fatal(err)
	}
}

// execute runs the program as a CNI runtime does.
func execute(t *testing.T, verb, ns, conf string) (string, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{asPlugin + "=1", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=box", "CNI_NETNS=" + ns, "CNI_IFNAME=eth0", "CNI_PATH=/nowhere"}
	cmd.Stdin = strings.NewReader(conf)
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	return out.String(), err
}

func conf(dir, previous string) string {
	return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","type":"ecs-eni","dataDir":%q,"eniMACAddress":%q,
		"eniIPAddresses":["10.8.0.9/24"],"gatewayIPAddresses":["10.8.0.1"],"blockInstanceMetadata":true%s}`, dir, mac, previous)
}

// inside is what a namespace has of the network.
func inside(t *testing.T, ns string) string {
	t.Helper()
	var out []byte
	err := enitest.In(ns, func() (err error) {
		out, err = exec.Command("sh", "-c", "ip -o addr show dev eth0 | sed 's/^[0-9]*: //'; ip -o link show dev eth0 | grep -o 'link/ether [0-9a-f:]*'; ip route show table all | sort").Output() // ip complains of the other end of a veth pair now and then
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestProgramDoesTheSameAsTheCall attaches once by the program and once by the library.
func TestProgramDoesTheSameAsTheCall(t *testing.T) {
	enitest.Root(t)
	plug(t)
	dir := t.TempDir()
	byProgram, byCall := enitest.Namespace(t), enitest.Namespace(t)
	printed, err := execute(t, "ADD", byProgram, conf(dir, ""))
	if err != nil {
		t.Fatalf("ADD: %v: %s", err, printed)
	}
	if out, err := execute(t, "ADD", byProgram, conf(dir, "")); err == nil || !strings.Contains(out, "attached already") {
		t.Errorf("second ADD: %v: %s", err, out)
	}
	if out, err := execute(t, "CHECK", byProgram, conf(dir, `,"prevResult":`+printed)); err != nil {
		t.Errorf("CHECK: %v: %s", err, out)
	}
	after := inside(t, byProgram)
	for range 2 {
		if out, err := execute(t, "DEL", byProgram, conf(dir, "")); err != nil {
			t.Fatalf("DEL: %v: %s", err, out)
		}
	}
	h, err := elastic.Open(filepath.Join(dir, "net"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := h.Add(context.Background(), elastic.Request{
		Key: elastic.Key{ID: "box", IfName: "eth0"}, Namespace: byCall, MAC: mac, BlockMetadata: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.9/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.8.0.1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(after, inside(t, byCall)); diff != "" {
		t.Errorf("namespace (-program +call):\n%s", diff)
	}
	result, err := json.Marshal(a.Result())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(decode(t, strings.ReplaceAll(printed, byProgram, byCall)), decode(t, string(result))); diff != "" {
		t.Errorf("result (-program +call):\n%s", diff)
	}
	if err := h.Del(context.Background(), a.Key()); err != nil {
		t.Fatal(err)
	}
}

func decode(t *testing.T, s string) (v map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	delete(v, "dns") // the library of CNI prints an empty one
	return v
}

func TestVerbs(t *testing.T) {
	enitest.Root(t)
	dir := t.TempDir()
	for _, tc := range []struct{ verb, conf, want string }{
		{"VERSION", `{"cniVersion":"1.1.0"}`, `"1.1.0"`},
		{"STATUS", conf(dir, ""), ""},
		{"GC", conf(dir, `,"cni.dev/valid-attachments":[]`), ""},
		{"DEL", conf(dir, ""), ""},
		{"ADD", "]", `"code"`},
	} {
		out, err := execute(t, tc.verb, enitest.Namespace(t), tc.conf)
		if (err != nil) != (tc.verb == "ADD") || !strings.Contains(out, tc.want) {
			t.Errorf("%s: %v: %s", tc.verb, err, out)
		}
	}
}
