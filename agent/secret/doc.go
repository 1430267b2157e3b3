// Package secret fetches what task definitions only refer to: parameters of SSM
// Parameter Store, values of Secrets Manager, and environment files in S3, in the name
// of the task's execution role (agent protocol, "Secrets" and "Environment files").
//
// Values are held in memory from their fetching to the end of the task and are written
// nowhere but into the container's specification, or into files of a tmpfs that only
// root and the container can reach. A restart of the agent forgets them and fetches them
// again only for containers that are still to be created.
package secret
