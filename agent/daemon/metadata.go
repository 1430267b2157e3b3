package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/ecs"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/tmds"
	wire "berth.dev/berth/wire/tmds"
)

// defaultAudit is the default of ECS_AUDIT_LOGFILE, a path inside the reference agent's
// container; here it stands for audit.log in the directory of logs.
const defaultAudit = "/log/audit.log"

// metadata is what tasks can ask about themselves.
type metadata struct {
	server *tmds.Server
	tasks  *taskViews
	files  *tmds.Files // nil if there are none
	audit  *tmds.Audit // nil if nothing is recorded
	// introspection is the API's listener that was kept, or nil.
	introspection net.Listener
	a             *agent
}

// openMetadata opens the endpoints of the tasks that are stored, so that they answer
// before the cluster and containerd have been reached.
func (a *agent) openMetadata(ctx context.Context) error {
	stored, err := a.db.Load(ctx)
	if err != nil {
		return fmt.Errorf("load tasks: %w", err)
	}
	m := &metadata{a: a, tasks: &taskViews{stored: make(map[string]engine.View, len(stored))}}
	for _, s := range stored {
		v := engine.View{Task: s.Task, Known: *s.Known, Containers: plan.ContainerStatuses(s.Task, s.Known)}
		m.tasks.stored[s.Task.ARN] = v
	}
	if !a.c.Logging.AuditDisabled {
		path := a.c.Logging.AuditFile
		if path == defaultAudit {
			path = filepath.Join(a.c.Berth.LogDir, "audit.log")
		}
		if m.audit, err = tmds.OpenAudit(path); err != nil {
			return err
		}
	}
	if a.c.Metadata.ContainerFile {
		m.files = &tmds.Files{Dir: filesDir(a.c), Instance: a.metadataInstance, HideZone: a.c.Metadata.AZDisabled}
	}
	m.server = tmds.New(tmds.Config{
		Dir: endpointsDir(a.c), Tasks: m.tasks, Credentials: a.creds, Stats: &meter{view: m.tasks.View},
		Cluster: metadataCluster{a}, Instance: a.metadataInstance, Storage: a.storageOf,
		Rate: int(a.c.Metadata.Rates.Steady), Burst: int(a.c.Metadata.Rates.Burst),
		HostRoles: a.c.Roles.TaskRoleHost, HideZone: a.c.Metadata.AZDisabled,
		Files: m.files, Audit: m.audit, Kept: a.kept, Log: a.log,
	})
	a.metadata = m
	m.introspection, _ = a.kept.Take(keptIntrospection)
	if a.rebooted { // the namespaces of another boot are gone
		stored = nil
	}
	m.server.Adopt(stored)
	return nil
}

func endpointsDir(c *config.Config) string { return filepath.Join(c.Berth.RunDir, "endpoints") }
func filesDir(c *config.Config) string     { return filepath.Join(c.Berth.RunDir, "metadata") }

// published keeps metadata files up to date.
func (m *metadata) published(v engine.View) {
	if m.files == nil {
		return
	}
	if err := m.files.Update(v); err != nil {
		m.a.log.Warn("a metadata file could not be written", "task", v.Task.ID(), "err", err)
	}
}

// keptIntrospection is the key of the introspection API's listener among what is kept.
const keptIntrospection = "introspection"

// introspect serves the introspection API. Where another program has its port, the agent
// goes on without.
func (a *agent) introspect(ctx context.Context) error {
	l := a.metadata.introspection
	if l == nil {
		var err error
		if l, err = net.Listen("tcp4", tmds.IntrospectionAddress); err != nil {
			a.log.Warn("there is no introspection API", "err", err)
			return nil
		}
		if err := a.kept.Keep(keptIntrospection, l); err != nil {
			a.log.Warn("the introspection API will be closed while the agent is restarted", "err", err)
		}
	}
	i := &tmds.Introspection{Views: a.views, Instance: a.metadataInstance, Version: a.version(), License: license, Log: a.log}
	return i.Serve(ctx, l)
}

// license is what /license answers.
const license = "Berth is free software under the Apache License, Version 2.0; the text is in the file LICENSE of its source.\n"

func (m *metadata) close() error {
	if m == nil {
		return nil
	}
	m.server.Close()
	if m.audit != nil {
		return m.audit.Close()
	}
	return nil
}

// taskViews finds tasks in the engine and, before it goes, in what was stored.
type taskViews struct {
	mu     sync.Mutex
	stored map[string]engine.View
	engine *engine.Engine
}

func (t *taskViews) goes(e *engine.Engine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.engine, t.stored = e, nil
}

// View is the task with this ARN.
func (t *taskViews) View(arn string) (engine.View, bool) {
	t.mu.Lock()
	e := t.engine
	v, ok := t.stored[arn]
	t.mu.Unlock()
	if e == nil {
		return v, ok
	}
	return e.View(arn)
}

// metadataInstance is who the agent is, as it was stored until it has registered.
func (a *agent) metadataInstance() tmds.Instance {
	if r := a.instance(); r.InstanceARN != "" {
		return tmds.Instance{Cluster: r.Cluster, ARN: r.InstanceARN, Zone: r.AvailabilityZone}
	}
	m := a.db.Meta()
	return tmds.Instance{Cluster: m.Cluster, ARN: m.InstanceARN, Zone: m.AZ}
}

// metadataCluster asks the ECS API on behalf of tasks.
type metadataCluster struct{ a *agent }

// Tags lists the tags of a resource.
func (m metadataCluster) Tags(ctx context.Context, arn string) (map[string]string, error) {
	tags, err := m.a.ecs.Tags(ctx, arn)
	return tags, called(err)
}

// Protection reads or changes the protection of a task.
func (m metadataCluster) Protection(ctx context.Context, c creds.Credentials, taskARN string, set *wire.ProtectionRequest) (*wire.ProtectionResponse, error) {
	role := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: c.AccessKeyID.Reveal(), SecretAccessKey: c.SecretAccessKey.Reveal(), SessionToken: c.SessionToken.Reveal()}, nil
	})
	v, ok := m.a.metadata.tasks.View(taskARN)
	if !ok {
		return nil, errors.New("the task has gone")
	}
	var enabled *bool
	var minutes *int32
	if set != nil {
		enabled, minutes = set.ProtectionEnabled, set.ExpiresInMinutes
	}
	p, err := m.a.ecs.TaskProtection(ctx, role, taskARN, v.Task.ClusterARN, enabled, minutes)
	if err != nil {
		return nil, called(err)
	}
	if p.Failed {
		return &wire.ProtectionResponse{Failure: &wire.ProtectionFailure{ARN: p.TaskARN, Reason: p.Reason, Detail: p.Detail}}, nil
	}
	out := &wire.Protection{TaskARN: p.TaskARN, ProtectionEnabled: p.Protected}
	if p.Expires != nil {
		at := p.Expires.UTC().Format(time.RFC3339)
		out.ExpirationDate = &at
	}
	return &wire.ProtectionResponse{Protection: out}, nil
}

// called is an error of the ECS API as the endpoints show it.
func called(err error) error {
	if code, message, id, status, ok := ecs.Answered(err); ok {
		return &tmds.CallError{Code: code, Message: message, RequestID: id, Status: status}
	}
	return err
}
