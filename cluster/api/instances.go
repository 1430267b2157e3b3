package api

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/sched"
	"berth.dev/berth/cluster/store"
)

const (
	instanceActive   = "ACTIVE"
	instanceDraining = "DRAINING"
	instanceInactive = "INACTIVE"

	attributeZone         = sched.AttributeZone
	attributeArchitecture = sched.AttributeArchitecture
	attributeInstanceType = "ecs.instance-type"
	attributeExternal     = "ecs.capability.external"
)

// RegisterContainerInstance adds an instance, or takes one up again under its ARN. The
// answer holds every attribute of the request: an agent that misses one gives up.
//
// An instance key is bound to the ARN of its first registration. It gets that ARN again
// even when the agent has forgotten it, so one machine stays one instance.
func (a *API) RegisterContainerInstance(ctx context.Context, in *ecs.RegisterContainerInstanceInput) (*ecs.RegisterContainerInstanceOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	total, err := totalsOf(registeredResources(in))
	if err != nil {
		return nil, err
	}
	for _, at := range in.Attributes {
		if str(at.Name) == "" {
			return nil, invalidParameter("Attribute name should not be empty.")
		}
	}
	caller, now := CallerOf(ctx), a.now()
	var view types.ContainerInstance
	err = a.Store.Update(ctx, func(tx *store.Tx) error {
		if err := requireCluster(tx, cluster); err != nil {
			return err
		}
		inst, err := a.instanceToRegister(tx, caller, cluster, str(in.ContainerInstanceArn), now)
		if err != nil {
			return err
		}
		inst.Address = caller.Address
		a.describeHost(inst, in)
		if old := valueOfAttribute(inst.Instance.Attributes, attributeInstanceType); old != "" {
			if n := valueOfAttribute(in.Attributes, attributeInstanceType); n != "" && n != old {
				return clientException("Container instance type changes are not supported.")
			}
		}
		inst.Instance.Attributes = a.mergeAttributes(inst.Instance.Attributes, in.Attributes)
		inst.Instance.RegisteredResources = registeredResources(in)
		inst.Instance.Version++
		if in.VersionInfo != nil {
			inst.Instance.VersionInfo = in.VersionInfo
		}
		inst.KeyID = caller.AccessKeyID
		key := store.Key(cluster, inst.ID)
		// Who changes what a task holds changes the allocation too, so comparing its
		// revision makes the sum over the tasks safe without comparing each of them.
		store.Get(tx, store.Allocations, key)
		alloc := total
		store.Lookup(store.Peek(tx), store.TasksByInstance, inst.ID, func(_ string, t *store.Task) bool {
			if str(t.Task.LastStatus) != statusStopped {
				take(&alloc, &t.Held)
			}
			return true
		})
		store.Put(tx, store.Allocations, key, &alloc)
		store.Put(tx, store.Instances, key, inst)
		if k, ok := store.Get(tx, store.Keys, caller.AccessKeyID); ok && k.Kind == store.KeyInstance && k.InstanceARN != *inst.Instance.ContainerInstanceArn {
			bound := *k
			bound.InstanceARN = *inst.Instance.ContainerInstanceArn
			store.Put(tx, store.Keys, caller.AccessKeyID, &bound)
		}
		view = instanceView(tx, inst, &alloc)
		return nil
	})
	if err != nil {
		return nil, err
	}
	view.Tags = nil
	return &ecs.RegisterContainerInstanceOutput{ContainerInstance: &view}, nil
}

// instanceToRegister returns a copy of the instance's record that may be changed, or a
// new record.
func (a *API) instanceToRegister(tx *store.Tx, caller Caller, cluster, arn string, now time.Time) (*store.Instance, error) {
	bound := ""
	if k, ok := store.Get(tx, store.Keys, caller.AccessKeyID); ok && k.Kind == store.KeyInstance {
		bound = k.InstanceARN
	}
	if arn != "" && bound != "" && arn != bound {
		return nil, accessDenied("This key belongs to another container instance.")
	}
	wanted := orElse(arn, bound)
	if wanted == "" {
		return a.newInstance(cluster, newID(), now), nil
	}
	id, err := childRef("container-instance", cluster, wanted)
	if err != nil {
		return nil, err
	}
	old, ok := store.Get(tx, store.Instances, store.Key(cluster, id))
	if bound != wanted && heldByOther(tx, old, wanted, caller.AccessKeyID) {
		return nil, accessDenied("The container instance was registered with another key.")
	}
	switch {
	case !ok && len(id) == 32 && wanted == a.arn("container-instance", cluster, id):
		// The agent remembers what these records do not, as after a restore from an
		// old copy: its tasks are under this ARN, so it is taken up again.
		return a.newInstance(cluster, id, now), nil
	case !ok:
		return nil, invalidParameter("The referenced container instance was not found.")
	case str(old.Instance.Status) == instanceInactive && arn == "":
		return a.newInstance(cluster, newID(), now), nil // a deregistered machine that starts afresh
	case str(old.Instance.Status) == instanceInactive:
		return nil, invalidParameter("The referenced container instance is INACTIVE: it was deregistered. Remove the agent's state to register this host as a new one.")
	}
	inst := *old
	return &inst, nil
}

// heldByOther tells whether an instance belongs to another key than the caller's: the
// one that registered it, or one that is bound to its ARN.
func heldByOther(tx *store.Tx, inst *store.Instance, arn, keyID string) bool {
	other := inst != nil && inst.KeyID != "" && inst.KeyID != keyID
	store.Lookup(tx, store.KeysByInstance, arn, func(_ string, k *store.AccessKey) bool {
		other = other || k.ID != keyID
		return !other
	})
	return other
}

func (a *API) newInstance(cluster, id string, now time.Time) *store.Instance {
	return &store.Instance{ClusterName: cluster, ID: id, Instance: types.ContainerInstance{
		ContainerInstanceArn: aws.String(a.arn("container-instance", cluster, id)),
		Status:               aws.String(instanceActive),
		RegisteredAt:         &now,
		Attachments:          []types.Attachment{},
		// The id of a machine that no cloud names, as ECS Anywhere gives it.
		Ec2InstanceId: aws.String("mi-" + id[:17]),
	}}
}

// describeHost takes over what the instance identity document and the tags say.
func (a *API) describeHost(inst *store.Instance, in *ecs.RegisterContainerInstanceInput) {
	var doc struct {
		InstanceID       string `json:"instanceId"`
		InstanceType     string `json:"instanceType"`
		Architecture     string `json:"architecture"`
		ImageID          string `json:"imageId"`
		AvailabilityZone string `json:"availabilityZone"`
		PrivateIP        string `json:"privateIp"`
	}
	if text := str(in.InstanceIdentityDocument); text != "" && json.Unmarshal([]byte(text), &doc) == nil {
		if doc.InstanceID != "" {
			inst.Instance.Ec2InstanceId = &doc.InstanceID
		}
		if ip, err := netip.ParseAddr(doc.PrivateIP); err == nil {
			inst.Address = ip.String()
		}
		for name, value := range map[string]string{
			attributeInstanceType: doc.InstanceType, attributeArchitecture: doc.Architecture,
			"ecs.ami-id": doc.ImageID, attributeZone: doc.AvailabilityZone,
		} {
			if value != "" {
				inst.Instance.Attributes = a.mergeAttributes(inst.Instance.Attributes, []types.Attribute{{Name: aws.String(name), Value: aws.String(value)}})
			}
		}
	}
	if len(in.Tags) > 0 && len(inst.Instance.Tags) == 0 {
		inst.Instance.Tags = in.Tags
	}
}

// mergeAttributes gives the attributes of a registration: the new ones in their order,
// the old ones that an operator has put or the host's identity gave, and the zone.
// Capabilities that the agent no longer names are gone.
func (a *API) mergeAttributes(old, registered []types.Attribute) []types.Attribute {
	out := slices.Clone(registered)
	has := make(map[string]bool, len(out))
	for _, at := range out {
		has[str(at.Name)] = true
	}
	for _, at := range old {
		name := str(at.Name)
		capability := strings.HasPrefix(name, "ecs.capability.") || strings.HasPrefix(name, "com.amazonaws.ecs.capability.") || strings.HasPrefix(name, "berth.capability.")
		if !has[name] && !capability {
			out, has[name] = append(out, at), true
		}
	}
	if !has[attributeZone] {
		out = append(out, types.Attribute{Name: aws.String(attributeZone), Value: aws.String(a.Region + "a")})
	}
	return out
}

func valueOfAttribute(list []types.Attribute, name string) string {
	for _, at := range list {
		if str(at.Name) == name {
			return str(at.Value)
		}
	}
	return ""
}

func registeredResources(in *ecs.RegisterContainerInstanceInput) []types.Resource {
	out := slices.Clone(in.TotalResources)
	var gpus []string
	for _, d := range in.PlatformDevices {
		if d.Type == types.PlatformDeviceTypeGpu {
			gpus = append(gpus, str(d.Id))
		}
	}
	if len(gpus) > 0 {
		out = append(out, types.Resource{Name: aws.String("GPU"), Type: aws.String("STRINGSET"), StringSetValue: gpus})
	}
	return out
}

// totalsOf reads registered resources into what is free on an empty instance.
func totalsOf(list []types.Resource) (store.Allocation, error) {
	var out store.Allocation
	for _, res := range list {
		var err error
		switch str(res.Name) {
		case "CPU":
			out.CPU = int64(res.IntegerValue)
		case "MEMORY":
			out.Memory = int64(res.IntegerValue)
		case "PORTS":
			out.TCP, err = portNumbers(res.StringSetValue)
		case "PORTS_UDP":
			out.UDP, err = portNumbers(res.StringSetValue)
		case "GPU":
			out.GPUs = slices.Clone(res.StringSetValue)
		}
		if err != nil {
			return out, err
		}
	}
	if out.CPU < 0 || out.Memory < 0 {
		return out, invalidParameter("CPU and MEMORY of a container instance must not be negative.")
	}
	return out, nil
}

func portNumbers(list []string) ([]int32, error) {
	var out []int32
	for _, s := range list {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return nil, invalidParameter("Invalid reserved port: %s", clip(s))
		}
		out = append(out, int32(n))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// ShowInstance is an instance as DescribeContainerInstances shows it.
func ShowInstance(r store.Reader, inst *store.Instance) types.ContainerInstance {
	alloc, _ := store.Get(r, store.Allocations, store.Key(inst.ClusterName, inst.ID))
	return instanceView(r, inst, alloc)
}

// instanceView is an instance as the API shows it. alloc may be nil: nothing is taken.
func instanceView(r store.Reader, inst *store.Instance, alloc *store.Allocation) types.ContainerInstance {
	out := inst.Instance
	out.RunningTasksCount, out.PendingTasksCount = 0, 0
	store.Lookup(r, store.TasksByInstance, inst.ID, func(_ string, t *store.Task) bool {
		switch str(t.Task.LastStatus) {
		case statusStopped:
		case statusRunning, statusDeactivating, statusStopping, statusDeprovisioning:
			out.RunningTasksCount++
		default:
			out.PendingTasksCount++
		}
		return true
	})
	out.RemainingResources = slices.Clone(out.RegisteredResources)
	if alloc == nil {
		return out
	}
	for i := range out.RemainingResources {
		res := &out.RemainingResources[i]
		switch str(res.Name) {
		case "CPU":
			res.IntegerValue = int32(alloc.CPU)
		case "MEMORY":
			res.IntegerValue = int32(alloc.Memory)
		case "PORTS":
			res.StringSetValue = portStrings(alloc.TCP)
		case "PORTS_UDP":
			res.StringSetValue = portStrings(alloc.UDP)
		case "GPU":
			res.StringSetValue = alloc.GPUs
		}
	}
	return out
}

func portStrings(list []int32) []string {
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = strconv.Itoa(int(n))
	}
	return out
}
