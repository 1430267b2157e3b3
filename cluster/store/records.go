package store

import (
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// The tables of a cluster. Composite keys are made with Key.
var (
	// Clusters is keyed by cluster name.
	Clusters = newTable[Cluster](0, "clusters")
	// Families is keyed by task definition family.
	Families = newTable[Family](1, "families")
	// TaskDefinitions is keyed by DefinitionKey, so that a scan of
	// Prefix(family) yields the revisions in numeric order.
	TaskDefinitions = newTable[TaskDefinition](2, "definitions")
	// Instances is keyed by Key(cluster name, instance id).
	Instances = newTable[Instance](3, "instances")
	// Allocations is keyed like Instances.
	Allocations = newTable[Allocation](4, "allocations")
	// Tasks is keyed by Key(cluster name, task id).
	Tasks = newTable[Task](5, "tasks")
	// Keys is keyed by access key id.
	Keys = newTable[AccessKey](6, "keys")
	// ClientTokens is keyed by Key(operation, cluster name, token).
	ClientTokens = newTable[ClientToken](7, "tokens")
	// Settings is keyed by Key(setting name, principal); the principal of
	// an account-wide default is "root".
	Settings = newTable[Setting](8, "settings")
	// Meta is keyed by the name of the value.
	Meta = newTable[Value](9, "meta")
	// Nodes is keyed by node name. Its records are written by Join only, and are there
	// while several processes share an etcd.
	Nodes = newTable[Node](10, "nodes")
	// VPCs is keyed by VPC id.
	VPCs = newTable[VPC](11, "vpcs")
	// Subnets is keyed by subnet id.
	Subnets = newTable[Subnet](12, "subnets")
	// SecurityGroups is keyed by group id.
	SecurityGroups = newTable[SecurityGroup](13, "groups")
	// SecurityGroupRules is keyed by Key(group id, rule id).
	SecurityGroupRules = newTable[SecurityGroupRule](14, "grouprules")
	// Interfaces is keyed by network interface id.
	Interfaces = newTable[Interface](15, "interfaces")
	// Addresses is keyed by Key(subnet id, address).
	Addresses = newTable[Address](16, "addresses")
	// Roles is keyed by the role's name.
	Roles = newTable[Role](17, "roles")
	// JoinTokens is keyed by token id.
	JoinTokens = newTable[JoinToken](18, "jointokens")
	// Volumes is keyed by volume id.
	Volumes = newTable[Volume](19, "volumes")
	// Policies is keyed by the policy's name.
	Policies = newTable[Policy](20, "policies")
	// Snapshots is keyed by snapshot id.
	Snapshots = newTable[Snapshot](21, "snapshots")

	tableList = []*table{
		Clusters.table, Families.table, TaskDefinitions.table, Instances.table,
		Allocations.table, Tasks.table, Keys.table,
		ClientTokens.table, Settings.table, Meta.table, Nodes.table,
		VPCs.table, Subnets.table, SecurityGroups.table, SecurityGroupRules.table,
		Interfaces.table, Addresses.table,
		Roles.table, JoinTokens.table, Volumes.table, Policies.table, Snapshots.table,
	}
)

var (
	// TasksByInstance finds the tasks, also the stopped ones, that were
	// placed on an instance, by instance id.
	TasksByInstance = newIndex(Tasks, func(_ string, t *Task) []string {
		if t.InstanceID == "" {
			return nil
		}
		return []string{t.InstanceID}
	})
	// InstancesByID finds an instance by its id alone.
	InstancesByID = newIndex(Instances, func(_ string, i *Instance) []string { return []string{i.ID} })
	// RulesByID finds a rule of a security group by its id alone.
	RulesByID = newIndex(SecurityGroupRules, func(_ string, r *SecurityGroupRule) []string { return []string{r.ID} })
	// InterfacesByTask finds the interfaces of a task, by task id.
	InterfacesByTask = newIndex(Interfaces, func(_ string, i *Interface) []string { return []string{i.TaskID} })
	// InterfacesByInstance finds the interfaces on an instance, by instance id.
	InterfacesByInstance = newIndex(Interfaces, func(_ string, i *Interface) []string { return []string{i.InstanceID} })
	// InterfacesByGroup finds the members of a security group.
	InterfacesByGroup = newIndex(Interfaces, func(_ string, i *Interface) []string { return i.Groups })
	// VolumesByTask finds the volumes that were made for a task, by task id.
	VolumesByTask = newIndex(Volumes, func(_ string, v *Volume) []string { return []string{v.TaskID} })
	// VolumesByInstance finds the volumes in the pool of an instance, by instance id.
	VolumesByInstance = newIndex(Volumes, func(_ string, v *Volume) []string { return []string{v.InstanceID} })
	// SnapshotsByInstance finds the snapshots in the pool of an instance, by instance id.
	SnapshotsByInstance = newIndex(Snapshots, func(_ string, s *Snapshot) []string { return []string{s.InstanceID} })
	// KeysByInstance finds the access keys bound to a container instance
	// ARN.
	KeysByInstance = newIndex(Keys, func(_ string, k *AccessKey) []string {
		if k.InstanceARN == "" {
			return nil
		}
		return []string{k.InstanceARN}
	})
)

// DefinitionKey is the key of a task definition revision.
func DefinitionKey(family string, revision int32) string {
	return Key(family, fmt.Sprintf("%010d", revision))
}

// A Cluster is an ECS cluster. Its counts are not stored; they are counted
// when somebody asks.
type Cluster struct {
	Cluster types.Cluster
	// DeletedAt is set while a deleted cluster is still shown as INACTIVE.
	DeletedAt *time.Time
}

// A Family remembers the last revision number ever used, which is never
// given out again.
type Family struct {
	Name         string
	LastRevision int32
}

// A TaskDefinition is one revision as it was registered.
type TaskDefinition struct {
	Definition types.TaskDefinition
	Tags       []types.Tag
}

// KeyKind tells what an access key may do.
type KeyKind string

// The kinds of access keys.
const (
	// KeyOperator may call everything.
	KeyOperator KeyKind = "operator"
	// KeyInstance may call the agent's operations for one instance.
	KeyInstance KeyKind = "instance"
)

// An AccessKey is an access key id; its secret is derived from the
// cluster's root key and is not stored.
type AccessKey struct {
	ID   string
	Kind KeyKind
	// InstanceARN is the container instance an instance key was bound to
	// at its first registration; empty before.
	InstanceARN string
	CreatedAt   time.Time
}

// A Setting is an account setting of one principal, or the default.
type Setting struct {
	Name, Value, Principal string
}

// A Value is a small named value of the cluster itself.
type Value struct {
	Text string
}
