package runtime

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strconv"
	"strings"

	"berth.dev/berth/agent/task"
)

// ContainerID is the id of a container. An incarnation is one making of the container; a
// second one after a restart policy has number 1. All have one snapshot, whose key is the
// id of the first: what a container wrote is there when it is started again.
func ContainerID(taskARN, name string, incarnation int) string {
	h := sha256.Sum256([]byte(taskARN + "\x00" + name + "\x00" + strconv.Itoa(incarnation)))
	return hex.EncodeToString(h[:16])
}

// Labels of everything that the agent makes in containerd. People and other programs
// may read them; the agent finds its own things by them.
const (
	LabelTaskARN     = "berth/task-arn"
	LabelTaskID      = "berth/task-id"
	LabelContainer   = "berth/container"
	LabelInstance    = "berth/instance-arn"
	labelCgroup      = "berth/cgroup"
	labelStopSignal  = "berth/stop-signal"
	labelSpec        = "berth/spec-digest"
	labelIncarnation = "berth/incarnation"
	// LabelImported marks images that were loaded from an archive on this host.
	LabelImported = "berth/imported"
	// LabelPulled marks images that the agent has pulled.
	LabelPulled = "berth/pulled"

	labelGCRoot = "containerd.io/gc.root"
	ecsPrefix   = "com.amazonaws.ecs."
)

// maxLabel is how long a label may be, key and value together (containerd,
// pkg/labels).
const maxLabel = 4096

// reserved are the beginnings of label keys that programs act on. Labels of images and
// task definitions that begin so never reach containerd: it would, for example, start
// a container with a restart label again by itself.
var reserved = []string{"containerd.io/", "io.containerd", "io.cri-containerd", "io.kubernetes.cri", "nerdctl/", "berth/", ecsPrefix}

// foreignLabels are those of a definition's labels that may be copied.
func foreignLabels(in map[string]string) map[string]string {
	out := map[string]string{}
next:
	for k, v := range in {
		if k == "" || len(k)+len(v) > maxLabel {
			continue
		}
		folded := strings.ToLower(strings.TrimSpace(k))
		for _, r := range reserved {
			if strings.HasPrefix(folded, r) {
				continue next
			}
		}
		out[k] = v
	}
	return out
}

// ownLabels say whose a container or snapshot is.
func (c *Client) ownLabels(t *task.Task, name string) map[string]string {
	l := map[string]string{LabelTaskARN: t.ARN, LabelTaskID: t.ID(), LabelContainer: name}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.instance != "" {
		l[LabelInstance] = c.instance
	}
	return l
}

// containerLabels are the labels of the container's record: the image's, the
// definition's, and those that say what it is (agent protocol, "Base configuration").
func (c *Client) containerLabels(p *planned) map[string]string {
	t, name := p.t, p.name
	l := foreignLabels(p.image.config.Labels)
	maps.Copy(l, foreignLabels(p.in.Container.Config.Labels))
	maps.Copy(l, c.ownLabels(t, name))
	for k, v := range map[string]string{
		"task-arn": t.ARN, "container-name": name, "task-definition-family": t.Family,
		"task-definition-version": t.Version, "cluster": c.cfg.Cluster,
	} {
		if len(ecsPrefix)+len(k)+len(v) <= maxLabel {
			l[ecsPrefix+k] = v
		}
	}
	return l
}

// safeName makes one path element of a task id or container name. Names as the API
// allows them stay as they are.
func safeName(s string) string {
	ok := s != "" && len(s) <= 255 && s[0] != '.'
	for _, r := range s {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	if ok {
		return s
	}
	h := sha256.Sum256([]byte(s))
	return "x-" + hex.EncodeToString(h[:16])
}
