package api

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

// Services are not offered: a cluster has none. Those who look at everything in a cluster,
// as Prometheus' discovery does, ask for them all the same and are told so.

// serviceOperations are the operations that read services.
func (a *API) serviceOperations() map[string]operation {
	return list(op("ListServices", a.ListServices), op("DescribeServices", a.DescribeServices))
}

// ListServices lists the services of a cluster: none.
func (a *API) ListServices(_ context.Context, in *ecs.ListServicesInput) (*ecs.ListServicesOutput, error) {
	_, err := a.clusterOf(in.Cluster)
	return &ecs.ListServicesOutput{ServiceArns: []string{}}, err
}

// DescribeServices finds no service.
func (a *API) DescribeServices(_ context.Context, in *ecs.DescribeServicesInput) (*ecs.DescribeServicesOutput, error) {
	const most = 10
	cluster, err := a.clusterOf(in.Cluster)
	if err != nil {
		return nil, err
	}
	if len(in.Services) == 0 || len(in.Services) > most {
		return nil, invalidParameter("Services must have 1 to %d items.", most)
	}
	out := &ecs.DescribeServicesOutput{Services: []types.Service{}}
	for _, ref := range in.Services {
		arn := ref
		if id, err := childRef("service", cluster, ref); err == nil {
			arn = a.arn("service", cluster, id)
		}
		out.Failures = append(out.Failures, types.Failure{Arn: &arn, Reason: new("MISSING")})
	}
	return out, nil
}

// clusterOf is the name of a cluster that must be there.
func (a *API) clusterOf(ref *string) (name string, err error) {
	if name, err = clusterRef(ref); err != nil {
		return "", err
	}
	a.Store.View(func(r store.Reader) { err = requireCluster(r, name) })
	return name, err
}
