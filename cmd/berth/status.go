package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
	"berth.dev/berth/cmd/berth/internal/system"
)

// exitDown is what "berth status" exits with when a program does not run, as status
// commands of services do (LSB, "Init Script Actions").
const exitDown = 3

// programStatus is one line of "berth status".
type programStatus struct {
	Program string    `json:"program"`
	Running bool      `json:"running"`
	PID     int       `json:"pid,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Detail  string    `json:"detail"`
	Older   bool      `json:"olderBuild,omitempty"` // its file was replaced since it started
}

type statusReport struct {
	Programs  []programStatus    `json:"programs"`
	Agent     *system.AgentState `json:"agent,omitempty"`
	Health    json.RawMessage    `json:"health,omitempty"`
	Instances []instanceStatus   `json:"instances"`
	Problems  []string           `json:"problems"`
}

type instanceStatus struct {
	ID        string `json:"id"`
	Status    string `json:"status"`
	Connected bool   `json:"agentConnected"`
	Running   int32  `json:"runningTasks"`
	Pending   int32  `json:"pendingTasks"`
	CPU       int32  `json:"remainingCpu"`
	Memory    int32  `json:"remainingMemory"`
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the system on this host is",
		Long: `Shows the programs, the agent's connection and conditions, and the container
instances of the cluster. Exits with 0 when everything works and with 3 when
something does not run or does not answer.`,
		Example: `  berth status
  berth status --json | jq .agent`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			r := a.gatherStatus(c.Context())
			if a.screen.JSON {
				if err := a.screen.Value(r); err != nil {
					return err
				}
			} else {
				a.showStatus(r)
			}
			if len(r.Problems) > 0 {
				return &exit{code: exitDown}
			}
			return nil
		},
	}
}

func (a *app) gatherStatus(ctx context.Context) statusReport {
	r := statusReport{Programs: []programStatus{}, Instances: []instanceStatus{}, Problems: []string{}}
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	now, err := a.system.Layout.ReadSystem()
	if err != nil {
		problem("%v", err)
		return r
	}
	for _, name := range []string{system.Containerd, system.Cluster, system.Agent} {
		st := programStatus{Program: name, Detail: map[string]string{
			system.Containerd: now.Containerd, system.Cluster: now.URL, system.Agent: a.system.Layout.AgentSocket(),
		}[name]}
		if name == system.Containerd {
			version, err := a.system.ContainerdVersion(ctx, now.Containerd)
			if err != nil {
				problem("containerd: %v", err)
			}
			st.Detail = version + " " + st.Detail
			if !now.Private {
				st.Running, st.Detail = err == nil, st.Detail+" (the host's own)"
				r.Programs = append(r.Programs, st)
				continue
			}
		}
		p := a.system.Program(name)
		proc, err := p.Running()
		switch {
		case err != nil:
			problem("%v", err)
		case proc == nil:
			problem("the %s does not run; its log is %s; start it with: berth up", name, p.LogFile)
		default:
			st.Running, st.PID, st.Since, st.Older = true, proc.PID, proc.Started, proc.Replaced()
		}
		r.Programs = append(r.Programs, st)
	}
	if r.Agent, err = a.system.AgentState(ctx); err != nil {
		r.Agent = nil
		problem("%v", err)
	} else if !r.Agent.Connected {
		problem("the agent is not connected to the cluster; its log is %s", a.system.Program(system.Agent).LogFile)
	}
	if health, err := a.system.AgentHealth(ctx); err == nil {
		r.Health = health
	}
	if r.Instances, err = a.instances(ctx); err != nil {
		problem("%v", err)
	}
	return r
}

// instances lists the container instances of the cluster.
func (a *app) instances(ctx context.Context) ([]instanceStatus, error) {
	found := []instanceStatus{}
	api, cluster, err := a.api()
	if err != nil {
		return found, err
	}
	pages := ecs.NewListContainerInstancesPaginator(api, &ecs.ListContainerInstancesInput{Cluster: &cluster})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return found, api.Explain(err)
		}
		if len(page.ContainerInstanceArns) == 0 {
			break
		}
		out, err := api.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{
			Cluster: &cluster, ContainerInstances: page.ContainerInstanceArns,
		})
		if err != nil {
			return found, api.Explain(err)
		}
		for _, i := range out.ContainerInstances {
			found = append(found, instanceStatus{
				ID: operator.Tail(i.ContainerInstanceArn), Status: aws.ToString(i.Status), Connected: i.AgentConnected,
				Running: i.RunningTasksCount, Pending: i.PendingTasksCount,
				CPU: remaining(i.RemainingResources, "CPU"), Memory: remaining(i.RemainingResources, "MEMORY"),
			})
		}
	}
	return found, nil
}

func remaining(all []types.Resource, name string) int32 {
	for _, r := range all {
		if aws.ToString(r.Name) == name {
			return r.IntegerValue
		}
	}
	return 0
}

func (a *app) showStatus(r statusReport) {
	if len(r.Programs) > 0 {
		t := &screen.Table{}
		t.Row("PROGRAM", "STATE", "PID", "UP", "")
		for _, p := range r.Programs {
			state, pid, up := a.screen.Colour(screen.Bad, "down"), "-", "-"
			if p.Running {
				state = a.screen.Colour(screen.Good, "running")
			}
			if p.PID != 0 {
				pid, up = fmt.Sprint(p.PID), screen.Age(p.Since, time.Now())
			}
			detail := p.Detail
			if p.Older {
				detail += " (an older build than the present one; to change: berth down, berth up)"
			}
			t.Row(p.Program, state, pid, up, detail)
		}
		a.screen.Table(t)
	}
	if r.Agent != nil {
		connected := a.screen.Colour(screen.Good, "connected")
		if !r.Agent.Connected {
			connected = a.screen.Colour(screen.Bad, "not connected")
		}
		a.screen.Printf("\nAgent %s; tasks it knows: %d; state changes to report: %d\n", connected, r.Agent.Tasks, r.Agent.Outbox)
	}
	if len(r.Instances) > 0 {
		t := &screen.Table{}
		t.Row("INSTANCE", "STATUS", "CONNECTED", "RUNNING", "PENDING", "CPU LEFT", "MEMORY LEFT")
		for _, i := range r.Instances {
			connected := "yes"
			if !i.Connected {
				connected = a.screen.Colour(screen.Bad, "no")
			}
			t.Row(i.ID, i.Status, connected, fmt.Sprint(i.Running), fmt.Sprint(i.Pending), fmt.Sprint(i.CPU), fmt.Sprintf("%d MiB", i.Memory))
		}
		a.screen.Printf("\n")
		a.screen.Table(t)
	}
	for i, p := range r.Problems {
		if i == 0 && len(r.Programs) > 0 {
			a.screen.Printf("\n")
		}
		a.screen.Printf("%s\n", a.screen.Colour(screen.Bad, p))
	}
}
