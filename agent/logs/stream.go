package logs

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
)

// StreamFile is the name of the file in a container's log directory that describes
// where its output goes. Only root can read it.
const StreamFile = "stream.json"

// Stream is where the output of one container goes. The shipper acts on it.
type Stream struct {
	TaskARN   string `json:"taskArn"`
	TaskID    string `json:"taskId"`
	Container string `json:"container"`

	Driver  string            `json:"driver"`
	Options map[string]string `json:"options,omitempty"`
	// Secrets are the options whose values only the agent has, in its memory; the
	// shipper asks it for them.
	Secrets []string `json:"secrets,omitempty"`
	// Execution says that the task's execution role signs requests, and not the
	// instance's.
	Execution bool `json:"execution,omitempty"`
	Blocking  bool `json:"blocking,omitempty"`

	ID      string            `json:"id"`
	Name    string            `json:"name"` // as Docker would name the container
	Image   string            `json:"image"`
	ImageID string            `json:"imageId,omitempty"`
	Command []string          `json:"command,omitempty"`
	Created time.Time         `json:"created"`
	Extra   map[string]string `json:"extra,omitempty"` // labels and variables asked for
}

// Info is what tag templates can tell.
func (s *Stream) Info() *Info {
	i := &Info{
		Config: s.Options, ContainerID: s.ID, ContainerName: "/" + s.Name, ContainerImageID: s.ImageID, ContainerImageName: s.Image,
		ContainerCreated: s.Created, DaemonName: "berth", ContainerLabels: s.Extra,
	}
	if len(s.Command) > 0 {
		i.ContainerEntrypoint, i.ContainerArgs = s.Command[0], s.Command[1:]
	}
	return i
}

// Settings are the agent's.
type Settings struct {
	Run      string // directory of sockets
	Logs     string // directory of all logs
	MaxBytes int64  // of one log file; 0 means 10 MiB
	Files    int    // per container; 0 means 5
	// DropNone has the output of containers with log driver none thrown away. Else it is
	// kept in a local file as that of all others.
	DropNone bool
	// Routers is the directory of the tasks' log routers (FireLens).
	Routers string
	// ExecutionRole lets a task's execution role send its logs.
	ExecutionRole bool
	// RouterWaits has containers wait for their log router unless they say otherwise.
	RouterWaits bool
	// Available are the drivers that tasks may use; nil means all.
	Available []string
}

// Defaults of the local file, and the least of one whose content is sent on: what a
// blocking log may be ahead must fit into the files besides the current one.
const (
	defaultBytes = 10 << 20
	defaultFiles = 5
	shippedBytes = 1 << 20
	shippedFiles = 4
)

// About is what the runtime knows of the container.
type About struct {
	Dir     string // the container's log directory
	ID      string
	Image   string
	ImageID string
	Command []string
	Secrets []string // options of the log driver whose values are secrets
}

// Plan is how one container's output is taken.
type Plan struct {
	Args   url.Values // for the logger; nil throws the output away
	Stream *Stream    // nil when nothing is sent
}

// Plan decides for one container. Errors name the option at fault.
func (s *Settings) Plan(t *task.Task, c *task.Container, a About) (*Plan, error) {
	driver, options := s.destination(t, c)
	if given := c.HostConfig.LogConfig.Type; s.Available != nil && given != "" && given != FireLens && !slices.Contains(s.Available, driver) {
		return nil, fmt.Errorf("log driver %q is not available on this host: ECS_AVAILABLE_LOGGING_DRIVERS has %s", driver, strings.Join(s.Available, ", "))
	}
	if err := Check(driver, options, a.Secrets); err != nil {
		return nil, err
	}
	if driver == None && s.DropNone {
		return &Plan{}, nil
	}
	r := s.room(t, driver, options)
	if !sent(driver) {
		if r.compress && r.files < 2 {
			return nil, errors.New("log option compress: it is for rotated files, and max-file 1 leaves none; set max-file to 2 or more")
		}
		q := args(a, r.bytes, r.files)
		if r.compress {
			q.Set("compress", "1")
		}
		return &Plan{Args: q}, nil
	}
	extra, err := Extra(options, c.Config.Labels, c.Environment)
	if err != nil {
		return nil, err
	}
	st := &Stream{
		TaskARN: t.ARN, TaskID: t.ID(), Container: c.Name, Driver: driver, Options: options, Secrets: a.Secrets,
		Blocking: blocking(options), Execution: s.ExecutionRole && c.LogsAuth == "ExecutionRole",
		ID: a.ID, Name: dockerName(t, c, a.ID), Image: a.Image, ImageID: a.ImageID, Command: a.Command, Extra: extra,
	}
	q := args(a, r.bytes, r.files)
	q.Set("run", s.Run)
	q.Set("logs", s.Logs)
	if st.Blocking {
		q.Set("block", "1")
	}
	return &Plan{Args: q, Stream: st}, nil
}

// destination is the log driver of a container, and its options.
func (s *Settings) destination(t *task.Task, c *task.Container) (string, map[string]string) {
	config := &c.HostConfig.LogConfig
	if config.Type == FireLens {
		return Fluentd, s.toRouter(t, c)
	}
	return cmp.Or(config.Type, JSONFile), config.Config
}

func args(a About, bytes int64, files int) url.Values {
	return url.Values{
		"path": {filepath.Join(a.Dir, "log.json")},
		"max":  {strconv.FormatInt(bytes, 10)}, "files": {strconv.Itoa(files)},
	}
}

// blocking reports whether a container waits for its destination. Since June 2025 ECS
// does not unless the definition asks for it (ECS API, "LogConfiguration").
func blocking(o map[string]string) bool { return o["mode"] == "blocking" }

// dockerName is a container's name as the reference gives it to Docker (agent
// protocol, "Base configuration").
func dockerName(t *task.Task, c *task.Container, id string) string {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return -1
	}, c.Name)
	return "ecs-" + t.Family + "-" + t.Version + "-" + plain + "-" + id[:min(20, len(id))]
}

// RouterSocket is the socket of a task's log router, as the host sees it.
func (s *Settings) RouterSocket(taskID string) string {
	return filepath.Join(s.Routers, taskID, "socket", "fluent.sock")
}

// toRouter are the options of driver fluentd that send a container's output to the log
// router of its task (agent protocol, "FireLens"). All other options are in the
// router's configuration.
func (s *Settings) toRouter(t *task.Task, c *task.Container) map[string]string {
	given := c.HostConfig.LogConfig.Config
	o := map[string]string{
		"tag":                          c.Name + "-firelens-" + t.ID(),
		"fluentd-address":              "unix://" + s.RouterSocket(t.ID()),
		"fluentd-sub-second-precision": "true",
		"fluentd-async":                strconv.FormatBool(!s.RouterWaits),
	}
	// Fluent Bit acknowledges what it has taken. Fluentd's input for unix sockets does not.
	if r := t.LogRouter(); r != nil && r.Router.Type == "fluentbit" {
		o["fluentd-request-ack"] = "true"
	}
	if v := given["log-driver-buffer-limit"]; v != "" {
		o["fluentd-buffer-limit"] = v
	}
	switch {
	case given["mode"] != "":
		o["mode"] = given["mode"]
	case s.RouterWaits:
		o["mode"] = "blocking"
	}
	return o
}
