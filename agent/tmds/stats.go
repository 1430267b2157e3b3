package tmds

import (
	"errors"
	"net/http"
	"slices"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/tmds"
)

var errNoStats = errors.New("this agent measures nothing")

// stats is what a container uses.
func (q *request) stats(v *engine.View, c *task.Container, version int) (*tmds.Stats, error) {
	if q.s.c.Stats == nil {
		return nil, errNoStats
	}
	ctx, cancel := q.timeout()
	defer cancel()
	st, err := q.s.c.Stats.Stats(ctx, v.Task.ARN, c.Name)
	if err != nil {
		q.s.log.Debug("a container cannot be measured", "task", q.taskID, "container", c.Name, "err", err)
		return nil, err
	}
	r := record(&v.Known, containerID(c.Name))
	out := *st
	out.ID, out.Name = r.RuntimeID, "/"+DockerName(v.Task, c.Name, r.RuntimeID)
	if version < 4 {
		out.NetworkRates = nil
	}
	return &out, nil
}

// taskStats is what the containers of a task use, by their ids; one that cannot be
// measured is null, and an empty object in version 4.
func (q *request) taskStats(v *engine.View, version int) map[string]any {
	out := make(map[string]any, len(v.Task.Containers))
	for i := range v.Task.Containers {
		c := &v.Task.Containers[i]
		id := record(&v.Known, containerID(c.Name)).RuntimeID
		if id == "" {
			continue
		}
		st, err := q.stats(v, c, version)
		switch {
		case err == nil:
			out[id] = st
		case version == 4:
			out[id] = struct{}{}
		default:
			out[id] = nil
		}
	}
	return out
}

// associations answers what associations of a type a container has, and the content of
// one.
func (q *request) associations(v *engine.View, found bool, version, id string) {
	kind, name, one := q.next(), "", len(q.rest) > 0
	if one {
		name = q.next()
	}
	if !q.end() || kind == "" {
		q.notFound()
		return
	}
	handler := version + " container associations handler"
	if one {
		handler = version + " container association handler"
	}
	if !found {
		q.json(http.StatusBadRequest, handler+": unable to get container ID from request: unable to get docker ID from v3 endpoint ID: "+clip(id))
		return
	}
	var names []string
	for i := range v.Task.Associations {
		a := &v.Task.Associations[i]
		if a.Type != kind || !slices.Contains(a.Containers, q.container) {
			continue
		}
		if one && a.Name == name {
			q.w.Header().Set("Content-Type", "application/json")
			q.write([]byte(a.Value))
			return
		}
		names = append(names, a.Name)
	}
	if !one {
		q.json(http.StatusOK, tmds.Associations{Associations: names})
		return
	}
	q.json(http.StatusBadRequest, "unable to get association value for association "+clip(name)+" of type "+clip(kind))
}
