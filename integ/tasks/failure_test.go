package tasks

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

func itoa(n int32) string { return strconv.Itoa(int(n)) }

// containerIs says whether a container has a status.
func containerIs(tk types.Task, name, status string) error {
	for _, c := range tk.Containers {
		if aws.ToString(c.Name) != name {
			continue
		}
		if got := aws.ToString(c.LastStatus); got != status {
			return fmt.Errorf("%s is %s", name, got)
		}
		return nil
	}
	return errors.New("no container " + name)
}

// neverStarted is the outcome of a task that could not be started.
func neverStarted(reason string, ends ...end) outcome {
	return outcome{StopCode: types.TaskStopCodeTaskFailedToStart, Reason: reason, Containers: ends}
}

// failures are tasks that cannot run.
func failures() []scenario {
	const (
		noTag        = `CannotPullImageManifestError: The task can’t pull the image. Check whether the image exists. manifest for REGISTRY/team/none:v1 not found: manifest unknown: REGISTRY/team/none:v1: not found`
		noRegistry   = `CannotPullImageManifestError: The task can’t pull the image. Check your network configuration. failed to do request: Head "http://127.0.0.1:1/v2/nothing/manifests/latest": dial tcp 127.0.0.1:1: connect: connection refused`
		notDirectory = `CannotStartContainerError: mkdir /etc/passwd: not a directory: correct workingDirectory, or the permissions of the directory in the image`
		noUser       = `CannotStartContainerError: user: unable to find user nobody-here: unable to find user nobody-here: no matching entries in passwd file: name a user and group of the image, or give their numbers`
		noCommand    = `CannotStartContainerError: exec: "/no/such/program": stat /no/such/program: no such file or directory: correct command or entryPoint, or use an image that has the program`
	)
	return []scenario{
		{
			name: "command that is not there", define: task(nil, container("/no/such/program")),
			want: neverStarted(noCommand, end{"main", noExit, noCommand}),
		},
		{
			name: "registry that does not answer", want: neverStarted(noRegistry, end{"main", noExit, noRegistry}),
			define: task(nil, with(container(), func(c *types.ContainerDefinition) { c.Image = aws.String("127.0.0.1:1/nothing:latest") })),
		},
		{
			name: "working directory that cannot be", define: task(nil, with(container("pwd"), func(c *types.ContainerDefinition) { c.WorkingDirectory = aws.String("/etc/passwd") })),
			want: neverStarted(notDirectory, end{"main", noExit, notDirectory}),
		},
		{
			name: "user that is not there", define: task(nil, with(container("id"), func(c *types.ContainerDefinition) { c.User = aws.String("nobody-here") })),
			want: neverStarted(noUser, end{"main", noExit, noUser}),
		},
		{
			name: "tag that is not there", want: neverStarted(noTag, end{"main", noExit, noTag}),
			define: func(l *lab) *ecs.RegisterTaskDefinitionInput {
				return task(nil, with(container(), func(c *types.ContainerDefinition) { c.Image = aws.String(l.registry.Host + "/team/none:v1") }))(l)
			},
		},
		{
			name: "container without memory", want: exited(end{"main", 137, "OutOfMemoryError: Container killed due to memory usage"}),
			define: task(nil, with(container("tail", "/dev/zero"), func(c *types.ContainerDefinition) { c.Memory = aws.Int32(16) })),
		},
	}
}
