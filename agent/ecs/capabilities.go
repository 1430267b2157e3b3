package ecs

import (
	"maps"
	"slices"

	"berth.dev/berth/agent/config"
)

// Attribute is an attribute of the container instance. Value is empty for most.
type Attribute struct{ Name, Value string }

// Prefixes of capabilities (agent protocol, "Attributes registered").
const (
	capC = "com.amazonaws.ecs.capability."
	capA = "ecs.capability."
)

// capability is one line of the table of what an agent may claim.
type capability struct {
	name string
	// supported says that this build really does it. A line that is false is never
	// claimed, and is here so that what is missing can be seen.
	supported bool
	// when limits the claim to some settings; nil means always.
	when func(c *config.Config) bool
	// host limits the claim to hosts that have what it takes; nil means any.
	host func(h HostFacts) bool
	// external is false for what an external instance must not claim.
	notExternal bool
}

// capabilities is the table, in the order of the reference. Log drivers and the
// versions of the Docker API, which stand for sets of features that a cluster asks for
// by these names, are added by Attributes.
func capabilities() []capability {
	limits := func(c *config.Config) bool { return c.Host.TaskLimits }
	role := func(c *config.Config) bool { return c.Roles.TaskRole }
	roleHost := func(c *config.Config) bool { return c.Roles.TaskRoleHost }
	trunk := func(c *config.Config) bool { return c.Network.TaskENI && c.Network.Trunking }
	pool := func(c *config.Config) bool { return c.Berth.ENIPool != "none" }
	volumePool := func(c *config.Config) bool { return c.Features.EBS && c.Berth.VolumePool != "none" }
	blocks := func(c *config.Config) bool { return c.Features.EBS && !c.Cluster.External || volumePool(c) }
	ipv6 := func(h HostFacts) bool { return h.IPv6 }
	vlan := func(h HostFacts) bool { return h.VLAN }
	eni := func(c *config.Config) bool { return c.Network.TaskENI && !c.Cluster.External || pool(c) }
	return []capability{
		{name: capA + "private-registry-authentication.secretsmanager", supported: true},
		{name: capA + "secrets.ssm.environment-variables", supported: true},
		{name: capA + "secrets.ssm.bootstrap.log-driver", supported: true},
		{name: capA + "ecr-endpoint", supported: true},
		{name: capA + "secrets.asm.environment-variables", supported: true},
		{name: capA + "secrets.asm.bootstrap.log-driver", supported: true},
		{name: capA + "container-ordering", supported: true},
		{name: capA + "full-sync", supported: true},
		{name: capA + "env-files.s3", supported: true},
		{name: capA + "network.container-port-range", supported: true},
		{name: capA + "container-restart-policy", supported: true},
		{name: capC + "privileged-container", supported: true, when: func(c *config.Config) bool { return !c.Roles.NoPrivileged }},
		{name: capC + "task-iam-role", supported: true, when: role},
		{name: capC + "task-iam-role-network-host", supported: true, when: roleHost},
		{name: capA + "task-cpu-mem-limit", supported: true, when: limits},
		{name: capA + "increased-task-cpu-limit", supported: true, when: limits},
		{name: capA + "task-eni", supported: true, when: eni},
		{name: capA + "task-eni.ipv6", supported: true, when: eni, host: ipv6},
		{name: capA + "task-eni-block-instance-metadata", supported: true, when: func(c *config.Config) bool { return c.Network.BlockIMDS && eni(c) }},
		{name: capA + "task-eni-trunking", supported: true, when: trunk, host: vlan, notExternal: true},
		{name: "berth.capability.interface-pool", supported: true, when: pool},
		{name: capC + "ecr-auth", supported: true},
		{name: capA + "execution-role-ecr-pull", supported: true},
		{name: capA + "container-health-check", supported: true, when: func(c *config.Config) bool { return !c.Metadata.HealthDisabled }},
		{name: capA + "execution-role-awslogs", supported: true, when: func(c *config.Config) bool { return c.Logging.AwslogsRole }},
		{name: capA + "docker-plugin.local", supported: true},
		{name: capA + "pid-ipc-namespace-sharing", supported: true},
		{name: capA + "aws-appmesh", notExternal: true},
		{name: capA + "task-eia", notExternal: true},
		{name: capA + "firelens.fluentd", supported: true},
		{name: capA + "firelens.fluentbit", supported: true},
		{name: capC + "logging-driver.awsfirelens", supported: true},
		{name: capA + "logging-driver.awsfirelens.log-driver-buffer-limit", supported: true},
		{name: capA + "firelens.non-root-user", supported: true},
		{name: capA + "efs", supported: true},
		{name: capA + "efsAuth", supported: true},
		{name: capA + "storage.s3-files"},
		{name: capA + "firelens.options.config.file", supported: true},
		{name: capA + "firelens.options.config.s3", supported: true},
		{name: capA + "gmsa", when: func(c *config.Config) bool { return c.Roles.GMSA }},
		{name: capA + "execute-command"},
		{name: capA + "service-connect-v1", notExternal: true},
		{name: capA + "storage.ebs-task-volume-attach", supported: true, when: blocks},
		{name: capA + "storage.ebsta-non-root-user", supported: true, when: blocks},
		{name: "berth.capability.volume-pool", supported: true, when: volumePool},
		{name: capA + "external", supported: true, when: func(c *config.Config) bool { return c.Cluster.External }},
		// The reference leaves this out on external instances, for which AWS does not offer
		// it. Here nothing of it depends on EC2.
		{name: capA + "fault-injection", supported: true},
		{name: capA + "ipv6-only", supported: true, host: ipv6},
	}
}

// dockerVersions are the versions of the Docker API that a present Docker claims to
// serve; the shapes that come with them are those of dockerConfig.
func dockerVersions() []string {
	return []string{
		"1.17", "1.18", "1.19", "1.20", "1.21", "1.22", "1.23", "1.24", "1.25", "1.28", "1.29", "1.30", "1.32",
	}
}

// logDrivers are those that this build writes.
func logDrivers() []string {
	return []string{"json-file", "syslog", "journald", "gelf", "fluentd", "awslogs", "splunk", "none"}
}

// Attributes is what a container instance with these settings on this host registers
// with, in the order of the reference. Custom attributes come first, and only at the
// first registration.
func Attributes(c *config.Config, h HostFacts, first bool) []Attribute {
	var out []Attribute
	add := func(name, value string) { out = append(out, Attribute{Name: name, Value: value}) }
	if first {
		for _, name := range slices.Sorted(maps.Keys(c.Cluster.Attributes)) {
			add(name, c.Cluster.Attributes[name])
		}
	}
	for _, k := range capabilities() {
		if k.supported && (k.when == nil || k.when(c)) && (k.host == nil || k.host(h)) && !(k.notExternal && c.Cluster.External) {
			add(k.name, "")
		}
		if k.name == capC+"privileged-container" {
			for _, v := range dockerVersions() {
				add(capC+"docker-remote-api."+v, "")
			}
			for _, d := range c.Logging.Drivers {
				if slices.Contains(logDrivers(), d) {
					add(capC+"logging-driver."+d, "")
				}
			}
		}
	}
	for _, name := range h.Capabilities {
		add(name, "")
	}
	add("ecs.os-type", "linux")
	add("ecs.os-family", "LINUX")
	family := c.Host.OSFamily
	if family == "" {
		family = h.OSFamily
	}
	if family == "" {
		family = "LINUX"
	}
	add("ecs.os-type-detailed", family)
	if c.Cluster.External {
		add("ecs.cpu-architecture", h.Architecture)
	}
	return out
}
