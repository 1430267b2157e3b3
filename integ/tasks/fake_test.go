package tasks

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/agent/acs"
	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/ecs"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/intake"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/report"
	"berth.dev/berth/agent/runtime/runtimetest"
	"berth.dev/berth/agent/state"
	agenttask "berth.dev/berth/agent/task"
	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/integ/system"
	wire "berth.dev/berth/wire/acs"
)

// TestFakeRuntime plays the rows about the life of tasks on the runtime that exists only
// in memory, with the real cluster, session, intake, engine, state and reports around it:
// what other tests learn from the fake is then worth as much as the real thing.
func TestFakeRuntime(t *testing.T) {
	l := fakeLab(t)
	var rows []topic
	for _, tp := range topics() {
		if tp.fake {
			rows = append(rows, tp)
		}
	}
	if len(rows) == 0 {
		t.Fatal("no topic is for the fake")
	}
	t.Run("all", func(t *testing.T) { l.playAll(t, rows) })
}

// fakeLab is a cluster and an agent in this process whose containers are the fake's.
func fakeLab(t *testing.T) *lab {
	t.Helper()
	cluster := acstest.NewLab(t, nil, func(c *cacs.Config) { c.Faults = &cacs.Faults{Alter: hurry} })
	l := &lab{System: &system.System{Cluster: cluster, ECS: cluster.Operator}, fake: runtimetest.New()}
	log := slog.New(slog.DiscardHandler)

	settings, err := config.Load(config.Sources{EnvFiles: []string{}, JSONFile: t.TempDir() + "/none", Environ: []string{
		"ECS_BACKEND_HOST=" + cluster.URL, "AWS_DEFAULT_REGION=us-east-1", "ECS_EXTERNAL=true",
	}})
	if err != nil {
		t.Fatal(err)
	}
	facts, err := ecs.Gather()
	if err != nil {
		t.Fatal(err)
	}
	facts.CPUs, facts.MemoryMiB = 64, 65536
	identity := aws.CredentialsProvider(cluster.InstanceKey("AKIATESTINSTANCE0001"))
	api, err := ecs.New(settings, facts, identity, "fake", log)
	if err != nil {
		t.Fatal(err)
	}
	registration, err := api.Register(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	db, err := state.Open(t.Context(), state.Config{Dir: t.TempDir() + "/state", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Config{
		Store: db,
		Resources: []engine.Resource{
			nothing(agenttask.KindCgroup), nothing(agenttask.KindNetwork), nothing(agenttask.KindImage), nothing(agenttask.KindEndpoint),
			nothing(agenttask.KindVolume), l.fake,
		},
		Admission: engine.NewAdmission(engine.Share{CPU: 65536, Memory: 65536}, nil),
		Settings: plan.Settings{
			StopTimeout: 5 * time.Second, CreateTimeout: time.Minute, StartTimeout: time.Minute,
			PullTimeout: time.Minute, Retention: 10 * time.Second, Relist: time.Minute,
		},
		Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.view = e.View
	session, err := acs.New(acs.Config{
		Endpoint:    func(ctx context.Context) (string, error) { return api.Endpoint(ctx, registration.InstanceARN) },
		Credentials: identity, Region: acstest.LabRegion, Cluster: registration.Cluster, InstanceARN: registration.InstanceARN,
		AgentVersion: "1.86.0", AgentHash: "fake", RuntimeVersion: "containerd",
		Handler: intake.New(intake.Config{Engine: e, Store: db, Credentials: noCredentials{}, Log: log}), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	reporter := report.New(report.Config{Outbox: db, Submitter: api, Log: log})
	work.Go(func() { _ = session.Run(ctx) })  // ends with ctx and has no other end
	work.Go(func() { _ = reporter.Run(ctx) }) // likewise
	t.Cleanup(func() {
		cancel()
		work.Wait()
		e.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	system.Until(t, 10*time.Second, "the agent is connected", func() error {
		out, err := l.ECS.DescribeContainerInstances(context.Background(), &sdk.DescribeContainerInstancesInput{ContainerInstances: []string{registration.InstanceARN}})
		if err == nil && (len(out.ContainerInstances) != 1 || !out.ContainerInstances[0].AgentConnected) {
			err = errors.New("it is not")
		}
		return err
	})
	return l
}

// nothing stands for a kind of resource that always is there.
type nothing string

func (n nothing) Kind() string { return string(n) }

func (n nothing) Ensure(context.Context, *agenttask.Task, string, engine.Deps) (agenttask.Result, error) {
	return agenttask.Result{Handle: agenttask.Handle(`{}`)}, nil
}

func (n nothing) Remove(context.Context, *agenttask.Task, string, agenttask.Handle) error { return nil }

func (n nothing) Probe(context.Context, *agenttask.Task, string, agenttask.Handle) (agenttask.Observed, error) {
	return agenttask.Observed{Exists: true}, nil
}

type noCredentials struct{}

func (noCredentials) Set(string, string, wire.IAMRoleCredentials) {}

// viewOf asks the agent of a system for what it knows of a task.
func (l *lab) viewOf(arn string) (engine.View, error) {
	if l.view != nil {
		v, ok := l.view(arn)
		if !ok {
			return v, errors.New("the agent does not have the task")
		}
		return v, nil
	}
	var views []struct {
		Task      *agenttask.Task              `json:"task"`
		Known     agenttask.Known              `json:"known"`
		Resources map[string]*agenttask.Record `json:"resources"`
	}
	if err := l.Ask("/v1/tasks", &views); err != nil {
		return engine.View{}, err
	}
	for _, v := range views {
		if v.Task.ARN != arn {
			continue
		}
		out := engine.View{Task: v.Task, Known: v.Known}
		for id, r := range v.Resources {
			kind, name, _ := strings.Cut(id, "/")
			*out.Known.Resource(agenttask.ResourceID{Kind: kind, Name: name}) = *r
		}
		return out, nil
	}
	return engine.View{}, errors.New("the agent does not have the task")
}

// events is the agent's event log of a task, for the report of a failure.
func (l *lab) events(t *testing.T, arn string) string {
	if l.fake != nil {
		return ""
	}
	return l.On(t).Events(arn)
}
