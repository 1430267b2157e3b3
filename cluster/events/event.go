// Package events tells of changes of tasks and container instances in the shape that
// Amazon EventBridge has for Amazon ECS: as a stream of server-sent events, in a file and
// to webhooks.
//
// A process tells of every change once, in the order of commits. The last events are kept
// in memory, and whoever follows has a position among them: a follower that is slow holds
// nobody up, and is told when it has missed something. Processes on the same store give a
// change the same id.
package events

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/awsjson"
	"berth.dev/berth/cluster/store"
)

// The kinds of events (Amazon ECS developer guide, "Amazon ECS events").
const (
	TaskStateChange     = "ECS Task State Change"
	InstanceStateChange = "ECS Container Instance State Change"
)

// source is where EventBridge says that the events are from.
const source = "aws.ecs"

// Position is where an event is among all: the revision of the records that made it, and
// its number among the events of that revision.
type Position struct {
	Revision int64
	N        int
}

// String is the form that clients of the stream see as the event's id.
func (p Position) String() string { return fmt.Sprintf("%d-%d", p.Revision, p.N) }

// ErrPosition is wrapped by errors about ids that are none.
var ErrPosition = errors.New("not the id of an event")

// ParsePosition reads what String wrote. Its errors wrap ErrPosition.
func ParsePosition(s string) (Position, error) {
	revision, n, ok := strings.Cut(s, "-")
	r, err1 := strconv.ParseInt(revision, 10, 64)
	i, err2 := strconv.ParseInt(n, 10, 32)
	if !ok || err1 != nil || err2 != nil || r < 0 || i < 0 {
		return Position{}, fmt.Errorf("%.40q is %w", s, ErrPosition)
	}
	return Position{r, int(i)}, nil
}

func (p Position) compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Revision, q.Revision), cmp.Compare(p.N, q.N))
}

// An Event is one change.
type Event struct {
	Position Position
	// Cluster is the name of the ECS cluster.
	Cluster string
	// Kind is one of the detail types above.
	Kind string

	at       time.Time
	resource string // ARN
	version  int64
	region   string
	account  string
	task     *types.Task // what changed: this
	instance *types.ContainerInstance

	once sync.Once
	json []byte
}

// envelope is what EventBridge puts around every event.
type envelope struct {
	Version    string          `json:"version"`
	ID         string          `json:"id"`
	DetailType string          `json:"detail-type"`
	Source     string          `json:"source"`
	Account    string          `json:"account"`
	Time       string          `json:"time"`
	Region     string          `json:"region"`
	Resources  []string        `json:"resources"`
	Detail     json.RawMessage `json:"detail"`
}

// JSON is the event as EventBridge has it, without a line end. Do not modify it.
func (e *Event) JSON() []byte {
	e.once.Do(func() {
		var detail []byte
		if e.task != nil {
			detail = awsjson.AppendDocument(nil, shownTask(e.task), hidden)
		} else {
			detail = awsjson.AppendDocument(nil, e.instance, hidden)
		}
		detail = append(detail[:len(detail)-1], `,"updatedAt":"`+awsjson.ISOTime(e.at)+`"}`...)
		b, err := json.Marshal(envelope{
			Version: "0", ID: e.ID(), DetailType: e.Kind, Source: source, Account: e.account,
			Time: e.at.UTC().Format(time.RFC3339), Region: e.region, Resources: []string{e.resource}, Detail: detail,
		})
		if err != nil { // the detail is JSON of our own
			b = []byte("{}")
		}
		e.json, e.task, e.instance = b, nil, nil
	})
	return e.json
}

// ID is a UUID made of the resource and its version (RFC 9562, version 8), so that all
// processes, also later ones, give the same change the same.
func (e *Event) ID() string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", e.Kind, e.resource, e.version))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// hidden are the members whose values may be secrets.
func hidden(member string) bool { return member == "environment" }

// shownTask is a task as events show it: without tags, and with the names that
// attachments have in events.
func shownTask(t *types.Task) *types.Task {
	out := *t
	out.Tags = nil
	if len(t.Attachments) > 0 {
		out.Attachments = append([]types.Attachment(nil), t.Attachments...)
		for i := range out.Attachments {
			if aws.ToString(out.Attachments[i].Type) == "ElasticNetworkInterface" {
				out.Attachments[i].Type = aws.String("eni")
			}
		}
	}
	return &out
}

// eventOf is the event that a change is, or nil: of new records and new versions. What
// else is in a record is no state. view shows an instance with what is left of it.
func eventOf(c store.Change, view func(*store.Instance) types.ContainerInstance) *Event {
	switch now := c.New.(type) {
	case *store.Task:
		if old, ok := c.Old.(*store.Task); ok && old.Task.Version >= now.Task.Version {
			return nil
		}
		return &Event{
			Kind: TaskStateChange, Cluster: now.ClusterName, resource: aws.ToString(now.Task.TaskArn),
			version: now.Task.Version, task: &now.Task,
		}
	case *store.Instance:
		if old, ok := c.Old.(*store.Instance); ok && old.Instance.Version >= now.Instance.Version {
			return nil
		}
		shown := view(now)
		shown.Tags = nil
		return &Event{
			Kind: InstanceStateChange, Cluster: now.ClusterName, resource: aws.ToString(now.Instance.ContainerInstanceArn),
			version: now.Instance.Version, instance: &shown,
		}
	}
	return nil
}
