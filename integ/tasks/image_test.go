package tasks

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/testimage"
)

// pushed is a definition of a container whose image is pushed to the registry first.
// by makes the reference from the registry's host and the image's digest.
func pushed(by func(host, digest string) string, digest *string) func(l *lab) *ecs.RegisterTaskDefinitionInput {
	return func(l *lab) *ecs.RegisterTaskDefinitionInput {
		img, err := testimage.Busybox()
		if err == nil {
			_, err = l.registry.Push("team/box:v1", img)
		}
		if err != nil {
			panic(err) // the scenario cannot be defined
		}
		d, err := img.Digest()
		if err != nil {
			panic(err)
		}
		*digest = d.String()
		return &ecs.RegisterTaskDefinitionInput{ContainerDefinitions: []types.ContainerDefinition{
			with(container("echo", "pulled"), func(c *types.ContainerDefinition) { c.Image = aws.String(by(l.registry.Host, d.String())) }),
		}}
	}
}

// images are about where images come from.
func images() []scenario {
	var byTag, byDigest string
	pulled := func(want *string) func(t *testing.T, l *lab, tk types.Task) {
		return func(t *testing.T, _ *lab, tk types.Task) {
			if got := aws.ToString(tk.Containers[0].ImageDigest); got != *want {
				t.Errorf("imageDigest %q, want %q", got, *want)
			}
			if tk.PullStartedAt == nil || tk.PullStoppedAt == nil {
				t.Errorf("pullStartedAt %v, pullStoppedAt %v", tk.PullStartedAt, tk.PullStoppedAt)
			}
		}
	}
	return []scenario{
		{
			name: "pull by tag", want: exited(end{"main", 0, ""}), output: []string{"pulled"},
			define: pushed(func(host, _ string) string { return host + "/team/box:v1" }, &byTag), ended: pulled(&byTag),
		},
		{
			name: "pull by digest", want: exited(end{"main", 0, ""}), output: []string{"pulled"},
			define: pushed(func(host, digest string) string { return host + "/team/box@" + digest }, &byDigest), ended: pulled(&byDigest),
		},
	}
}
