package logs

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
)

// Info is what a tag template can tell of a container, under the names that Docker
// gives (Docker's documentation, "Customize log driver output").
type Info struct {
	Config              map[string]string // the driver's options but secret ones
	ContainerID         string
	ContainerName       string // with a leading slash, as in Docker
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string
	ContainerImageName  string
	ContainerCreated    time.Time
	ContainerEnv        []string // only the variables that are asked for
	ContainerLabels     map[string]string
	LogPath             string
	DaemonName          string
}

// ID is the short id of the container.
func (i *Info) ID() string { return i.ContainerID[:min(12, len(i.ContainerID))] }

// FullID is the container's id.
func (i *Info) FullID() string { return i.ContainerID }

// Name is the container's name without the slash.
func (i *Info) Name() string { return strings.TrimPrefix(i.ContainerName, "/") }

// ImageID is the short id of the image.
func (i *Info) ImageID() string {
	_, id, ok := strings.Cut(i.ContainerImageID, ":")
	if !ok {
		id = i.ContainerImageID
	}
	return id[:min(12, len(id))]
}

// ImageFullID is the image's id.
func (i *Info) ImageFullID() string { return i.ContainerImageID }

// ImageName is the image as the definition names it.
func (i *Info) ImageName() string { return i.ContainerImageName }

// Hostname is the host's name.
func (i *Info) Hostname() (string, error) { return os.Hostname() }

// Command is what the container runs.
func (i *Info) Command() string {
	return strings.TrimSpace(strings.Join(append([]string{i.ContainerEntrypoint}, i.ContainerArgs...), " "))
}

// maxTag is more than any destination takes.
const maxTag = 4096

// Tag carries out a tag template.
func Tag(text string, i *Info) (string, error) {
	tag, err := render(text, map[string]any{
		"ID": i.ID(), "FullID": i.FullID(), "Name": i.Name(), "ImageID": i.ImageID(), "ImageFullID": i.ImageFullID(),
		"ImageName": i.ImageName(), "Hostname": lazy(i.Hostname), "Command": i.Command(),
		"Config": i.Config, "ContainerID": i.ContainerID, "ContainerName": i.ContainerName,
		"ContainerEntrypoint": i.ContainerEntrypoint, "ContainerArgs": i.ContainerArgs,
		"ContainerImageID": i.ContainerImageID, "ContainerImageName": i.ContainerImageName,
		"ContainerCreated": i.ContainerCreated, "ContainerEnv": i.ContainerEnv, "ContainerLabels": i.ContainerLabels,
		"LogPath": i.LogPath, "DaemonName": i.DaemonName,
	})
	if err == nil && len(tag) > maxTag {
		err = fmt.Errorf("the tag is longer than %d bytes", maxTag)
	}
	return tag, err
}

// template checks a tag template by carrying it out.
func template(v string) error {
	_, err := Tag(v, &Info{ContainerID: strings.Repeat("0", 32)})
	return err
}

// Extra are the container's labels and variables that the options labels,
// labels-regex, env and env-regex ask for.
func Extra(options, labels, env map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range []struct {
		names, pattern string
		from           map[string]string
	}{
		{options["labels"], options["labels-regex"], labels},
		{options["env"], options["env-regex"], env},
	} {
		for name := range strings.SplitSeq(s.names, ",") {
			if v, ok := s.from[name]; ok {
				out[name] = v
			}
		}
		if s.pattern == "" {
			continue
		}
		re, err := regexp.Compile(s.pattern)
		if err != nil {
			return nil, err
		}
		for name, v := range s.from {
			if re.MatchString(name) {
				out[name] = v
			}
		}
	}
	return out, nil
}
