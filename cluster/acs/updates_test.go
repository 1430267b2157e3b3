package acs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/smithy-go"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/packages"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// updateLab is a lab with packages, and what its agents receive of updates.
type updateLab struct {
	*acstest.Lab
	dir  string
	sent chan acs.Message
	own  acstest.Config // of the agent
}

func newUpdateLab(t *testing.T, files ...string) *updateLab {
	t.Helper()
	u := &updateLab{dir: t.TempDir(), sent: make(chan acs.Message, 64)}
	for _, name := range files {
		if err := os.WriteFile(filepath.Join(u.dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u.Lab = acstest.NewLab(t, func(c *api.Config) { c.Packages = packages.New(u.dir) }, func(c *cacs.Config) {
		c.PackageURL = func(file string) string { return "https://cluster.test/packages/" + file }
	})
	if _, err := u.Operator.CreateCluster(t.Context(), &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	u.own = acstest.Config{
		Endpoint: u.URL, Region: acstest.LabRegion, Credentials: u.InstanceKey("AKIAUPDATES000000000"),
		Attributes: map[string]string{"ecs.cpu-architecture": "x86_64", "berth.capability.update.deb": ""},
		Receive: func(m acs.Message) bool {
			switch m.(type) {
			case *acs.StageUpdateMessage, *acs.PerformUpdateMessage:
				u.sent <- m
				return false
			}
			return true
		},
	}
	return u
}

// start starts the agent in a version, as a new process.
func (u *updateLab) start(t *testing.T, version string) *acstest.Agent {
	t.Helper()
	u.own.Version = version
	a, err := acstest.Start(context.Background(), u.own)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	u.own.ARN = a.ARN()
	acstest.WaitFor(t, "version "+version, func() bool {
		out, err := u.Operator.DescribeContainerInstances(context.Background(), &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{a.ARN()}})
		return err == nil && out.ContainerInstances[0].AgentConnected && aws.ToString(out.ContainerInstances[0].VersionInfo.AgentVersion) == version
	})
	return a
}

func (u *updateLab) ask(t *testing.T) (string, error) {
	t.Helper()
	out, err := u.Operator.UpdateContainerAgent(t.Context(), &ecs.UpdateContainerAgentInput{ContainerInstance: &u.own.ARN})
	if err != nil {
		return "", err
	}
	return string(out.ContainerInstance.AgentUpdateStatus), nil
}

func (u *updateLab) reach(t *testing.T, status string) {
	t.Helper()
	acstest.WaitFor(t, status, func() bool {
		out, err := u.Operator.DescribeContainerInstances(t.Context(), &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{u.own.ARN}})
		return err == nil && string(out.ContainerInstances[0].AgentUpdateStatus) == status
	})
}

func (u *updateLab) reason() (reason string) {
	u.Store.View(func(r store.Reader) {
		for _, i := range store.List(r, store.Instances, "") {
			reason = i.Update.Reason
		}
	})
	return reason
}

func answer(t *testing.T, a *acstest.Agent, m acs.Message, reason string) {
	t.Helper()
	id := ""
	switch m := m.(type) {
	case *acs.StageUpdateMessage:
		id = m.MessageID
	case *acs.PerformUpdateMessage:
		id = m.MessageID
	}
	var reply acs.Message = &acs.AckRequest{MessageID: id}
	if reason != "" {
		reply = &acs.NackRequest{MessageID: id, Reason: reason}
	}
	if err := a.Send(t.Context(), reply); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateOfAnAgent(t *testing.T) {
	u := newUpdateLab(t, "berth-agent_1.0.0_amd64.deb", "berth-agent_1.1.0_amd64.deb", "berth-agent-1.2.0-1.x86_64.rpm")
	a := u.start(t, "1.0.0")
	if got, err := u.ask(t); err != nil || got != "PENDING" {
		t.Fatalf("%s, %v", got, err)
	}
	stage, ok := (<-u.sent).(*acs.StageUpdateMessage)
	if !ok || stage.UpdateInfo.Location != "https://cluster.test/packages/berth-agent_1.1.0_amd64.deb" || len(stage.UpdateInfo.Signature) != 64 ||
		stage.UpdateInfo.Former == nil || !strings.HasSuffix(stage.UpdateInfo.Former.Location, "berth-agent_1.0.0_amd64.deb") {
		t.Fatalf("%+v", stage)
	}
	u.reach(t, "STAGING")
	if _, err := u.ask(t); errorCode(err) != "UpdateInProgressException" {
		t.Errorf("a second call: %v", err)
	}
	// The connection is lost before the answer: the agent is asked again.
	a.Disconnect()
	again := <-u.sent
	answer(t, a, again, "")
	perform, ok := (<-u.sent).(*acs.PerformUpdateMessage)
	if !ok || perform.UpdateInfo.Signature != stage.UpdateInfo.Signature {
		t.Fatalf("%+v", perform)
	}
	answer(t, a, perform, "")
	u.reach(t, "UPDATING")
	a.Close()
	u.start(t, "1.1.0")
	u.reach(t, "UPDATED")
	if _, err := u.ask(t); errorCode(err) != "NoUpdateAvailableException" {
		t.Errorf("when it runs: %v", err)
	}
	// The folder has the version before it alone: back.
	if err := os.Remove(filepath.Join(u.dir, "berth-agent_1.1.0_amd64.deb")); err != nil {
		t.Fatal(err)
	}
	if got, err := u.ask(t); err != nil || got != "PENDING" {
		t.Errorf("back: %s, %v", got, err)
	}
}

func TestUpdateFails(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		u := newUpdateLab(t, "berth-agent_1.1.0_amd64.deb")
		a := u.start(t, "1.0.0")
		if _, err := u.ask(t); err != nil {
			t.Fatal(err)
		}
		answer(t, a, <-u.sent, "Unable to download: no room")
		u.reach(t, "FAILED")
		if got := u.reason(); got != "Unable to download: no room" {
			t.Errorf("reason %q", got)
		}
		if got, err := u.ask(t); err != nil || got != "PENDING" { // it can be tried again
			t.Errorf("again: %s, %v", got, err)
		}
	})
	t.Run("comes back", func(t *testing.T) {
		u := newUpdateLab(t, "berth-agent_1.1.0_amd64.deb")
		a := u.start(t, "1.0.0")
		if _, err := u.ask(t); err != nil {
			t.Fatal(err)
		}
		answer(t, a, <-u.sent, "")
		answer(t, a, <-u.sent, "")
		a.Close()
		u.start(t, "1.0.0")
		u.reach(t, "FAILED")
		if got := u.reason(); !strings.HasPrefix(got, "version 1.0.0 has come back") {
			t.Errorf("reason %q", got)
		}
	})
	for name, c := range map[string]struct {
		files, attribute, version, want string
	}{
		"no packages": {"", "berth.capability.update.deb", "1.0.0", "NoUpdateAvailableException"},
		"disabled":    {"berth-agent_1.1.0_amd64.deb", "other", "1.0.0", "NoUpdateAvailableException"},
		"too far":     {"berth-agent_0.1.0_amd64.deb", "berth.capability.update.deb", "1.0.0", "NoUpdateAvailableException"},
		"no version":  {"berth-agent_1.1.0_amd64.deb", "berth.capability.update.deb", "dev", "MissingVersionException"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpdateLab(t)
			if c.files != "" {
				if err := os.WriteFile(filepath.Join(u.dir, c.files), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			u.own.Attributes = map[string]string{"ecs.cpu-architecture": "x86_64", c.attribute: ""}
			u.start(t, c.version)
			if _, err := u.ask(t); errorCode(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

func errorCode(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}
