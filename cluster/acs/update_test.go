package acs

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

func TestUpdateStep(t *testing.T) {
	const (
		pending, staging, staged = types.AgentUpdateStatusPending, types.AgentUpdateStatusStaging, types.AgentUpdateStatusStaged
		updating, updated        = types.AgentUpdateStatusUpdating, types.AgentUpdateStatusUpdated
		failed                   = types.AgentUpdateStatusFailed
	)
	for _, c := range []struct {
		status             types.AgentUpdateStatus
		newProcess, staged bool
		want               updateMessage
	}{
		{"", false, false, noUpdate}, {pending, true, false, stageUpdate}, {pending, false, false, stageUpdate},
		{staging, false, false, stageUpdate}, {staged, false, true, beginUpdate}, {staged, true, true, beginUpdate},
		{staged, false, false, beginUpdate}, {staged, true, false, stageUpdate}, // a new process knows of nothing
		{updating, false, false, performUpdate}, {updating, true, false, noUpdate}, {updating, true, true, performUpdate}, {updated, false, false, noUpdate}, {failed, false, true, noUpdate},
	} {
		if got := updateStep(c.status, c.newProcess, c.staged); got != c.want {
			t.Errorf("%s, new process %t, staged %t: %d, want %d", c.status, c.newProcess, c.staged, got, c.want)
		}
	}
	for _, c := range []struct {
		status     types.AgentUpdateStatus
		runs       string
		newProcess bool
		want       types.AgentUpdateStatus
	}{
		{updating, "0.9.0", true, updated}, {updating, "0.8.0", true, failed}, {updating, "0.8.0", false, updating},
		{staging, "0.8.0", true, staging}, {pending, "0.9.0", false, updated}, {failed, "0.9.0", true, updated}, {updated, "0.8.0", true, updated},
	} {
		if got := updateOutcome(c.status, "0.9.0", c.runs, c.newProcess); got != c.want {
			t.Errorf("%s, runs %s, new process %t: %s, want %s", c.status, c.runs, c.newProcess, got, c.want)
		}
	}
}
