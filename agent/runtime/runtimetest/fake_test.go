package runtimetest

import (
	"testing"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

func TestFakePassesTheSuite(t *testing.T) {
	Suite(t, func(*testing.T) Harness {
		return Harness{Runtime: New(), Image: "any", Deps: func(*testing.T, *task.Task) engine.Deps { return engine.Deps{} }}
	})
}
