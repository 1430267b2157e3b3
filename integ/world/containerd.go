package world

import (
	"context"
	"errors"
	"fmt"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// Namespace is one namespace of a containerd, asked through the stock client.
type Namespace struct {
	Address string // of the socket
	Name    string
}

// List lists the namespace. One that does not exist is empty.
func (n Namespace) List(ctx context.Context) (_ map[string][]string, err error) {
	client, err := containerd.New(n.Address, containerd.WithDefaultNamespace(n.Name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Address, err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	ctx = namespaces.WithNamespace(ctx, n.Name)
	sets := map[string][]string{}
	add := func(set, format string, args ...any) {
		sets[set] = append(sets[set], n.Name+" "+fmt.Sprintf(format, args...))
	}

	containers, err := client.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		add(Containers, "%s", c.ID)
	}
	processes, err := client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	for _, p := range processes.Tasks {
		add(Processes, "%s %s", p.ID, p.Status)
	}
	err = client.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted { // those are the layers of images
			add(Snapshots, "%s %s", info.Kind, info.Name)
		}
		return nil
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	leases, err := client.LeasesService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		add(Leases, "%s", l.ID)
	}
	ingests, err := client.ContentStore().ListStatuses(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range ingests {
		add(Ingests, "%s", i.Ref)
	}
	return sets, nil
}
