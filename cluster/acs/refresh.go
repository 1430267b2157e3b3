package acs

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// firstRefresh is when a session first sends the credentials of running tasks anew. An
// agent that has asked for them has just got them; one that comes back may have had its
// last a while ago.
func (ss *session) firstRefresh() time.Duration {
	if ss.all == allLive {
		return ss.server.Refresh
	}
	return min(ss.server.Refresh, reconnectRefresh)
}

// reconnectRefresh lets a new session deliver tasks first.
const reconnectRefresh = 10 * time.Second

// refresh sends new credentials for the running tasks of the instance, long before the
// old ones end. Those of a task that cannot be made are tried again next time.
func (ss *session) refresh(ctx context.Context) error {
	if ss.server.Credentials == nil {
		return nil
	}
	var tasks []*store.Task
	ss.server.Store.View(func(r store.Reader) {
		store.Lookup(r, store.TasksByInstance, ss.id, func(_ string, t *store.Task) bool {
			if aws.ToString(t.Task.LastStatus) != stopped && aws.ToString(t.Task.DesiredStatus) == running {
				tasks = append(tasks, t)
			}
			return true
		})
	})
	for _, t := range tasks {
		task, execution, err := ss.server.Credentials(ctx, t)
		if err != nil {
			ss.log.Warn("credentials of a task cannot be made anew", "task", t.ID, "err", err)
			continue
		}
		for kind, c := range map[string]*acs.IAMRoleCredentials{acs.RoleTaskApplication: task, acs.RoleTaskExecution: execution} {
			if c == nil {
				continue
			}
			err := ss.write(ctx, &acs.IAMRoleCredentialsMessage{
				MessageID: newMessageID(), TaskARN: aws.ToString(t.Task.TaskArn), TaskClusterARN: ss.clusterARN, RoleType: kind, RoleCredentials: c,
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
