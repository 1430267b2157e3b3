package api

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

// newID makes the 32 hexadecimal digits that name a task or an instance.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: the program ends instead
	return hex.EncodeToString(b[:])
}

// uuid makes the name of a container.
func uuid() string {
	id := newID()
	return fmt.Sprintf("%s-%s-4%s-a%s-%s", id[:8], id[8:12], id[13:16], id[17:20], id[20:])
}

// NewRequestID is a name for a request that is none of the API's own.
func NewRequestID() string { return uuid() }

// clip bounds what is quoted of a request in an error.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// Partition is the first word of a region's ARNs (ECS API, "ARNs and identifiers").
func Partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

// childRef reads a reference to a task or a container instance of a cluster: an id, an
// ARN, or an ARN of the old form without the cluster. What it names need not exist.
func childRef(kind, cluster, ref string) (id string, err error) {
	id = ref
	if strings.HasPrefix(ref, "arn:") {
		parts := strings.SplitN(ref, ":", 6)
		path, ok := strings.CutPrefix(parts[len(parts)-1], kind+"/")
		if len(parts) != 6 || parts[2] != "ecs" || !ok {
			return "", invalidParameter("Invalid identifier: %s is not the ARN of a %s.", clip(ref), kind)
		}
		if name, rest, long := strings.Cut(path, "/"); long {
			if name != cluster {
				return "", invalidParameter("Identifier is for cluster %s. Your cluster is %s", clip(name), cluster)
			}
			path = rest
		}
		id = path
	}
	if !nameRule.MatchString(id) {
		return "", invalidParameter("Invalid identifier: %s", clip(ref))
	}
	return id, nil
}

// requireCluster fails unless the cluster is there and active.
func requireCluster(r store.Reader, name string) error {
	c, ok := store.Get(r, store.Clusters, name)
	if !ok || c.DeletedAt != nil {
		return clusterNotFound()
	}
	return nil
}

// runnable finds the definition of new tasks.
func (a *API) runnable(r store.Reader, ref string) (*store.TaskDefinition, error) {
	d, ok := a.findDefinition(r, ref)
	switch {
	case !ok:
		return nil, clientException("TaskDefinition not found.")
	case d.Definition.Status != types.TaskDefinitionStatusActive:
		return nil, clientException("TaskDefinition is inactive")
	}
	return d, nil
}

// definitionOf finds the definition of a task that exists; nil if it is gone.
func (a *API) definitionOf(r store.Reader, arn string) *types.TaskDefinition {
	d, ok := a.findDefinition(r, arn)
	if !ok {
		return nil
	}
	return &d.Definition
}

// ownInstance fails unless the caller is an operator or the agent of that instance.
func ownInstance(c Caller, arn string) error {
	if c.Kind == Instance && c.InstanceARN != arn {
		return accessDenied("This key belongs to another container instance.")
	}
	return nil
}

func str(s *string) string { return aws.ToString(s) }
