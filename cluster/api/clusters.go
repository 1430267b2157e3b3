package api

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

const (
	clusterActive   = "ACTIVE"
	clusterInactive = "INACTIVE"
	// inactiveShown is how long a deleted cluster is still described.
	inactiveShown = time.Hour
	// describeMax is how many references the Describe operations take (ECS
	// API model).
	describeMax = 100
	// maxProviders bounds a cluster's capacity providers and the items of
	// its default strategy (ECS API).
	maxProviders = 20
	// sweepChunk is how many records of a deleted cluster are removed at a
	// time.
	sweepChunk = 500
)

// CreateCluster makes a cluster; an ACTIVE one of that name is answered as
// it is.
func (a *API) CreateCluster(ctx context.Context, in *ecs.CreateClusterInput) (*ecs.CreateClusterOutput, error) {
	name := aws.ToString(in.ClusterName)
	if name == "" {
		name = defaultCluster
	}
	if !nameRule.MatchString(name) {
		return nil, invalidParameter("Invalid cluster name: %s. Up to 255 letters, numbers, underscores, and hyphens are allowed.", clip(name))
	}
	if c := CallerOf(ctx); c.Kind == Instance && name != defaultCluster {
		return nil, forbidden(c, "ecs", "CreateCluster")
	}
	if err := validateTags(in.Tags); err != nil {
		return nil, err
	}
	if err := checkSettings(in.Settings); err != nil {
		return nil, err
	}
	if err := checkProviders(in.CapacityProviders, in.DefaultCapacityProviderStrategy); err != nil {
		return nil, err
	}
	made := types.Cluster{
		ClusterArn:                      aws.String(a.clusterARN(name)),
		ClusterName:                     aws.String(name),
		Status:                          aws.String(clusterActive),
		Tags:                            in.Tags,
		Settings:                        withDefaultSettings(in.Settings),
		Configuration:                   in.Configuration,
		CapacityProviders:               in.CapacityProviders,
		DefaultCapacityProviderStrategy: in.DefaultCapacityProviderStrategy,
	}
	if d := in.ServiceConnectDefaults; d != nil && aws.ToString(d.Namespace) != "" {
		made.ServiceConnectDefaults = &types.ClusterServiceConnectDefaults{Namespace: d.Namespace}
	}
	var old *store.Cluster
	a.Store.View(func(r store.Reader) { old, _ = store.Get(r, store.Clusters, name) })
	if old != nil && old.DeletedAt != nil {
		// What a crash may have left of the old one must not appear in the
		// new one.
		if err := a.sweepCluster(ctx, name); err != nil {
			return nil, err
		}
	}
	var out *types.Cluster
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		if c, ok := store.Get(tx, store.Clusters, name); ok && c.DeletedAt == nil {
			out = a.clusterView(tx, c, answeredFields)
			return nil
		}
		c := &store.Cluster{Cluster: made}
		store.Put(tx, store.Clusters, name, c)
		out = a.clusterView(store.Peek(tx), c, answeredFields)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.CreateClusterOutput{Cluster: out}, nil
}

// answeredFields are what the operations that change a cluster answer of it.
var answeredFields = []types.ClusterField{
	types.ClusterFieldTags, types.ClusterFieldSettings, types.ClusterFieldConfigurations,
}

// withDefaultSettings completes cluster settings with the defaults.
func withDefaultSettings(in []types.ClusterSetting) []types.ClusterSetting {
	if len(in) > 0 {
		return in
	}
	return []types.ClusterSetting{{Name: types.ClusterSettingNameContainerInsights, Value: aws.String("disabled")}}
}

func checkSettings(in []types.ClusterSetting) error {
	for _, s := range in {
		if s.Name != types.ClusterSettingNameContainerInsights {
			return invalidParameter("Invalid setting name: %q. The only cluster setting is containerInsights.", clip(string(s.Name)))
		}
		if v := aws.ToString(s.Value); !slices.Contains([]string{"enabled", "enhanced", "disabled"}, v) {
			return invalidParameter("Invalid value %q of setting containerInsights. Valid values are enabled, enhanced and disabled.", clip(v))
		}
	}
	return nil
}

// checkProviders checks a cluster's capacity providers: only the two that
// always exist are known here.
func checkProviders(names []string, strategy []types.CapacityProviderStrategyItem) error {
	if len(names) > maxProviders || len(strategy) > maxProviders {
		return invalidParameter("A cluster may have at most %d capacity providers.", maxProviders)
	}
	for _, n := range names {
		if n != "FARGATE" && n != "FARGATE_SPOT" {
			return invalidParameter("The specified capacity provider '%s' was not found. Specify a valid name or ARN and try again.", clip(n))
		}
	}
	bases, weights := 0, int32(0)
	for _, s := range strategy {
		if !slices.Contains(names, aws.ToString(s.CapacityProvider)) {
			return invalidParameter("The capacity provider '%s' of the default strategy is not associated with the cluster.", clip(aws.ToString(s.CapacityProvider)))
		}
		if s.Base > 0 {
			bases++
		}
		weights += s.Weight
	}
	if bases > 1 {
		return invalidParameter("Only one capacity provider in a strategy may have a base.")
	}
	if len(strategy) > 0 && weights == 0 {
		return invalidParameter("At least one capacity provider in a strategy must have a weight greater than 0.")
	}
	return nil
}

// clusterView is a cluster as it is answered: with its counts, and with what
// was asked for.
func (a *API) clusterView(r store.Reader, c *store.Cluster, include []types.ClusterField) *types.Cluster {
	v := c.Cluster
	has := func(f types.ClusterField) bool { return slices.Contains(include, f) }
	if !has(types.ClusterFieldTags) || v.Tags == nil {
		v.Tags = []types.Tag{}
	}
	if !has(types.ClusterFieldSettings) || v.Settings == nil {
		v.Settings = []types.ClusterSetting{}
	}
	if !has(types.ClusterFieldConfigurations) {
		v.Configuration = nil
	}
	if v.CapacityProviders == nil {
		v.CapacityProviders = []string{}
	}
	if v.DefaultCapacityProviderStrategy == nil {
		v.DefaultCapacityProviderStrategy = []types.CapacityProviderStrategyItem{}
	}
	n := countCluster(r, aws.ToString(v.ClusterName))
	v.RegisteredContainerInstancesCount = n.instances
	v.RunningTasksCount = n.running[""]
	v.PendingTasksCount = n.pending[""]
	v.Statistics = []types.KeyValuePair{}
	if has(types.ClusterFieldStatistics) {
		v.Statistics = n.statistics()
	}
	return &v
}

// clusterCount counts a cluster's instances, and its tasks by launch type;
// "" is the sum of all.
type clusterCount struct {
	instances        int32
	running, pending map[types.LaunchType]int32
}

func countCluster(r store.Reader, name string) clusterCount {
	n := clusterCount{running: make(map[types.LaunchType]int32), pending: make(map[types.LaunchType]int32)}
	store.Scan(r, store.Instances, store.Prefix(name), func(_ string, i *store.Instance) bool {
		if aws.ToString(i.Instance.Status) != clusterInactive {
			n.instances++
		}
		return true
	})
	store.Scan(r, store.Tasks, store.Prefix(name), func(_ string, t *store.Task) bool {
		switch aws.ToString(t.Task.LastStatus) {
		case statusRunning:
			n.running[""]++
			n.running[t.Task.LaunchType]++
		case statusProvisioning, statusPending, statusActivating:
			n.pending[""]++
			n.pending[t.Task.LaunchType]++
		}
		return true
	})
	return n
}

// statistics lists the counts under the names of DescribeClusters.
func (n clusterCount) statistics() []types.KeyValuePair {
	var out []types.KeyValuePair
	add := func(name string, count int32) {
		out = append(out, types.KeyValuePair{Name: aws.String(name), Value: aws.String(strconv.Itoa(int(count)))})
	}
	kinds := []struct {
		label string
		kind  types.LaunchType
	}{{"EC2", types.LaunchTypeEc2}, {"Fargate", types.LaunchTypeFargate}, {"External", types.LaunchTypeExternal}}
	for _, k := range kinds {
		add("running"+k.label+"TasksCount", n.running[k.kind])
		add("pending"+k.label+"TasksCount", n.pending[k.kind])
	}
	for _, k := range kinds {
		add("active"+k.label+"ServiceCount", 0)
		add("draining"+k.label+"ServiceCount", 0)
	}
	return out
}

// DescribeClusters describes clusters by name or ARN; none means default.
func (a *API) DescribeClusters(_ context.Context, in *ecs.DescribeClustersInput) (*ecs.DescribeClustersOutput, error) {
	refs := in.Clusters
	if len(refs) == 0 {
		refs = []string{defaultCluster}
	}
	if len(refs) > describeMax {
		return nil, invalidParameter("Clusters can have at most %d items.", describeMax)
	}
	out := new(ecs.DescribeClustersOutput)
	for _, ref := range refs {
		if _, err := clusterRef(&ref); err != nil {
			return nil, err
		}
	}
	gone := a.now().Add(-inactiveShown)
	seen := make(map[string]bool)
	a.Store.View(func(r store.Reader) {
		for _, ref := range refs {
			name, err := clusterRef(&ref)
			if err != nil || seen[name] {
				continue
			}
			seen[name] = true
			c, ok := store.Get(r, store.Clusters, name)
			if !ok || c.DeletedAt != nil && c.DeletedAt.Before(gone) {
				out.Failures = append(out.Failures, types.Failure{Arn: aws.String(a.clusterARN(name)), Reason: aws.String("MISSING")})
				continue
			}
			out.Clusters = append(out.Clusters, *a.clusterView(r, c, in.Include))
		}
	})
	return out, nil
}

// ListClusters lists the ARNs of the ACTIVE clusters.
func (a *API) ListClusters(_ context.Context, in *ecs.ListClustersInput) (*ecs.ListClustersOutput, error) {
	p, err := newPage(in.NextToken, in.MaxResults, 100, 100, "ListClusters")
	if err != nil {
		return nil, err
	}
	out := new(ecs.ListClustersOutput)
	a.Store.View(func(r store.Reader) {
		store.ScanAfter(r, store.Clusters, "", p.after, func(name string, c *store.Cluster) bool {
			if c.DeletedAt != nil {
				return true
			}
			if !p.take(name) {
				return false
			}
			out.ClusterArns = append(out.ClusterArns, aws.ToString(c.Cluster.ClusterArn))
			return true
		})
	})
	out.NextToken = p.next()
	return out, nil
}

// changeCluster applies change to a copy of an ACTIVE cluster.
func (a *API) changeCluster(ctx context.Context, ref *string, change func(tx *store.Tx, c *types.Cluster) error) (*types.Cluster, error) {
	var out *types.Cluster
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		name, old, err := activeCluster(tx, ref)
		if err != nil {
			return err
		}
		c := &store.Cluster{Cluster: old.Cluster}
		if err := change(tx, &c.Cluster); err != nil {
			return err
		}
		store.Put(tx, store.Clusters, name, c)
		out = a.clusterView(store.Peek(tx), c, answeredFields)
		return nil
	})
	return out, err
}

// UpdateCluster changes settings, configuration and Service Connect default
// of a cluster; what is absent stays.
func (a *API) UpdateCluster(ctx context.Context, in *ecs.UpdateClusterInput) (*ecs.UpdateClusterOutput, error) {
	if err := checkSettings(in.Settings); err != nil {
		return nil, err
	}
	c, err := a.changeCluster(ctx, in.Cluster, func(_ *store.Tx, c *types.Cluster) error {
		if len(in.Settings) > 0 {
			c.Settings = in.Settings
		}
		if in.Configuration != nil {
			c.Configuration = in.Configuration
		}
		if d := in.ServiceConnectDefaults; d != nil {
			c.ServiceConnectDefaults = nil // an empty namespace removes it
			if aws.ToString(d.Namespace) != "" {
				c.ServiceConnectDefaults = &types.ClusterServiceConnectDefaults{Namespace: d.Namespace}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.UpdateClusterOutput{Cluster: c}, nil
}

// UpdateClusterSettings replaces the settings of a cluster.
func (a *API) UpdateClusterSettings(ctx context.Context, in *ecs.UpdateClusterSettingsInput) (*ecs.UpdateClusterSettingsOutput, error) {
	if err := checkSettings(in.Settings); err != nil {
		return nil, err
	}
	c, err := a.changeCluster(ctx, in.Cluster, func(_ *store.Tx, c *types.Cluster) error {
		c.Settings = withDefaultSettings(in.Settings)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.UpdateClusterSettingsOutput{Cluster: c}, nil
}

// PutClusterCapacityProviders replaces a cluster's providers and its default
// strategy.
func (a *API) PutClusterCapacityProviders(ctx context.Context, in *ecs.PutClusterCapacityProvidersInput) (*ecs.PutClusterCapacityProvidersOutput, error) {
	if err := checkProviders(in.CapacityProviders, in.DefaultCapacityProviderStrategy); err != nil {
		return nil, err
	}
	c, err := a.changeCluster(ctx, in.Cluster, func(tx *store.Tx, c *types.Cluster) error {
		used := ""
		store.Scan(store.Peek(tx), store.Tasks, store.Prefix(aws.ToString(c.ClusterName)), func(_ string, t *store.Task) bool {
			p := aws.ToString(t.Task.CapacityProviderName)
			if p != "" && aws.ToString(t.Task.LastStatus) != statusStopped && !slices.Contains(in.CapacityProviders, p) {
				used = p
			}
			return used == ""
		})
		if used != "" {
			return failure("ResourceInUseException", "The specified capacity provider is in use and cannot be removed: %s", used)
		}
		c.CapacityProviders = in.CapacityProviders
		c.DefaultCapacityProviderStrategy = in.DefaultCapacityProviderStrategy
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.PutClusterCapacityProvidersOutput{Cluster: c}, nil
}

// DeleteCluster makes a cluster INACTIVE. It must have no container
// instances and no tasks that are not STOPPED.
func (a *API) DeleteCluster(ctx context.Context, in *ecs.DeleteClusterInput) (*ecs.DeleteClusterOutput, error) {
	now := a.now()
	var out *types.Cluster
	var name string
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		var c *store.Cluster
		var err error
		if name, c, err = activeCluster(tx, in.Cluster); err != nil {
			return err
		}
		if err := checkEmpty(tx, name); err != nil {
			return err
		}
		deleted := &store.Cluster{Cluster: c.Cluster, DeletedAt: &now}
		deleted.Cluster.Status = aws.String(clusterInactive)
		store.Put(tx, store.Clusters, name, deleted)
		out = a.clusterView(store.Peek(tx), deleted, answeredFields)
		// Those that are not shown any more go with it.
		store.Scan(store.Peek(tx), store.Clusters, "", func(key string, c *store.Cluster) bool {
			if c.DeletedAt != nil && c.DeletedAt.Before(now.Add(-inactiveShown)) && key != name {
				store.Delete(tx, store.Clusters, key)
			}
			return true
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := a.sweepCluster(ctx, name); err != nil {
		return nil, err
	}
	return &ecs.DeleteClusterOutput{Cluster: out}, nil
}

// checkEmpty refuses to delete a cluster that is in use.
func checkEmpty(tx *store.Tx, name string) error {
	var err error
	store.Scan(tx, store.Instances, store.Prefix(name), func(_ string, i *store.Instance) bool {
		if aws.ToString(i.Instance.Status) != clusterInactive {
			err = failure("ClusterContainsContainerInstancesException", "The Cluster cannot be deleted while Container Instances are active or draining.")
		}
		return err == nil
	})
	store.Scan(tx, store.Tasks, store.Prefix(name), func(_ string, t *store.Task) bool {
		if err == nil && aws.ToString(t.Task.LastStatus) != statusStopped {
			err = failure("ClusterContainsTasksException", "The Cluster cannot be deleted while Tasks are active.")
		}
		return err == nil
	})
	return err
}

// sweepCluster removes the stopped tasks and deregistered instances of a
// deleted cluster.
func (a *API) sweepCluster(ctx context.Context, name string) error {
	for {
		n := 0
		err := a.Store.Update(ctx, func(tx *store.Tx) error {
			n = 0
			store.Scan(store.Peek(tx), store.Tasks, store.Prefix(name), func(key string, t *store.Task) bool {
				if aws.ToString(t.Task.LastStatus) == statusStopped {
					store.Delete(tx, store.Tasks, key)
					n++
				}
				return n < sweepChunk
			})
			store.Scan(store.Peek(tx), store.Instances, store.Prefix(name), func(key string, i *store.Instance) bool {
				if aws.ToString(i.Instance.Status) == clusterInactive {
					store.Delete(tx, store.Instances, key)
					store.Delete(tx, store.Allocations, key)
					n++
				}
				return n < sweepChunk
			})
			return nil
		})
		if err != nil || n < sweepChunk {
			return err
		}
	}
}
