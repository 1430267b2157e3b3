package sched

// verdict collects what keeps a task from an instance.
type verdict struct {
	failed int     // checks not passed
	reason string  // of the first of them; "" when all are passed
	stage  int     // of the first of them
	short  float64 // what is missing, as a share of the need, summed
}

// Stages of the checks in their order. An instance that gets further is closer.
const (
	stageAgent = iota
	stageAttribute
	stageMemberOf
	stageDistinct
	stageResource
)

func (v *verdict) fail(stage int, reason string) {
	if v.failed++; v.reason == "" {
		v.stage, v.reason = stage, reason
	}
}

// classVerdict is what the checks say that are the same for all members of a class.
type classVerdict struct{ agent, attribute, memberOf bool }

func (v *classVerdict) passed() bool { return v.agent && v.attribute && v.memberOf }

func judgeClass(c *class, required []Attribute, checks []*expr) *classVerdict {
	v := &classVerdict{agent: c.eligible, attribute: true, memberOf: true}
	for _, a := range required {
		v.attribute = v.attribute && a.met(c.attributes)
	}
	view := View{AgentConnected: c.eligible, Attributes: c.attributes}
	for _, e := range checks {
		v.memberOf = v.memberOf && e.match(&view)
	}
	return v
}

// judge makes all checks for one ACTIVE node.
func (s *State) judge(l *layout, r *Request, g *group, n *node) verdict {
	var v verdict
	pass := *l.verdicts[n.class.index]
	for _, a := range l.attributes {
		pass.attribute = pass.attribute && a.met(n.Attributes)
	}
	for _, e := range l.checks {
		pass.memberOf = pass.memberOf && e.match(&n.view)
	}
	if !pass.agent {
		v.fail(stageAgent, ReasonAgent)
	}
	if !pass.attribute {
		v.fail(stageAttribute, ReasonAttribute)
	}
	if !pass.memberOf {
		v.fail(stageMemberOf, ReasonMemberOf)
	}
	if l.distinct && g.on(n) > 0 {
		v.fail(stageDistinct, ReasonDistinct)
	}
	v.resources(n, &r.Need)
	return v
}

func (v *verdict) resources(n *node, need *Need) {
	amount := func(reason string, have, want int64) {
		if have = max(have, 0); have < want {
			v.fail(stageResource, reason)
			v.short += float64(want-have) / float64(want)
		}
	}
	amount(ReasonCPU, n.cpu, need.CPU)
	amount(ReasonMemory, n.memory, need.Memory)
	if !freePorts(n.tcp, need.TCP) {
		v.fail(stageResource, ReasonPorts)
		v.short++
	}
	if !freePorts(n.udp, need.UDP) {
		v.fail(stageResource, ReasonPortsUDP)
		v.short++
	}
	amount(ReasonGPU, int64(len(n.gpus)), int64(need.GPUs))
}

// closer reports whether v is nearer to taking the task than w.
func (v *verdict) closer(w *verdict) bool {
	switch {
	case v.failed != w.failed:
		return v.failed < w.failed
	case v.stage != w.stage:
		return v.stage > w.stage
	}
	return v.short < w.short
}

// explain names the ACTIVE instance that came closest and what keeps the task from it.
func (s *State) explain(l *layout, r *Request) Failure {
	g := s.groups[r.Group]
	var best *node
	var bestVerdict verdict
	for _, c := range s.classes.list {
		if c == nil || !c.active {
			continue
		}
		for _, n := range c.members {
			v := s.judge(l, r, g, n)
			if best == nil || v.closer(&bestVerdict) || !bestVerdict.closer(&v) && n.ARN < best.ARN {
				best, bestVerdict = n, v
			}
		}
	}
	if best == nil {
		return Failure{Reason: ReasonInactive}
	}
	return Failure{Instance: best.ARN, Reason: bestVerdict.reason}
}
