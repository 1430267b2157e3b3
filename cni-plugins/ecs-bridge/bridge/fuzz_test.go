package bridge

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/cni-plugins/plugin"
)

func FuzzCNIConfig(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `[`, `{"cniVersion":"1.1.0","name":"n","type":"ecs-bridge"}`,
		`{"cniVersion":"0.3.0","name":"../x","subnet":"10.0.0.0/33"}`,
		`{"cniVersion":"1.0.0","name":"n","subnet":"10.1.2.3/16","mtu":9000,"portRange":"1-2","bridge":"br0","table":"t","dataDir":"/x"}`,
		`{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"TCP"},{"containerPort":-1}]}}`,
		`{"cniVersion":"0.4.0","name":"n","prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"a"}],"ips":[{"version":"4","address":"10.0.0.2/24","interface":7}]}}`,
		`{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"group":"task"}}`,
		`{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, cfg, err := ParseNetConf(data)
		if err != nil {
			if KindOf(err) != Invalid {
				t.Errorf("an error without a kind: %v", err)
			}
			return
		}
		if !cfg.Subnet.Addr().Is4() || !strings.HasPrefix(cfg.Dir, "/") || filepath.Clean(cfg.Dir) != cfg.Dir || len(cfg.Bridge) > 15 {
			t.Errorf("accepted %+v", cfg)
		}
		ports, err := n.ports()
		if err != nil {
			t.Fatal("ports that were accepted are refused")
		}
		a := &Attachment{ID: "c", IfName: "eth0", Address: netip.MustParseAddr("10.0.0.2"), Gateway: netip.MustParseAddr("10.0.0.1"), Ports: ports}
		var e elements
		e.add(a)
		if r, err := plugin.WithPrevious(&n.PluginConf, a.Result()); err == nil {
			if _, err := r.GetAsVersion("0.3.0"); err != nil {
				t.Errorf("result: %v", err)
			}
		}
	})
}
