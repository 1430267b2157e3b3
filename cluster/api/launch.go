package api

import (
	"context"
	"errors"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/sched"
	"berth.dev/berth/cluster/store"
)

// launch has n tasks placed by decide and their records committed: one request's part in
// a batch of the placer.
func (a *API) launch(ctx context.Context, l *launch, n int, decide func(*sched.State, []string) (sched.Result, error)) ([]types.Task, []types.Failure, error) {
	ids, arns := make([]string, n), make([]string, n)
	for i := range n {
		ids[i] = newID()
		arns[i] = a.arn("task", l.cluster, ids[i])
	}
	var result sched.Result
	var tasks []types.Task
	var replayed bool
	err := a.placer.do(ctx, &job{
		weight: 4*n + 1,
		decide: func(p *placement) error {
			var err error
			result, err = decide(p.of(l.cluster), arns)
			if errors.Is(err, sched.ErrNoInstances) {
				// A repeated request is answered as the first was, whatever the
				// cluster looks like by now; commit finds out.
				if l.token != "" && a.tokenKnown(l) {
					return nil
				}
				return invalidParameter("No Container Instances were found in your cluster.")
			}
			return err
		},
		commit: func(tx *store.Tx) error {
			var err error
			tasks, replayed, err = a.commitLaunch(tx, l, &result)
			if err == nil && replayed {
				return errReplayed
			}
			return err
		},
		undo: func(p *placement) {
			for i := range result.Placed {
				p.of(l.cluster).Release(result.Placed[i].Task)
			}
		},
	})
	if errors.Is(err, errReplayed) {
		return tasks, []types.Failure{}, nil
	}
	if errors.Is(err, errStale) {
		return nil, nil, failure("ServerException", "The cluster is too busy to place the task; try again.")
	}
	if err != nil {
		return nil, nil, err
	}
	failures := make([]types.Failure, 0, len(result.Failed))
	for i := range result.Failed {
		f := types.Failure{Reason: aws.String(result.Failed[i].Reason)}
		if arn := result.Failed[i].Instance; arn != "" {
			f.Arn = aws.String(arn)
		}
		failures = append(failures, f)
	}
	return tasks, failures, nil
}

// errReplayed says that the answer is that of an earlier request with the same token.
var errReplayed = errors.New("answered from the client token")

func (l *launch) tokenKey() string { return store.Key(l.operation, l.cluster, l.token) }

func (a *API) tokenKnown(l *launch) (known bool) {
	a.Store.View(func(r store.Reader) { _, known = store.Get(r, store.ClientTokens, l.tokenKey()) })
	return known
}

// commitLaunch writes the tasks of a decision and takes their room from the allocations.
func (a *API) commitLaunch(tx *store.Tx, l *launch, result *sched.Result) (tasks []types.Task, replayed bool, err error) {
	if l.token != "" {
		if seen, ok := store.Get(tx, store.ClientTokens, l.tokenKey()); ok {
			tasks, err := a.replay(tx, l, seen)
			return tasks, true, err
		}
	}
	allocs := make(map[string]*store.Allocation, len(result.Placed))
	records := make([]*store.Task, 0, len(result.Placed))
	arns := make([]string, 0, len(result.Placed))
	for i := range result.Placed {
		p := &result.Placed[i]
		t, err := a.newTask(tx, l, p)
		if err != nil {
			return nil, false, err
		}
		key := store.Key(l.cluster, t.InstanceID)
		alloc, ok := allocs[key]
		if !ok {
			old, found := store.Get(tx, store.Allocations, key)
			if !found {
				return nil, false, errStale // deregistered since
			}
			fresh := *old
			alloc = &fresh
			allocs[key] = alloc
		}
		if !fits(alloc, &t.Held) {
			return nil, false, errStale
		}
		take(alloc, &t.Held)
		records = append(records, t)
		arns = append(arns, p.Task)
	}
	tasks = make([]types.Task, 0, len(records))
	for _, t := range records {
		store.Put(tx, store.Tasks, store.Key(l.cluster, t.ID), t)
		tasks = append(tasks, t.Task)
	}
	for key, alloc := range allocs {
		store.Put(tx, store.Allocations, key, alloc)
	}
	if l.token != "" && len(arns) > 0 {
		store.Put(tx, store.ClientTokens, l.tokenKey(), &store.ClientToken{Digest: l.digest, TaskARNs: arns, CreatedAt: l.now})
	}
	return tasks, false, nil
}

// replay answers a token that was used before: the same request gets its tasks as they
// are now, another one a conflict.
func (a *API) replay(r store.Reader, l *launch, seen *store.ClientToken) ([]types.Task, error) {
	if seen.Digest != l.digest {
		return nil, conflict(seen.TaskARNs, "The client token was used before with other parameters.")
	}
	tasks := make([]types.Task, 0, len(seen.TaskARNs))
	for _, arn := range seen.TaskARNs {
		id, err := childRef("task", l.cluster, arn)
		if err != nil {
			return nil, err
		}
		if t, ok := store.Get(r, store.Tasks, store.Key(l.cluster, id)); ok {
			tasks = append(tasks, t.Task)
		}
	}
	return tasks, nil
}

// newTask makes the record of a placed task. It is PENDING at once, unless its agent has
// to attach an interface or a volume first.
func (a *API) newTask(tx *store.Tx, l *launch, p *sched.Placement) (*store.Task, error) {
	id, err := childRef("task", l.cluster, p.Task)
	if err != nil {
		return nil, err
	}
	instanceID, err := childRef("container-instance", l.cluster, p.Instance)
	if err != nil {
		return nil, err
	}
	inst, ok := store.Get(store.Peek(tx), store.Instances, store.Key(l.cluster, instanceID))
	if !ok {
		return nil, errStale
	}
	t := &store.Task{ClusterName: l.cluster, ID: id, InstanceID: instanceID, Held: heldOf(l.need, p.GPUs), LogMode: l.logMode}
	t.Task = types.Task{
		TaskArn:               aws.String(p.Task),
		ClusterArn:            aws.String(a.arn("cluster", l.cluster)),
		ContainerInstanceArn:  aws.String(p.Instance),
		TaskDefinitionArn:     l.def.TaskDefinitionArn,
		AvailabilityZone:      aws.String(valueOfAttribute(inst.Instance.Attributes, attributeZone)),
		Attachments:           []types.Attachment{},
		InferenceAccelerators: []types.InferenceAccelerator{},
		CreatedAt:             &l.now,
		DesiredStatus:         aws.String(statusRunning),
		LastStatus:            aws.String(statusPending),
		HealthStatus:          types.HealthStatusUnknown,
		Group:                 aws.String(l.group),
		StartedBy:             l.startedBy,
		LaunchType:            l.launchType,
		EnableExecuteCommand:  l.exec,
		Overrides:             l.overrides,
		Cpu:                   aws.String(strconv.FormatInt(l.need.CPU, 10)),
		Memory:                aws.String(strconv.FormatInt(l.need.Memory, 10)),
		Tags:                  l.tags,
		Version:               1,
	}
	if t.Task.LaunchType == "" {
		t.Task.LaunchType = types.LaunchTypeEc2
		if hasAttribute(inst.Instance.Attributes, attributeExternal) {
			t.Task.LaunchType = types.LaunchTypeExternal
		}
	}
	if arch := valueOfAttribute(inst.Instance.Attributes, attributeArchitecture); arch != "" {
		t.Task.Attributes = []types.Attribute{{Name: aws.String(attributeArchitecture), Value: aws.String(arch)}}
	}
	for i := range l.resolved.ContainerDefinitions {
		t.Task.Containers = append(t.Task.Containers, a.newContainer(l, id, p.Task, &l.resolved.ContainerDefinitions[i]))
	}
	gpusOf(l.resolved, p.GPUs, func(i int, ids []string) { t.Task.Containers[i].GpuIds = ids })
	if err := a.provision(tx, l, t); err != nil {
		return nil, err
	}
	a.provisionVolume(tx, l, t)
	return t, nil
}

func (a *API) newContainer(l *launch, id, task string, c *types.ContainerDefinition) types.Container {
	out := types.Container{
		ContainerArn:      aws.String(a.arn("container", l.cluster, id, uuid())),
		TaskArn:           aws.String(task),
		Name:              c.Name,
		Image:             c.Image,
		LastStatus:        aws.String(statusPending),
		HealthStatus:      types.HealthStatusUnknown,
		NetworkInterfaces: []types.NetworkInterface{},
		Cpu:               aws.String(strconv.Itoa(int(c.Cpu))),
	}
	if c.Memory != nil {
		out.Memory = aws.String(strconv.Itoa(int(*c.Memory)))
	}
	if c.MemoryReservation != nil {
		out.MemoryReservation = aws.String(strconv.Itoa(int(*c.MemoryReservation)))
	}
	return out
}

func hasAttribute(list []types.Attribute, name string) bool {
	for _, at := range list {
		if str(at.Name) == name {
			return true
		}
	}
	return false
}

// atoi reads a count that NeedOf has already accepted.
func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}
