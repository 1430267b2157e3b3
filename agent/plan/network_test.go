package plan

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
)

func TestNetworksByMode(t *testing.T) {
	for mode, want := range map[string][]task.ResourceID{
		task.NetworkBridge: {{Kind: task.KindNetwork, Name: "a"}, {Kind: task.KindNetwork, Name: "task"}},
		task.NetworkNone:   {{Kind: task.KindNetwork, Name: "a"}, {Kind: task.KindNetwork, Name: "task"}},
		task.NetworkHost:   {sharedNetwork},
		task.NetworkAWSVPC: {sharedNetwork},
	} {
		tk := taskOf(task.Container{Name: "a"}, task.Container{Name: "task"}) // a name that a container may have
		tk.NetworkMode = mode
		if diff := cmp.Diff(want, networks(tk)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", mode, diff)
		}
	}
}

// reasons are the last ones told of the containers, and their exit codes.
func reasons(s *sim) (why map[string]string, codes map[string]int) {
	why, codes = map[string]string{}, map[string]int{}
	for _, ch := range s.sent {
		for _, c := range ch.Containers {
			why[c.Name] = c.Reason
			if c.Exit != nil {
				codes[c.Name] = *c.Exit
			}
		}
	}
	return why, codes
}

func TestFailedNetworkStopsItsContainerOnly(t *testing.T) {
	s := newSim(t, 21, taskOf(
		task.Container{Name: "main", Essential: true},
		task.Container{Name: "chained", Links: []string{"linking"}},
		task.Container{Name: "linking", Links: []string{"side:x"}},
		task.Container{Name: "side"},
	), simSpec{fail: map[task.ResourceID]task.Class{{Kind: task.KindNetwork, Name: "side"}: task.Invalid}})
	s.run(func() bool { return s.k.Status == task.StatusRunning && len(s.flying) == 0 })
	if s.k.Desired != task.StatusRunning || s.starts["main#0"] != 1 || len(s.starts) != 1 {
		t.Errorf("desired %v, started %v", s.k.Desired, s.starts)
	}
	s.stop()
	s.run(nil)
	s.check()
	why, _ := reasons(s)
	if diff := cmp.Diff(map[string]string{
		"main": "", "side": "CannotCreateContainerError: made to fail",
		"linking": "ContainerNetworkingError: container linking links to container side, which has no network",
		"chained": "ContainerNetworkingError: container chained links to container linking, which has no network",
	}, why); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
	if s.k.Reason != nil {
		t.Errorf("the task has the reason %v", s.k.Reason)
	}
}

// A container that lost its network while nobody looked is ended, and told why.
func TestLostNetworkEndsItsContainer(t *testing.T) {
	for _, essential := range []bool{true, false} {
		s := newSim(t, 22, taskOf(
			task.Container{Name: "main", Essential: true},
			task.Container{Name: "loser", Essential: essential},
		), simSpec{})
		s.run(func() bool { return s.k.Status == task.StatusRunning && len(s.flying) == 0 })
		*s.thing(Network(s.task, "loser")) = thing{}
		s.restart()
		s.run(func() bool { return s.k.SentContainers["loser"] == task.ContainerStopped })
		if stops := s.k.Desired == task.StatusStopped; stops != essential {
			t.Errorf("essential %t: the task stops: %t", essential, stops)
		}
		s.stop()
		s.run(nil)
		s.check()
		why, codes := reasons(s)
		if diff := cmp.Diff(map[string]string{"main": "", "loser": "ResourceInitializationError: the container's network is gone from the host"}, why); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
		if codes["loser"] != 143 {
			t.Errorf("exit code %d", codes["loser"])
		}
	}
}

// The end of a container that ended by itself is not blamed on a network lost later.
func TestNetworkLostAfterTheEndIsNoReason(t *testing.T) {
	s := newSim(t, 23, taskOf(task.Container{Name: "main", Essential: true}, task.Container{Name: "once"}), simSpec{exits: map[string]int{"once": 7}})
	s.run(func() bool { return s.k.Status == task.StatusRunning && s.k.Resource(Container("once")).Exit != nil })
	delete(s.k.SentContainers, "once")
	s.sent = nil
	*s.thing(Network(s.task, "once")) = thing{}
	s.commit()
	s.restart()
	s.run(func() bool { return s.k.Resource(Network(s.task, "once")).Phase == task.Failed })
	s.stop()
	s.run(nil)
	s.check()
	if why, codes := reasons(s); why["once"] != "" || codes["once"] != 7 {
		t.Errorf("reason %q, exit code %d", why["once"], codes["once"])
	}
}

// What nothing has used yet is made again.
func TestLostNetworkOfAWaitingContainerIsMadeAgain(t *testing.T) {
	s := newSim(t, 24, taskOf(
		task.Container{Name: "first", Essential: true},
		task.Container{Name: "waits", DependsOn: on("first", task.ConditionComplete)},
	), simSpec{})
	id := Network(s.task, "waits")
	s.run(func() bool {
		return s.starts["first#0"] == 1 && s.k.Resource(id).Phase == task.Present && len(s.flying) == 0
	})
	*s.thing(id) = thing{}
	s.restart()
	s.run(func() bool { return s.thing(id).exists && s.k.Resource(id).Phase == task.Present })
	if s.k.Desired != task.StatusRunning {
		t.Error("the task stops")
	}
	s.stop()
	s.run(nil)
	s.check()
}
