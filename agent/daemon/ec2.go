package daemon

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/ec2"
	"berth.dev/berth/agent/task"
)

const (
	// noticePeriod is how often an instance asks whether it is to be taken away; a spot
	// instance is told two minutes before.
	noticePeriod = 3 * time.Second
	// poolPeriod is how often one in a warm pool asks whether it has left it.
	poolPeriod = 5 * time.Second
	// imdsLimit is how long the start waits for the metadata service altogether.
	imdsLimit = 10 * time.Second
	// drainPeriod is how often a shutdown looks whether tasks still run.
	drainPeriod = 200 * time.Millisecond
)

// load reads the settings, for a run of the agent also those in the user data of an EC2
// instance, whose region is the default.
func load(ctx context.Context, run bool) (*config.Config, *ec2.Instance, error) {
	src := config.Sources{Environ: os.Environ()}
	c, err := config.Load(src)
	if err != nil || !run || c.Cluster.External || c.Cluster.NoIID {
		return c, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, imdsLimit)
	defer cancel()
	instance := ec2.New(c.Berth.IMDSEndpoint)
	id, err := instance.Identity(ctx)
	if err != nil {
		c.Warnings = append(c.Warnings, "this host is taken for one that is no EC2 instance; if that is so, set ECS_EXTERNAL=true: "+err.Error())
		return c, nil, nil
	}
	data, err := instance.UserData(ctx)
	if err != nil {
		return nil, nil, err
	}
	src.UserData = data
	if c, err = config.Load(src); err != nil {
		return nil, nil, err
	}
	if c.Cluster.Region == "" {
		c.Cluster.Region = id.Region
	}
	return c, instance, nil
}

// identify adds to the facts of this host who it is at EC2.
func (a *agent) identify(ctx context.Context) error {
	if a.o.EC2 == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, imdsLimit)
	defer cancel()
	id, err := a.o.EC2.Identity(ctx)
	if err != nil {
		return err
	}
	a.facts.IdentityDocument, a.facts.IdentitySignature = id.Document, id.Signature
	if a.c.Cluster.PropagateTagsFrom == "ec2_instance" {
		a.facts.Tags, err = a.o.EC2.Tags(ctx)
	}
	return err
}

// leaveWarmPool waits until the instance is not in a warm pool any more.
func (a *agent) leaveWarmPool(ctx context.Context) error {
	if a.o.EC2 == nil || !a.c.Cluster.WarmPools {
		return nil
	}
	for said := false; ; said = true {
		state, err := a.o.EC2.Lifecycle(ctx)
		if err == nil && !strings.HasPrefix(state, "Warmed:") {
			return nil
		}
		if !said {
			a.log.Info("waiting until this instance leaves its warm pool", "state", state, "err", err)
		}
		select {
		case <-time.After(poolPeriod):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchNotices drains this instance when it is told that it will be taken away.
func (a *agent) watchNotices(ctx context.Context) {
	if a.o.EC2 == nil || !a.c.Cluster.SpotDraining {
		return
	}
	for tick := time.NewTicker(noticePeriod); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
		notice, err := a.o.EC2.Notice(ctx)
		arn := a.instance().InstanceARN
		if err != nil || notice == "" || arn == "" {
			a.log.Debug("no notice", "err", err)
			continue
		}
		if err := a.ecs.Drain(ctx, arn); err != nil {
			a.log.Warn("this instance is to be taken away and cannot be drained yet", "notice", notice, "err", err)
			continue
		}
		a.log.Info("this instance is to be taken away, so it is drained", "notice", notice)
		tick.Stop()
		return
	}
}

// drainAtShutdown has the cluster drain this instance and waits for its tasks to end,
// where the host goes down and the settings ask for it.
func (a *agent) drainAtShutdown(ctx context.Context) {
	limit := a.c.Berth.DrainAtShutdown
	if limit == 0 || !a.ready.Load() || !goesDown(ctx) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := a.ecs.Drain(ctx, a.instance().InstanceARN); err != nil {
		a.log.Warn("the host goes down and this instance cannot be drained", "err", err)
		return
	}
	a.log.Info("the host goes down, so this instance is drained", "limit", limit)
	tick := time.NewTicker(drainPeriod)
	defer tick.Stop()
	for a.running() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			a.log.Warn("tasks still run at the end of draining", "tasks", a.running())
			return
		}
	}
}

// running counts the tasks that have not ended.
func (a *agent) running() (n int) {
	for _, v := range a.engine.Views() {
		if v.Known.Status != task.StatusStopped {
			n++
		}
	}
	return n
}

// goesDown reports whether systemd is turning the host off, or starting it again.
func goesDown(ctx context.Context) bool {
	// The exit code is one for every state but "running".
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output() //nolint:errcheck // as said, and no answer is a no
	return strings.TrimSpace(string(out)) == "stopping"
}
