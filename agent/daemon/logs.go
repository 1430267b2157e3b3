package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/arn"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/logs/grant"
	"berth.dev/berth/agent/logs/link"
	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/secret"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/agent/volume"
)

// logSettings are the agent's settings of containers' output.
func logSettings(c *config.Config) logs.Settings {
	return logs.Settings{
		Run: c.Berth.RunDir, MaxBytes: c.Berth.LogFileSize, Files: int(c.Berth.LogFiles), DropNone: c.Berth.LogNoneDropped,
		Routers: filepath.Join(c.Berth.RunDir, "firelens"), RouterWaits: !c.Logging.FirelensAsync,
		Available: c.Logging.Drivers, ExecutionRole: c.Logging.AwslogsRole,
	}
}

// limitedStorage is that of tasks with a limit, in which their logs count.
func limitedStorage(c *config.Config, log *slog.Logger) volume.StorageConfig {
	settings := logSettings(c)
	return volume.StorageConfig{
		Dir: filepath.Join(c.Berth.VolumeDir, "storage"), Reserve: settings.Reserve, Log: log,
		Logged: func(taskID string) (uint64, error) { return logs.Used(filepath.Join(c.Berth.LogDir, "tasks", taskID)) },
	}
}

// serveGrants answers the shipper until ctx ends.
func (a *agent) serveGrants(ctx context.Context) error {
	return grant.Serve(ctx, filepath.Join(a.c.Berth.RunDir, link.AgentSocket), a.grant, a.log)
}

// credentialsLast is how long credentials without an end that is known are used before
// they are asked for again.
const credentialsLast = 10 * time.Minute

// grant gives the shipper what the log driver of one container needs.
func (a *agent) grant(ctx context.Context, ask grant.Ask) (grant.Grant, error) {
	g := grant.Grant{Region: a.c.Cluster.Region}
	t := a.taskOf(ask.TaskID)
	if t == nil || t.Container(ask.Container) == nil {
		return g, errors.New("the agent has no such task")
	}
	if ask.Secrets {
		given, err := a.host.secrets.Again(ctx, t, ask.Container)
		if err != nil {
			return g, err
		}
		g.Options = make(map[string]string, len(given.LogOptions))
		for name, v := range given.LogOptions {
			g.Options[name] = v.Reveal()
		}
	}
	if !ask.Credentials {
		return g, nil
	}
	if !ask.Execution {
		c, err := a.identity.Retrieve(ctx)
		if err != nil {
			return g, fmt.Errorf("credentials of this instance: %w", err)
		}
		g.AccessKeyID, g.SecretAccessKey, g.SessionToken = c.AccessKeyID, c.SecretAccessKey, c.SessionToken
		if g.Expires = time.Now().Add(credentialsLast); c.CanExpire && c.Expires.Before(g.Expires) {
			g.Expires = c.Expires
		}
		return g, nil
	}
	c, err := a.creds.Of(t.ARN, creds.Execution)
	if err != nil {
		return g, fmt.Errorf("execution role of task %s: %w", t.ID(), err)
	}
	g.AccessKeyID, g.SecretAccessKey, g.SessionToken = c.AccessKeyID.Reveal(), c.SecretAccessKey.Reveal(), c.SessionToken.Reveal()
	g.Expires = time.Now().Add(credentialsLast)
	if end, err := time.Parse(time.RFC3339, c.Expiration); err == nil && end.Before(g.Expires) {
		g.Expires = end
	}
	return g, nil
}

// taskOf finds a task by its id; nil for none.
func (a *agent) taskOf(id string) *task.Task {
	for _, v := range a.views() {
		if v.Task.ID() == id {
			return v.Task
		}
	}
	return nil
}

// fetchObject reads a log router's own configuration from S3.
func fetchObject(r *roles.Roles) func(context.Context, *task.Task, string) ([]byte, error) {
	return func(ctx context.Context, t *task.Task, object string) ([]byte, error) {
		a, err := arn.Parse(object)
		bucket, key, ok := strings.Cut(a.Resource, "/")
		if err != nil || a.Service != "s3" || !ok || bucket == "" || key == "" {
			return nil, fmt.Errorf("config-file-value %q is not the ARN of an S3 object, such as arn:aws:s3:::bucket/path/extra.conf", object)
		}
		return secret.Object(ctx, r, t, bucket, key)
	}
}
