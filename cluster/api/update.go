package api

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/update"
)

// updateLimit is how long an update may stay at one status: longer than an agent takes to
// fetch a package (15 minutes, agent protocol, StageUpdateMessage) or to install it and,
// if need be, go back.
const updateLimit = 30 * time.Minute

// UpdateContainerAgent has an agent update itself from the newest package of the cluster's
// folder. That may be the version before the agent's own, so that one can go back.
func (a *API) UpdateContainerAgent(ctx context.Context, in *ecs.UpdateContainerAgentInput) (*ecs.UpdateContainerAgentOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	id, err := childRef("container-instance", cluster, str(in.ContainerInstance))
	if err != nil {
		return nil, err
	}
	key := store.Key(cluster, id)
	var asked *store.Instance
	a.Store.View(func(r store.Reader) { asked, err = updatable(r, cluster, key) })
	if err != nil {
		return nil, err
	}
	running, err := runningVersion(asked)
	if err != nil {
		return nil, err
	}
	u, err := a.offer(asked, running) // reads files
	if err != nil {
		return nil, err
	}
	var view types.ContainerInstance
	err = a.Store.Update(ctx, func(tx *store.Tx) error {
		old, err := updatable(tx, cluster, key)
		if err != nil {
			return err
		}
		if v, err := runningVersion(old); err != nil {
			return err
		} else if v != running {
			return failure("UpdateInProgressException", "The agent has changed to version %s meanwhile.", v)
		}
		inst := *old
		inst.Update = u
		inst.Instance.AgentUpdateStatus = types.AgentUpdateStatusPending
		inst.Instance.Version++
		store.Put(tx, store.Instances, key, &inst)
		alloc, _ := store.Get(store.Peek(tx), store.Allocations, key)
		view = instanceView(store.Peek(tx), &inst, alloc)
		view.Tags = nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.UpdateContainerAgentOutput{ContainerInstance: &view}, nil
}

// updatable is the instance, if its agent can be asked to update itself now.
func updatable(r store.Reader, cluster, key string) (*store.Instance, error) {
	if err := requireCluster(r, cluster); err != nil {
		return nil, err
	}
	inst, ok := store.Get(r, store.Instances, key)
	switch {
	case !ok || str(inst.Instance.Status) == instanceInactive:
		return nil, invalidParameter("The referenced container instance was not found.")
	case updating(inst):
		return nil, failure("UpdateInProgressException", "The agent is being updated to version %s (%s).", inst.Update.Version, inst.Instance.AgentUpdateStatus)
	}
	return inst, nil
}

// updating tells whether an update of an instance's agent is under way.
func updating(inst *store.Instance) bool {
	switch inst.Instance.AgentUpdateStatus {
	case types.AgentUpdateStatusPending, types.AgentUpdateStatusStaging, types.AgentUpdateStatusStaged, types.AgentUpdateStatusUpdating:
		return inst.Update != nil
	}
	return false
}

func runningVersion(inst *store.Instance) (update.Version, error) {
	if inst.Instance.VersionInfo == nil {
		return update.Version{}, failure("MissingVersionException", "The agent has not told its version.")
	}
	v, err := update.Parse(str(inst.Instance.VersionInfo.AgentVersion))
	if err != nil {
		return v, failure("MissingVersionException", "The agent's version is not known: %s.", err)
	}
	return v, nil
}

// offer finds the package for an instance, and the one to go back to.
func (a *API) offer(inst *store.Instance, running update.Version) (*store.AgentUpdate, error) {
	none := func(format string, args ...any) error {
		return failure("NoUpdateAvailableException", "There is no update for the agent: %s", fmt.Sprintf(format, args...))
	}
	kind := ""
	for _, at := range inst.Instance.Attributes {
		if k, ok := strings.CutPrefix(str(at.Name), update.Attribute); ok {
			kind = k
		}
	}
	if kind == "" {
		return nil, none("it does not take any. Set ECS_UPDATES_ENABLED=true on a host with the package %s.", update.Package)
	}
	arch := valueOfAttribute(inst.Instance.Attributes, attributeArchitecture)
	if a.Packages == nil {
		return nil, none("this cluster has no packages.")
	}
	files, err := a.Packages.For(kind, arch)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, none("put a %s package of %s for %s into the folder packages of the cluster's directory.", kind, update.Package, arch)
	}
	if err := update.Step(running, files[0].Version); err != nil {
		return nil, none("of the packages for it, %s is the newest; %s.", files[0].Name, err)
	}
	u := &store.AgentUpdate{ID: newID(), Version: files[0].Version.String(), Since: a.now()}
	for _, f := range files {
		if f.Version != running && f.Version != files[0].Version {
			continue
		}
		if f, err = a.Packages.Sum(f); err != nil {
			return nil, err
		}
		if f.Version == running {
			u.Former, u.FormerSHA256 = f.Name, f.SHA256
		} else if u.File == "" {
			u.File, u.SHA256 = f.Name, f.SHA256
		}
	}
	return u, nil
}

// SweepUpdates gives up updates that do not go on.
func (a *API) SweepUpdates(ctx context.Context) error {
	before := a.now().Add(-updateLimit)
	var stale []string
	a.Store.View(func(r store.Reader) {
		store.Scan(r, store.Instances, "", func(key string, inst *store.Instance) bool {
			if updating(inst) && inst.Update.Since.Before(before) {
				stale = append(stale, key)
			}
			return true
		})
	})
	for _, key := range stale {
		err := a.Store.Update(ctx, func(tx *store.Tx) error {
			old, ok := store.Get(tx, store.Instances, key)
			if !ok || !updating(old) || !old.Update.Since.Before(before) {
				return nil
			}
			inst, u := *old, *old.Update
			u.Since, u.Reason = a.now(), "the agent did not go on after "+string(old.Instance.AgentUpdateStatus)
			inst.Update = &u
			inst.Instance.AgentUpdateStatus = types.AgentUpdateStatusFailed
			inst.Instance.Version++
			store.Put(tx, store.Instances, key, &inst)
			a.Log.Warn("update of an agent given up", "instance", inst.ID, "version", u.Version, "err", u.Reason)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
