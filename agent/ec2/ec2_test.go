package ec2_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/ec2"
	"berth.dev/berth/agent/ec2/ec2test"
)

func TestInstance(t *testing.T) {
	s := ec2test.Start(t, map[string]string{
		"dynamic/instance-identity/document":  `{"instanceId":"i-0123456789abcdef0","region":"eu-west-1"}`,
		"dynamic/instance-identity/signature": "signed",
		"user-data":                           `{"ECSAgentConfiguration":{"Cluster":"prod"}}`,
		"meta-data/tags/instance":             "Name\naws:autoscaling:groupName\nteam",
		"meta-data/tags/instance/Name":        "node 1", "meta-data/tags/instance/team": "a",
	})
	i := ec2.New(s.URL)
	id, err := i.Identity(t.Context())
	if err != nil || id.InstanceID != "i-0123456789abcdef0" || id.Region != "eu-west-1" || id.Signature != "signed" {
		t.Errorf("identity %+v, %v", id, err)
	}
	if b, err := i.UserData(t.Context()); err != nil || string(b) != `{"ECSAgentConfiguration":{"Cluster":"prod"}}` {
		t.Errorf("user data %q, %v", b, err)
	}
	tags, err := i.Tags(t.Context())
	if d := cmp.Diff(map[string]string{"Name": "node 1", "team": "a"}, tags); d != "" || err != nil {
		t.Errorf("tags, %v:\n%s", err, d)
	}
	for _, ask := range []func(context.Context) (string, error){i.Notice, i.Lifecycle} {
		if got, err := ask(t.Context()); got != "" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	s.Set("meta-data/events/recommendations/rebalance", `{"noticeTime":"2026-01-01T00:00:00Z"}`)
	if got, err := i.Notice(t.Context()); err != nil || got != `rebalance recommendation {"noticeTime":"2026-01-01T00:00:00Z"}` {
		t.Errorf("%q, %v", got, err)
	}
	s.Set("meta-data/spot/instance-action", `{"action":"terminate"}`)
	if got, err := i.Notice(t.Context()); err != nil || got != `spot interruption {"action":"terminate"}` {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNothingThere(t *testing.T) {
	i := ec2.New(ec2test.Start(t, nil).URL)
	if id, err := i.Identity(t.Context()); err == nil {
		t.Errorf("identity %+v", id)
	}
	if b, err := i.UserData(t.Context()); err != nil || b != nil && len(b) > 0 {
		t.Errorf("user data %q, %v", b, err)
	}
	if _, err := ec2.New("http://127.0.0.1:1").Lifecycle(t.Context()); err == nil {
		t.Error("a service that is not there answers")
	}
}
