// Package ecs calls the ECS API as an agent does: it registers the container instance,
// asks where the agent communication service is, and reports state changes (agent
// protocol, "ECS API"). It also knows what this host and this build can do, which is
// what an instance registers with.
package ecs
