package api

import (
	"encoding/json"
	"fmt"
	"strings"

	"berth.dev/berth/cluster/iam"
)

// roleCaller is who has a temporary key, whose signature has been verified.
func (a *API) roleCaller(id, token string) (Caller, error) {
	if a.IAM != nil {
		if p, ok := a.IAM.Principal(id, token); ok {
			return Caller{Kind: Role, AccessKeyID: id, ARN: p.ARN, Role: &p}, nil
		}
	}
	return Caller{}, failure("UnrecognizedClientException", "The security token included in the request is invalid.")
}

// about says which member of a request names the resources of an operation, and of what
// kind they are (service authorization reference of ECS). Operations that are not here are
// about everything.
var about = map[string]struct{ kind, member string }{
	"DescribeClusters": {"cluster", "clusters"}, "DeleteCluster": {"cluster", "cluster"},
	"UpdateCluster": {"cluster", "cluster"}, "UpdateClusterSettings": {"cluster", "cluster"},
	"PutClusterCapacityProviders": {"cluster", "cluster"}, "ListContainerInstances": {"cluster", "cluster"},
	"RegisterContainerInstance": {"cluster", "cluster"},

	"RunTask": {"task-definition", "taskDefinition"}, "StartTask": {"task-definition", "taskDefinition"},
	"DeregisterTaskDefinition": {"task-definition", "taskDefinition"}, "DeleteTaskDefinitions": {"task-definition", "taskDefinitions"},

	"StopTask": {"task", "task"}, "DescribeTasks": {"task", "tasks"}, "ExecuteCommand": {"task", "task"},
	"GetTaskProtection": {"task", "tasks"}, "UpdateTaskProtection": {"task", "tasks"},
	"SubmitTaskStateChange": {"task", "task"},

	"CreateService": {"service", "serviceName"}, "UpdateService": {"service", "service"},
	"DeleteService": {"service", "service"}, "DescribeServices": {"service", "services"},

	"DescribeContainerInstances":    {"container-instance", "containerInstances"},
	"UpdateContainerInstancesState": {"container-instance", "containerInstances"},
	"DeregisterContainerInstance":   {"container-instance", "containerInstance"},
	"UpdateContainerAgent":          {"container-instance", "containerInstance"},

	"TagResource": {"", "resourceArn"}, "UntagResource": {"", "resourceArn"}, "ListTagsForResource": {"", "resourceArn"},
}

// permit lets a role do what its policies allow, on every resource that the request names.
func (a *API) permit(c Caller, operation string, body []byte) error {
	if c.Kind != Role {
		return nil
	}
	action := "ecs:" + operation
	var in map[string]any
	if err := json.Unmarshal(body, &in); err != nil {
		in = nil // the operation itself says what is wrong, if it may be called at all
	}
	cluster := "default"
	if s, _ := in["cluster"].(string); s != "" {
		cluster = s[strings.LastIndexByte(s, '/')+1:]
	}
	context := map[string]string{"ecs:cluster": a.arn("cluster", cluster)}
	for _, resource := range a.resourcesOf(operation, cluster, in) {
		why := "because no identity-based policy allows the " + action + " action"
		switch a.IAM.Decide(c.Role.Role, action, resource, context) {
		case iam.Allowed:
			continue
		case iam.ExplicitlyDenied:
			why = "with an explicit deny in an identity-based policy"
		}
		return accessDenied("%s", fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s %s", c.ARN, action, clip(resource), why))
	}
	return nil
}

// resourcesOf lists the ARNs of what a request is about.
func (a *API) resourcesOf(operation, cluster string, in map[string]any) []string {
	of, ok := about[operation]
	if !ok {
		return []string{"*"}
	}
	var refs []string
	switch v := in[of.member].(type) {
	case string:
		refs = []string{v}
	case []any:
		for _, r := range v {
			if s, ok := r.(string); ok {
				refs = append(refs, s)
			}
		}
	}
	if len(refs) == 0 && of.kind == "cluster" {
		refs = []string{cluster}
	}
	var out []string
	for _, ref := range refs {
		switch {
		case strings.HasPrefix(ref, "arn:"):
			out = append(out, ref)
		case of.kind == "cluster":
			out = append(out, a.arn("cluster", ref))
		case of.kind == "task-definition":
			if !strings.Contains(ref, ":") {
				ref += ":*"
			}
			out = append(out, a.arn("task-definition", ref))
		default:
			out = append(out, a.arn(of.kind, cluster, ref))
		}
	}
	if len(out) == 0 {
		return []string{"*"}
	}
	return out
}
