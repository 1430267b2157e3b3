package tmds

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/tmds"
)

// maxPorts bounds how many ports of ranges are shown of a container.
const maxPorts = 1000

// describe is the document of a task.
func (q *request) describe(v *engine.View, version int, tags bool) *tmds.Task {
	t, k, instance := v.Task, &v.Known, q.s.c.Instance()
	d := &tmds.Task{
		Cluster: cmp.Or(t.ClusterARN, instance.Cluster), TaskARN: t.ARN, Family: t.Family, Revision: t.Version,
		DesiredStatus: k.Desired.String(), KnownStatus: k.Status.String(),
		ExecutionStoppedAt: moment(k.ExecutionStopped),
	}
	if !q.s.c.HideZone {
		d.AvailabilityZone = instance.Zone
	}
	if t.CPU > 0 || t.Memory > 0 {
		d.Limits = &tmds.TaskLimits{CPU: t.CPU, Memory: t.Memory}
	}
	var start, stop time.Time
	for i := range t.Containers {
		c := &t.Containers[i]
		image := record(k, task.ResourceID{Kind: task.KindImage, Name: c.Name})
		if !image.PullStarted.IsZero() && (start.IsZero() || image.PullStarted.Before(start)) {
			start = image.PullStarted
		}
		if image.PullStopped.After(stop) {
			stop = image.PullStopped
		}
		made := record(k, containerID(c.Name)).RuntimeID != ""
		if made || version == 4 && v.Containers[c.Name] >= task.ContainerPulled {
			d.Containers = append(d.Containers, *container(v, c, version))
		}
	}
	d.PullStartedAt, d.PullStoppedAt = moment(start), moment(stop)
	if version == 4 {
		d.EphemeralStorageMetrics = q.storage(t)
		d.LaunchType, d.ServiceName, d.FaultInjectionEnabled = t.LaunchType, t.ServiceName, &t.FaultInjection
	}
	if tags {
		q.tags(d, version, instance.ARN)
	}
	return d
}

// storage is the use of a task's limited storage, if it has one.
func (q *request) storage(t *task.Task) *tmds.EphemeralStorage {
	if q.s.c.Storage == nil {
		return nil
	}
	ctx, cancel := q.timeout()
	defer cancel()
	used, limit, ok := q.s.c.Storage(ctx, t)
	if !ok {
		return nil
	}
	const mib = 1 << 20
	return &tmds.EphemeralStorage{Utilized: int64((used + mib - 1) / mib), Reserved: int64(limit / mib)}
}

// tags adds the tags of the task and the instance. What cannot be had is left out, and
// version 4 says why.
func (q *request) tags(d *tmds.Task, version int, instanceARN string) {
	ctx, cancel := q.timeout()
	defer cancel()
	for _, of := range []struct {
		field, arn string
		to         *map[string]string
	}{{"ContainerInstanceTags", instanceARN, &d.ContainerInstanceTags}, {"TaskTags", d.TaskARN, &d.TaskTags}} {
		list, err := q.s.c.Cluster.Tags(ctx, of.arn)
		if err == nil {
			*of.to = list
			continue
		}
		if version == 4 {
			d.Errors = append(d.Errors, tagError(ctx, of.field, of.arn, err))
		}
	}
}

// CallError is an error of the ECS API as it came.
type CallError struct {
	Code, Message, RequestID string
	Status                   int
}

func (e *CallError) Error() string { return e.Code + ": " + e.Message }

func tagError(ctx context.Context, field, arn string, err error) tmds.TagError {
	out := tmds.TagError{ErrorField: field, ErrorCode: "ServerException", ErrorMessage: "the tags could not be asked for", StatusCode: http.StatusInternalServerError, ResourceARN: arn}
	var call *CallError
	if errors.As(err, &call) {
		out.ErrorCode, out.ErrorMessage, out.StatusCode, out.RequestID = call.Code, call.Message, call.Status, call.RequestID
	} else if ctx.Err() != nil {
		out.ErrorCode, out.StatusCode = "RequestCanceled", http.StatusGatewayTimeout
	}
	return out
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	u := t.UTC()
	return &u
}

func byRuntimeID(v *engine.View, id string) *task.Container {
	for i := range v.Task.Containers {
		c := &v.Task.Containers[i]
		if r := record(&v.Known, containerID(c.Name)); r.RuntimeID != "" && r.RuntimeID == id {
			return c
		}
	}
	return nil
}

// container is the document of a container.
func container(v *engine.View, c *task.Container, version int) *tmds.Container {
	k := &v.Known
	r := record(k, containerID(c.Name))
	image := record(k, task.ResourceID{Kind: task.KindImage, Name: c.Name})
	d := &tmds.Container{
		DockerID: r.RuntimeID, Name: c.Name, DockerName: DockerName(v.Task, c.Name, r.RuntimeID),
		Image: c.Image, ImageID: image.Digest, Labels: labels(v.Task, c),
		DesiredStatus: desired(k), KnownStatus: v.Containers[c.Name].String(),
		Limits:    tmds.ContainerLimits{CPU: max(2, c.CPU), Memory: c.Memory},
		CreatedAt: moment(r.Created), StartedAt: moment(r.Started), Type: tmds.TypeNormal,
	}
	if r.Exit != nil {
		code := r.Exit.Code
		d.ExitCode, d.FinishedAt = &code, moment(r.Exit.At)
	}
	network := networkOf(v, c.Name)
	d.Ports = ports(network.Bindings[c.Name], version)
	if v.Task.NetworkMode == task.NetworkAWSVPC {
		d.Ports = ownPorts(c)
	}
	if r.RuntimeID != "" {
		d.Networks = networks(v.Task, network, version)
	}
	for _, m := range c.Mounts {
		d.Volumes = append(d.Volumes, tmds.Volume{DockerName: m.Volume, Source: source(v.Task, m.Volume), Destination: m.Path})
	}
	if h := r.Health; h != nil {
		d.Health = &tmds.Health{Since: moment(h.Since), ExitCode: h.ExitCode, Output: h.Output}
		if h.Status != task.HealthUnknown {
			d.Health.Status = string(h.Status)
		}
	}
	if version == 4 && c.Restart != nil {
		d.RestartCount = &r.Restarts
	}
	if version == 4 {
		d.LogDriver, d.LogOptions, d.ContainerARN = cmp.Or(c.HostConfig.LogConfig.Type, "json-file"), shownOptions(c.HostConfig.LogConfig.Config), c.ARN
	}
	return d
}

func desired(k *task.Known) string {
	if k.Desired == task.StatusStopped {
		return task.ContainerStopped.String()
	}
	return task.ContainerRunning.String()
}

// record is what is known of a resource. A view is shared, so nothing is entered into it.
func record(k *task.Known, id task.ResourceID) *task.Record {
	if r := k.Resources[id]; r != nil {
		return r
	}
	return &task.Record{}
}

var nameCharacters = regexp.MustCompile(`[^A-Za-z0-9-]+`)

// DockerName is the name that Docker would know a container by (agent protocol, "Base
// configuration").
func DockerName(t *task.Task, name, runtimeID string) string {
	return "ecs-" + t.Family + "-" + t.Version + "-" + nameCharacters.ReplaceAllString(name, "") + "-" + runtimeID[:min(len(runtimeID), 20)]
}

func labels(t *task.Task, c *task.Container) map[string]string {
	out := maps.Clone(c.Config.Labels)
	if out == nil {
		out = make(map[string]string, 5)
	}
	const prefix = "com.amazonaws.ecs."
	out[prefix+"cluster"] = t.ClusterARN[strings.LastIndexByte(t.ClusterARN, '/')+1:]
	out[prefix+"container-name"] = c.Name
	out[prefix+"task-arn"] = t.ARN
	out[prefix+"task-definition-family"] = t.Family
	out[prefix+"task-definition-version"] = t.Version
	return out
}

func source(t *task.Task, volume string) string {
	for i := range t.Volumes {
		if t.Volumes[i].Name == volume {
			return t.Volumes[i].HostPath
		}
	}
	return ""
}

// shownOptions leaves out where a log driver gets its credentials.
func shownOptions(in map[string]string) map[string]string {
	out := maps.Clone(in)
	delete(out, "awslogs-credentials-endpoint")
	return out
}

// networkOf is the network that a container uses.
func networkOf(v *engine.View, name string) *task.Record {
	id := task.ResourceID{Kind: task.KindNetwork, Name: name}
	if r, ok := v.Known.Resources[id]; ok {
		return r
	}
	id.Name = hostName
	return record(&v.Known, id)
}

func ports(bindings []task.Binding, version int) []tmds.Port {
	var out []tmds.Port
	for _, b := range bindings {
		p := tmds.Port{ContainerPort: b.ContainerPort, HostPort: b.HostPort, Protocol: b.Protocol}
		if version == 4 {
			p.HostIP = b.BindIP
		}
		if b.ContainerRange == "" {
			out = append(out, p)
			continue
		}
		first, last := span(b.ContainerRange)
		host, _ := span(b.HostRange)
		for n := 0; first > 0 && first+n <= last && len(out) < maxPorts; n++ {
			p.ContainerPort, p.HostPort = uint16(first+n), uint16(host+n)
			out = append(out, p)
		}
	}
	return out
}

// ownPorts are those of a container with a network interface of the task's own, where they
// are not translated.
func ownPorts(c *task.Container) []tmds.Port {
	var out []tmds.Port
	for _, p := range c.Ports {
		if p.ContainerRange == "" {
			out = append(out, tmds.Port{ContainerPort: p.ContainerPort, HostPort: p.ContainerPort, Protocol: p.Protocol})
		}
	}
	return out
}

// elastic is the network of a task with interfaces of its own: the addresses of all of
// them, and in version 4 what else is known of the first.
func elastic(t *task.Task, version int) tmds.Network {
	n := tmds.Network{NetworkMode: task.NetworkAWSVPC}
	for i := range t.Interfaces {
		for _, a := range t.Interfaces[i].Addresses {
			if a.Is4() {
				n.IPv4Addresses = append(n.IPv4Addresses, a.String())
			} else {
				n.IPv6Addresses = append(n.IPv6Addresses, a.String())
			}
		}
	}
	if version < 4 {
		return n
	}
	first, index := &t.Interfaces[0], 0
	n.AttachmentIndex, n.MACAddress, n.PrivateDNSName = &index, first.MAC, first.PrivateDNSName
	n.DomainNameServers, n.DomainNameSearchList = first.NameServers, first.Domains
	if first.GatewayV4.IsValid() {
		n.IPv4SubnetCIDRBlock, n.SubnetGatewayIPv4Address = first.GatewayV4.Masked().String(), first.GatewayV4.String()
	}
	for _, p := range first.Prefixes() {
		if p.Addr().Is6() && n.IPv6SubnetCIDRBlock == "" {
			n.IPv6SubnetCIDRBlock = p.Masked().String()
		}
	}
	if first.GatewayV6.IsValid() && len(n.IPv4Addresses) == 0 {
		n.SubnetGatewayIPv6Address = first.GatewayV6.String()
	}
	return n
}

func span(s string) (first, last int) {
	a, b, _ := strings.Cut(s, "-")
	first, err1 := strconv.Atoi(a)
	last, err2 := strconv.Atoi(b)
	if err1 != nil || err2 != nil || last > 65535 {
		return 0, -1
	}
	return first, last
}

// networks are those of a container. Where the runtime knows no address, as in the modes
// host and none, the reference shows an empty one.
func networks(t *task.Task, r *task.Record, version int) []tmds.Network {
	var h struct {
		IP       string   `json:"ip"`
		IPv6     string   `json:"ipv6"`
		Networks []joined `json:"networks"`
	}
	if len(r.Handle) > 0 && json.Unmarshal(r.Handle, &h) != nil {
		return nil
	}
	if len(t.Interfaces) > 0 {
		return append([]tmds.Network{elastic(t, version)}, others(h.Networks)...)
	}
	n := tmds.Network{NetworkMode: t.NetworkMode, IPv4Addresses: []string{h.IP}}
	if h.IPv6 != "" {
		n.IPv6Addresses = []string{h.IPv6}
	}
	return append([]tmds.Network{n}, others(h.Networks)...)
}

// joined is a network of the host's operator, as the handle of a network tells of it.
type joined struct {
	Network   string         `json:"network"`
	MAC       string         `json:"mac"`
	Addresses []netip.Prefix `json:"addresses"`
}

// others are the networks of the operator's, whose names stand for their modes.
func others(list []joined) []tmds.Network {
	var out []tmds.Network
	for _, j := range list {
		n := tmds.Network{NetworkMode: j.Network, MACAddress: j.MAC}
		for _, p := range j.Addresses {
			if p.Addr().Is4() {
				n.IPv4Addresses = append(n.IPv4Addresses, p.Addr().String())
			} else {
				n.IPv6Addresses = append(n.IPv6Addresses, p.Addr().String())
			}
		}
		out = append(out, n)
	}
	return out
}
