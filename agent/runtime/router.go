package runtime

import (
	"encoding/json"
	"maps"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/logs/router"
	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"
)

// logRouter gives the task's log router its files and the others its address (agent
// protocol, "FireLens").
func (s *Containers) logRouter(p *planned, c *task.Container, d engine.Deps) error {
	r := p.t.LogRouter()
	if r == nil {
		return nil
	}
	env := map[string]string{}
	if c.Router != nil {
		h := router.Handle{}
		if err := dependency(d, task.ResourceID{Kind: task.KindLogRouter, Name: "task"}, &h); err != nil {
			return err
		}
		for _, m := range h.Mounts {
			p.in.Endpoint.Mounts = append(p.in.Endpoint.Mounts, spec.EndpointMount{Source: m.Source, Destination: m.Path, Writable: m.Writable})
		}
		if c.Router.Type == router.Fluentd {
			env["FLUENT_UID"] = "0"
		}
		if err := s.routerSecrets(p); err != nil {
			return err
		}
	}
	if c.HostConfig.LogConfig.Type == logs.FireLens {
		switch p.t.NetworkMode {
		case task.NetworkAWSVPC:
			env["FLUENT_HOST"], env["FLUENT_PORT"] = "127.0.0.1", "24224"
		case task.NetworkBridge:
			var n struct{ IP string }
			if rec, ok := d.Get(task.ResourceID{Kind: task.KindNetwork, Name: r.Name}); ok && len(rec.Handle) > 0 {
				if err := json.Unmarshal(rec.Handle, &n); err != nil {
					return task.Failf(task.Invalid, task.CannotCreateContainer, "network of the log router: %w", err)
				}
			}
			if n.IP != "" {
				env["FLUENT_HOST"], env["FLUENT_PORT"] = n.IP, "24224"
			}
		}
	}
	if len(env) > 0 {
		maps.Copy(env, p.in.Endpoint.Environment)
		p.in.Endpoint.Environment = env
	}
	return nil
}

// routerSecrets puts the secret log options of all containers into the router's
// environment.
func (s *Containers) routerSecrets(p *planned) error {
	if s.c.cfg.Given == nil {
		return nil
	}
	env := map[string]task.Secret{}
	for i := range p.t.Containers {
		g, err := s.c.cfg.Given(p.t, p.t.Containers[i].Name)
		if err != nil {
			return classify(err, task.CannotCreateContainer)
		}
		for name, v := range g.LogRouter {
			env[router.SecretVariable(name, i)] = v
		}
	}
	if len(env) > 0 {
		maps.Copy(env, p.in.Given.Environment)
		p.in.Given.Environment = env
	}
	return nil
}
