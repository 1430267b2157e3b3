package tmds

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/tmds"
)

// Introspection answers what people and programs on the host ask about the agent and its
// tasks (agent protocol, "Introspection API").
type Introspection struct {
	Views    func() []engine.View
	Instance func() Instance
	Version  string // as the agent calls itself
	License  string
	Log      *slog.Logger
}

// IntrospectionAddress is where the API is. Unlike the reference agent's, it is on the
// loopback device only.
const IntrospectionAddress = "127.0.0.1:51678"

// Serve answers on l until ctx ends.
func (i *Introspection) Serve(ctx context.Context, l net.Listener) error {
	s := server(i)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		end(ctx, s)
	})
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	<-ended
	return nil
}

// ServeHTTP answers one request.
func (i *Introspection) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	switch r.URL.Path {
	case "/v1/metadata":
		in := i.Instance()
		m := tmds.AgentMetadata{Cluster: in.Cluster, Version: i.Version}
		if in.ARN != "" {
			m.ContainerInstanceARN = &in.ARN
		}
		i.answer(w, http.StatusOK, m)
	case "/v1/tasks":
		i.tasks(w, r)
	case "/license":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		i.write(w, []byte(i.License))
	default:
		i.answer(w, http.StatusOK, tmds.AvailableCommands{Commands: []string{"/v1/metadata", "/v1/tasks", "/license"}})
	}
}

// shortID is the longest part of a container's id that stands for all ids that begin so.
const shortID = 12

// tasks lists all tasks, or shows the one that a query names.
func (i *Introspection) tasks(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	arn, id := q.Get("taskarn"), q.Get("dockerid")
	var found []engine.View
	for _, v := range i.Views() {
		switch {
		case arn != "" && id != "":
		case arn != "" && v.Task.ARN != arn:
		case id != "" && !slices.ContainsFunc(v.Task.Containers, func(c task.Container) bool {
			have := record(&v.Known, containerID(c.Name)).RuntimeID
			return have != "" && (have == id || len(id) <= shortID && strings.HasPrefix(have, id))
		}):
		default:
			found = append(found, v)
		}
	}
	one := q.Has("taskarn") || q.Has("dockerid")
	switch {
	case !one:
		list := tmds.IntrospectedTasks{Tasks: []tmds.IntrospectedTask{}}
		for n := range found {
			list.Tasks = append(list.Tasks, introspected(&found[n]))
		}
		slices.SortFunc(list.Tasks, func(a, b tmds.IntrospectedTask) int { return cmp.Compare(a.ARN, b.ARN) })
		i.answer(w, http.StatusOK, list)
	case arn != "" && id != "" || len(found) > 1:
		i.answer(w, http.StatusBadRequest, tmds.IntrospectedTask{})
	case len(found) == 0:
		i.answer(w, http.StatusNotFound, tmds.IntrospectedTask{})
	default:
		i.answer(w, http.StatusOK, introspected(&found[0]))
	}
}

func introspected(v *engine.View) tmds.IntrospectedTask {
	t := tmds.IntrospectedTask{
		ARN: v.Task.ARN, Family: v.Task.Family, Version: v.Task.Version,
		KnownStatus: v.Known.Status.Wire(), DesiredStatus: v.Known.Desired.Wire(), Containers: []tmds.IntrospectedContainer{},
	}
	if t.KnownStatus == "STOPPED" && t.DesiredStatus != "STOPPED" || t.KnownStatus == "RUNNING" && t.DesiredStatus == "PENDING" {
		t.DesiredStatus = ""
	}
	for n := range v.Task.Containers {
		c := &v.Task.Containers[n]
		d := container(v, c, 3)
		out := tmds.IntrospectedContainer{
			DockerID: d.DockerID, DockerName: d.DockerName, Name: d.Name, Image: d.Image, ImageID: d.ImageID,
			CreatedAt: d.CreatedAt, StartedAt: d.StartedAt, Ports: d.Ports, Volumes: d.Volumes,
		}
		if v.Task.NetworkMode == task.NetworkAWSVPC {
			out.Networks = d.Networks
		}
		if len(out.Ports) == 0 {
			for _, p := range c.Ports {
				if p.ContainerRange == "" {
					out.Ports = append(out.Ports, tmds.Port{ContainerPort: p.ContainerPort, HostPort: p.HostPort, Protocol: p.Protocol})
				}
			}
		}
		t.Containers = append(t.Containers, out)
	}
	return t
}

func (i *Introspection) answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		i.Log.Error("introspection", "err", err)
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	i.write(w, b)
}

func (i *Introspection) write(w http.ResponseWriter, b []byte) {
	if _, err := w.Write(b); err != nil {
		i.Log.Debug("introspection: answer not written", "err", err)
	}
}
