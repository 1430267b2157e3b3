package api

import (
	"context"
	"regexp"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
)

// defaultCluster is the cluster that is meant when none is named.
const defaultCluster = "default"

// nameRule is the alphabet of clusters, families, containers and services
// (ECS developer guide): letters, digits, hyphens, underscores, up to 255.
var nameRule = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,255}$`)

// arn makes an ECS ARN of a resource such as cluster/default.
func (c Config) arn(kind string, parts ...string) string {
	return "arn:" + Partition(c.Region) + ":ecs:" + c.Region + ":" + c.Account + ":" + kind + "/" + strings.Join(parts, "/")
}

func (c Config) clusterARN(name string) string { return c.arn("cluster", name) }

func (c Config) definitionARN(family string, revision int32) string {
	return c.arn("task-definition", family+":"+strconv.Itoa(int(revision)))
}

// resource takes an ECS ARN apart: "cluster", ["default"]. ok is false for
// text that is not an ECS ARN of this region and account.
func (c Config) resource(arn string) (kind string, parts []string, ok bool) {
	f := strings.SplitN(arn, ":", 6)
	if len(f) != 6 || f[0] != "arn" || f[1] != Partition(c.Region) || f[2] != "ecs" || f[3] != c.Region || f[4] != c.Account {
		return "", nil, false
	}
	parts = strings.Split(f[5], "/")
	if len(parts) < 2 {
		return "", nil, false
	}
	return parts[0], parts[1:], true
}

// clusterRef resolves a cluster parameter, a name or an ARN, to a name that
// need not exist. Absent and empty mean the default cluster.
func clusterRef(ref *string) (string, error) {
	name := aws.ToString(ref)
	if name == "" {
		return defaultCluster, nil
	}
	if strings.HasPrefix(name, "arn:") {
		f := strings.SplitN(name, ":", 6)
		path, ok := strings.CutPrefix(f[len(f)-1], "cluster/")
		if len(f) != 6 || f[2] != "ecs" || !ok {
			return "", invalidParameter("Invalid identifier: %s is not the ARN of a cluster.", clip(name))
		}
		name = path
	}
	if !nameRule.MatchString(name) {
		return "", invalidParameter("Invalid identifier: %s is not the name of a cluster.", clip(name))
	}
	return name, nil
}

// activeCluster resolves a cluster parameter to an existing ACTIVE cluster,
// or ClusterNotFoundException.
func activeCluster(r store.Reader, ref *string) (string, *store.Cluster, error) {
	name, err := clusterRef(ref)
	if err != nil {
		return "", nil, err
	}
	cl, ok := store.Get(r, store.Clusters, name)
	if !ok || cl.DeletedAt != nil {
		return "", nil, clusterNotFound()
	}
	return name, cl, nil
}

// definitionRef is a parsed reference to a task definition.
type definitionRef struct {
	family string
	// revision is 0 for "the latest ACTIVE one".
	revision int32
}

// parseDefinition parses family, family:revision or an ARN.
func (c Config) parseDefinition(ref string) (definitionRef, bool) {
	if strings.HasPrefix(ref, "arn:") {
		kind, parts, ok := c.resource(ref)
		if !ok || kind != "task-definition" || len(parts) != 1 {
			return definitionRef{}, false
		}
		ref = parts[0]
	}
	family, rev, has := strings.Cut(ref, ":")
	if !nameRule.MatchString(family) {
		return definitionRef{}, false
	}
	if !has {
		return definitionRef{family: family}, true
	}
	n, err := strconv.ParseInt(rev, 10, 32)
	if err != nil || n < 1 || strconv.FormatInt(n, 10) != rev {
		return definitionRef{}, false
	}
	return definitionRef{family, int32(n)}, true
}

// findDefinition returns the task definition that ref means, whatever its
// status if a revision is named, and otherwise the latest ACTIVE one.
func (c Config) findDefinition(r store.Reader, ref string) (*store.TaskDefinition, bool) {
	d, ok := c.parseDefinition(ref)
	if !ok {
		return nil, false
	}
	if d.revision != 0 {
		return store.Get(r, store.TaskDefinitions, store.DefinitionKey(d.family, d.revision))
	}
	return latestActive(r, d.family)
}

// latestActive finds a family's newest ACTIVE revision. Revisions are
// looked up from the last one down, so that long families stay cheap.
func latestActive(r store.Reader, family string) (*store.TaskDefinition, bool) {
	f, ok := store.Get(r, store.Families, family)
	if !ok {
		return nil, false
	}
	for rev := f.LastRevision; rev > 0; rev-- {
		d, ok := store.Get(r, store.TaskDefinitions, store.DefinitionKey(family, rev))
		if ok && d.Definition.Status == definitionActive {
			return d, true
		}
	}
	return nil, false
}

// registeredBy is the ARN that answers name as the one who registered.
func registeredBy(ctx context.Context) *string {
	if arn := CallerOf(ctx).ARN; arn != "" {
		return &arn
	}
	return nil
}
