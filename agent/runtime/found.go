package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// The task itself is kept with each of its containers, in an extension of the record:
// an agent whose state database is lost learns from it what it runs.
const (
	extensionTask = "dev.berth.task"
	taskType      = "dev.berth/task.v1" // says how the value is encoded: as the JSON of task.Task
)

// extensions of the record of a container.
func extensions(t *task.Task) (map[string]typeurl.Any, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode task %s: %w", t.ID(), err)
	}
	return map[string]typeurl.Any{extensionTask: &anypb.Any{TypeUrl: taskType, Value: b}}, nil
}

// Found lists the tasks that containers of a container instance on this host belong to,
// as the containers' records tell it. Records that do not tell are passed over.
func (s *Containers) Found(ctx context.Context, instanceARN string) ([]task.Found, error) {
	ctx = s.c.ns(ctx)
	list, err := s.c.containers.List(ctx)
	if err != nil {
		return nil, classify(err, "")
	}
	tasks := map[string]*task.Found{}
	for i := range list {
		r := &list[i]
		if r.Labels[LabelTaskARN] == "" || r.Labels[LabelInstance] != instanceARN || r.Labels[LabelContainer] == pauseName {
			continue
		}
		t, err := taskOf(r)
		if err != nil {
			s.c.log.Warn("a container's record does not tell its task", "container", r.ID, "err", err)
			continue
		}
		f := tasks[t.ARN]
		if f == nil {
			f = &task.Found{Task: t}
			tasks[t.ARN] = f
		}
		c, err := s.found(ctx, r)
		if err != nil {
			return nil, err
		}
		// Of a container that was started again the latest counts.
		if i := slices.IndexFunc(f.Containers, func(o task.FoundContainer) bool { return o.Name == c.Name }); i < 0 {
			f.Containers = append(f.Containers, c)
		} else if f.Containers[i].Incarnation < c.Incarnation {
			f.Containers[i] = c
		}
	}
	out := make([]task.Found, 0, len(tasks))
	for _, f := range tasks {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b task.Found) int { return strings.Compare(a.Task.ARN, b.Task.ARN) })
	return out, nil
}

// taskOf decodes the task that is kept with a container, and checks that it is the one
// that the labels name.
func taskOf(r *containers.Container) (*task.Task, error) {
	ext, ok := r.Extensions[extensionTask]
	if !ok || ext.GetTypeUrl() != taskType {
		return nil, fmt.Errorf("it has no extension %s of type %s", extensionTask, taskType)
	}
	t := &task.Task{}
	if err := json.Unmarshal(ext.GetValue(), t); err != nil {
		return nil, fmt.Errorf("extension %s: %w", extensionTask, err)
	}
	name := r.Labels[LabelContainer]
	switch {
	case t.ARN != r.Labels[LabelTaskARN]:
		return nil, fmt.Errorf("extension %s holds another task than the labels name", extensionTask)
	case t.Container(name) == nil:
		return nil, fmt.Errorf("task %s has no container %q", t.ID(), name)
	case r.ID != ContainerID(t.ARN, name, labelled(r.ID, r.Labels).Incarnation):
		return nil, fmt.Errorf("the id is not the one of container %q", name)
	}
	return t, nil
}

func (s *Containers) found(ctx context.Context, r *containers.Container) (task.FoundContainer, error) {
	own := labelled(r.ID, r.Labels)
	f := task.FoundContainer{Name: r.Labels[LabelContainer], RuntimeID: r.ID, Created: r.CreatedAt, Incarnation: own.Incarnation}
	h, err := json.Marshal(own)
	if err != nil {
		return f, err
	}
	f.Handle = h
	img, err := s.c.LocalImage(ctx, r.Image)
	if task.ClassOf(err) == task.NotFound {
		return f, nil // it was deleted under the container, which does not need it
	}
	if err != nil {
		return f, err
	}
	f.Digest = img.Digest
	f.Image, err = img.Handle()
	return f, err
}
