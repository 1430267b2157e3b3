package task

import "slices"

// SecretRef says where the value of a secret is and what it becomes. It is no secret
// itself (agent protocol, "PayloadMessage task model").
type SecretRef struct {
	Name     string `json:"name"`             // of the variable, the log option or the file
	From     string `json:"from"`             // name or ARN of a parameter, or ARN of a secret
	Region   string `json:"region,omitempty"` // of the service that has it
	Provider string `json:"provider"`         // ProviderSSM or ProviderSecretsManager
	Use      Use    `json:"use"`
	Dir      string `json:"dir,omitempty"` // in the container, for UseFile
}

// Providers of secrets; the values are the protocol's.
const (
	ProviderSSM            = "ssm"
	ProviderSecretsManager = "asm"
)

// Use is what the value of a secret becomes.
type Use string

// Uses.
const (
	UseEnvironment Use = "environment" // a variable of the container
	UseLogOption   Use = "logOption"   // an option of the container's log driver
	UseLogRouter   Use = "logRouter"   // a variable of the task's FireLens container
	UseFile        Use = "file"        // a file in a tmpfs in the container
)

// Given is what a container gets that its definition only refers to. It is held in
// memory and never stored.
type Given struct {
	Environment map[string]Secret // overwrites the definition's
	Defaults    map[string]Secret // of environment files: only what nothing else sets
	LogOptions  map[string]Secret
	LogRouter   map[string]Secret // log options for the FireLens container, by option
	Mounts      []GivenMount
}

// GivenMount is a directory of the host that is mounted read-only into the container.
type GivenMount struct{ Source, Path string }

// RegistryAuth says where the credentials of an image's registry come from.
type RegistryAuth struct {
	// Secret is the ARN or name of a Secrets Manager secret with username and password;
	// with "" the registry is one of ECR.
	Secret string `json:"secret,omitempty"`
	Region string `json:"region"`

	RegistryID       string `json:"registryId,omitempty"`
	Endpoint         string `json:"endpoint,omitempty"` // of the ECR API; "" means the region's
	UseExecutionRole bool   `json:"useExecutionRole,omitempty"`
}

// LabelSecretFiles is the docker label by which a container gets its secrets as files
// instead of variables: a directory in the container, and optionally a colon and the
// names of the secrets that it is for with commas between them.
const LabelSecretFiles = "berth.secret-files"

// LabelNetworks is the docker label by which a container joins networks of the
// operator's: their names, with commas between them.
const LabelNetworks = "berth.networks"

// NetworkAttribute begins the name of the attribute that an instance has for each
// network of its operator's, and that a task which names the network requires.
const NetworkAttribute = "berth.capability.network."

// MaxNetworks bounds how many networks one container may name.
const MaxNetworks = 8

// NetworksOf lists the networks that the named container joins besides that of the
// task's mode; with a network that all containers share, those of all of them.
func (t *Task) NetworksOf(container string) []string {
	if c := t.Container(container); c != nil && (t.NetworkMode == NetworkBridge || t.NetworkMode == NetworkNone) {
		return c.Networks
	}
	var out []string
	for i := range t.Containers {
		for _, n := range t.Containers[i].Networks {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}
