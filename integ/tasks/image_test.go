package tasks

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/runtime/logfile"
	"berth.dev/berth/integ/system"
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

// logs are about what becomes of a container's output.
func logs() []scenario {
	driver := func(d types.LogDriver, options map[string]string) func(c *types.ContainerDefinition) {
		return func(c *types.ContainerDefinition) {
			c.LogConfiguration = &types.LogConfiguration{LogDriver: d, Options: options}
		}
	}
	rotated := func(files int, atMost int64) func(t *testing.T, l *lab, tk types.Task) {
		return func(t *testing.T, l *lab, tk types.Task) {
			var lines []string
			system.Until(t, 5*time.Second, "the last line is in the log", func() error {
				lines = l.output(t, tk, "main")
				if n := len(lines); n < 10 || lines[n-1] != "3000" {
					return fmt.Errorf("the log has %d lines, the last are %q", n, lines[max(0, n-3):])
				}
				return nil
			})
			// Once more, now that nothing is written: a reader that does not follow misses
			// what is rotated away while it reads.
			lines = l.output(t, tk, "main")
			first := 3000 - len(lines) + 1
			want := make([]string, 0, len(lines))
			for n := first; n <= 3000; n++ {
				want = append(want, fmt.Sprint(n))
			}
			if !slices.Equal(lines, want) {
				t.Error("lines are missing between the first and the last")
			}
			path := l.Runtime.LogPath(taskID(tk), "main")
			for i := range files + 1 {
				st, err := os.Stat(logfile.Rotated(path, i))
				if exists := err == nil; exists != (i < files) {
					t.Errorf("file %d of the log: %v", i, err)
				} else if exists && st.Size() > atMost {
					t.Errorf("file %d of the log has %d bytes, want at most %d", i, st.Size(), atMost)
				}
			}
		}
	}
	ok := exited(end{"main", 0, ""})
	return []scenario{
		{name: "rotated log", want: ok, define: task(nil, container("seq", "1", "3000")), ended: rotated(3, 4096)},
		{
			name: "rotated as the container says", want: ok, ended: rotated(2, 8192),
			define: task(nil, with(container("seq", "1", "3000"), driver(types.LogDriverJsonFile, map[string]string{"max-size": "8k", "max-file": "2"}))),
		},
		{
			name: "both streams", want: ok, output: []string{"out", "err"},
			define: task(nil, shell("echo out; sleep 0.2; echo err >&2")),
		},
	}
}
