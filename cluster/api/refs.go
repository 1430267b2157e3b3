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

// clip bounds what is quoted of a request in an error.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
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
