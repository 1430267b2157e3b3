package tmds

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

// metadataFile is the name of the file about a container (agent protocol, "Metadata
// file").
const metadataFile = "ecs-container-metadata.json"

// ready is the status of a file with all that is known of a container that runs.
const ready = "READY"

// Files writes a file about each container into the container.
type Files struct {
	// Dir holds the directories that the containers see.
	Dir string
	// Instance is who the agent is for the cluster.
	Instance func() Instance
	// HideZone leaves the availability zone out.
	HideZone bool
}

// fileDocument is the content of a metadata file.
type fileDocument struct {
	Cluster                string        `json:"Cluster,omitempty"`
	ContainerInstanceARN   string        `json:"ContainerInstanceARN,omitempty"`
	TaskARN                string        `json:"TaskARN,omitempty"`
	TaskDefinitionFamily   string        `json:"TaskDefinitionFamily,omitempty"`
	TaskDefinitionRevision string        `json:"TaskDefinitionRevision,omitempty"`
	ContainerID            string        `json:"ContainerID,omitempty"`
	ContainerName          string        `json:"ContainerName,omitempty"`
	DockerContainerName    string        `json:"DockerContainerName,omitempty"`
	ImageID                string        `json:"ImageID,omitempty"`
	ImageName              string        `json:"ImageName,omitempty"`
	PortMappings           []filePort    `json:"PortMappings,omitempty"`
	Networks               []fileNetwork `json:"Networks,omitempty"`
	Status                 string        `json:"MetadataFileStatus,omitempty"` // READY once it is complete
	AvailabilityZone       string        `json:"AvailabilityZone,omitempty"`
}

type filePort struct {
	ContainerPort      uint16 `json:"ContainerPort,omitempty"`
	ContainerPortRange string `json:"ContainerPortRange,omitempty"`
	HostPort           uint16 `json:"HostPort,omitempty"`
	BindIP             string `json:"BindIp,omitempty"`
	Protocol           string `json:"Protocol,omitempty"`
}

type fileNetwork struct {
	NetworkMode   string   `json:"NetworkMode,omitempty"`
	IPv4Addresses []string `json:"IPv4Addresses,omitempty"`
	IPv6Addresses []string `json:"IPv6Addresses,omitempty"`
}

func (f *Files) directory(t *task.Task, container string) string {
	return filepath.Join(f.Dir, t.ID(), container)
}

// prepare makes the directory of a container's file with its first content, and says
// where in the container it goes.
func (f *Files) prepare(t *task.Task, container, id string) (dir, at string, err error) {
	dir = f.directory(t, container)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("metadata file: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, metadataFile)); err != nil {
		if err := f.write(dir, f.identity(t, container)); err != nil {
			return "", "", err
		}
	}
	return dir, "/opt/ecs/metadata/" + id, nil
}

func (f *Files) identity(t *task.Task, container string) *fileDocument {
	i := f.Instance()
	d := &fileDocument{
		Cluster: i.Cluster, ContainerInstanceARN: i.ARN, TaskARN: t.ARN,
		TaskDefinitionFamily: t.Family, TaskDefinitionRevision: t.Version, ContainerName: container,
	}
	if !f.HideZone {
		d.AvailabilityZone = i.Zone
	}
	return d
}

// Update writes the files of a task's running containers anew, where they are not
// complete yet or differ.
func (f *Files) Update(v engine.View) error {
	for i := range v.Task.Containers {
		c := &v.Task.Containers[i]
		r := record(&v.Known, containerID(c.Name))
		dir := f.directory(v.Task, c.Name)
		if !r.Running() {
			continue
		}
		if _, err := os.Stat(dir); err != nil {
			continue // it was started before files were asked for
		}
		d := f.identity(v.Task, c.Name)
		d.ContainerID, d.DockerContainerName, d.ImageName = r.RuntimeID, DockerName(v.Task, c.Name, r.RuntimeID), c.Image
		d.ImageID = record(&v.Known, task.ResourceID{Kind: task.KindImage, Name: c.Name}).Digest
		network := networkOf(&v, c.Name)
		for _, b := range network.Bindings[c.Name] {
			d.PortMappings = append(d.PortMappings, filePort{b.ContainerPort, b.ContainerRange, b.HostPort, b.BindIP, b.Protocol})
		}
		for _, n := range networks(v.Task, network, 3) {
			d.Networks = append(d.Networks, fileNetwork{n.NetworkMode, n.IPv4Addresses, n.IPv6Addresses})
		}
		d.Status = ready
		if err := f.write(dir, d); err != nil {
			return err
		}
	}
	return nil
}

// write replaces the file, so that a reader has the old content or the new.
func (f *Files) write(dir string, d *fileDocument) error {
	b, err := json.MarshalIndent(d, "", "\t")
	if err != nil {
		return fmt.Errorf("metadata file: %w", err)
	}
	path := filepath.Join(dir, metadataFile)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
		return nil
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return fmt.Errorf("metadata file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("metadata file: %w", err)
	}
	return nil
}

// remove takes away the files of a task.
func (f *Files) remove(t *task.Task) error {
	return removeBelow(f.Dir, t.ID())
}
