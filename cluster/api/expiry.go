package api

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/cluster/store"
)

const (
	// expiryInterval is how often records past their time are looked for.
	expiryInterval = time.Minute
	// stoppedRetention is the least time ECS shows a stopped task (ECS API, "Task life").
	stoppedRetention = time.Hour
	// tokenRetention is how long a client token is remembered (ECS API, "Pagination,
	// filters, idempotency").
	tokenRetention = 24 * time.Hour
	// maxTokens bounds them; SDKs make one for every call.
	maxTokens = 100_000
	// expiryBatch bounds one transaction.
	expiryBatch = 100
)

// expired names the records to remove.
type expired struct {
	tasks, instances, tokens []string
}

// Expire removes stopped tasks and deregistered instances that have been shown for long
// enough, and client tokens that need no longer be remembered. RunTasks does it every minute.
func (a *API) Expire(ctx context.Context) error {
	for _, t := range a.overdueAttachments() {
		// Not by the placer's queue, which this runs in.
		if err := a.failOverdue(ctx, t); err != nil {
			return err
		}
	}
	e := a.findExpired()
	for keys := range slices.Chunk(e.tasks, expiryBatch) {
		if err := a.deleteAll(ctx, func(tx *store.Tx, key string) { store.Delete(tx, store.Tasks, key) }, keys); err != nil {
			return err
		}
	}
	for keys := range slices.Chunk(e.instances, expiryBatch) {
		if err := a.deleteAll(ctx, func(tx *store.Tx, key string) { store.Delete(tx, store.Instances, key) }, keys); err != nil {
			return err
		}
	}
	for keys := range slices.Chunk(e.tokens, expiryBatch) {
		if err := a.deleteAll(ctx, func(tx *store.Tx, key string) { store.Delete(tx, store.ClientTokens, key) }, keys); err != nil {
			return err
		}
	}
	return nil
}

// failOverdue ends a task whose interface has not come.
func (a *API) failOverdue(ctx context.Context, overdue *store.Task) error {
	return a.Store.Update(ctx, func(tx *store.Tx) error {
		key := store.Key(overdue.ClusterName, overdue.ID)
		old, ok := store.Get(tx, store.Tasks, key)
		if !ok || str(old.Task.LastStatus) != statusProvisioning {
			return nil
		}
		t := *old
		t.Task = cloneTask(old.Task)
		def := a.definitionOf(store.Peek(tx), str(t.Task.TaskDefinitionArn))
		applyTaskChange(&t.Task, def, &ecs.SubmitTaskStateChangeInput{
			Status: aws.String(statusStopped), Reason: aws.String(reasonAttachTimeout),
		}, a.now())
		release(tx, &t)
		store.Put(tx, store.Tasks, key, &t)
		return nil
	})
}

func (a *API) deleteAll(ctx context.Context, del func(*store.Tx, string), keys []string) error {
	return a.Store.Update(ctx, func(tx *store.Tx) error {
		for _, k := range keys {
			del(tx, k)
		}
		return nil
	})
}

func (a *API) findExpired() expired {
	now, retention := a.now(), a.StoppedRetention
	if retention == 0 {
		retention = stoppedRetention
	}
	type token struct {
		key string
		at  time.Time
	}
	var e expired
	var tokens []token
	a.Store.View(func(r store.Reader) {
		store.Scan(r, store.Tasks, "", func(key string, t *store.Task) bool {
			if at := t.Task.StoppedAt; str(t.Task.LastStatus) == statusStopped && at != nil && now.Sub(*at) > retention {
				e.tasks = append(e.tasks, key)
			}
			return true
		})
		store.Scan(r, store.Instances, "", func(key string, i *store.Instance) bool {
			if at := i.DeregisteredAt; at != nil && now.Sub(*at) > retention {
				e.instances = append(e.instances, key)
			}
			return true
		})
		store.Scan(r, store.ClientTokens, "", func(key string, t *store.ClientToken) bool {
			tokens = append(tokens, token{key, t.CreatedAt})
			return true
		})
	})
	slices.SortFunc(tokens, func(x, y token) int { return cmp.Compare(x.at.UnixNano(), y.at.UnixNano()) })
	for i, t := range tokens {
		if len(tokens)-i > maxTokens || now.Sub(t.at) > tokenRetention {
			e.tokens = append(e.tokens, t.key)
		}
	}
	return e
}
