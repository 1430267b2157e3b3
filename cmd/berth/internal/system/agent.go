package system

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
)

// AgentState is what the agent says of itself on its debug socket.
type AgentState struct {
	Version     string    `json:"version"`
	PID         int       `json:"pid"`
	Started     time.Time `json:"started"`
	Cluster     string    `json:"cluster"`
	InstanceARN string    `json:"containerInstanceArn"`
	Connected   bool      `json:"connected"`
	Ready       bool      `json:"ready"`
	Tasks       int       `json:"tasks"`
	Outbox      int       `json:"outbox"`
	Containerd  string    `json:"containerd"`
}

// AgentTask is one task as the agent knows it.
type AgentTask struct {
	Task  *task.Task
	Known task.Known
}

// AgentState asks the agent for its state.
func (s *System) AgentState(ctx context.Context) (*AgentState, error) {
	var state AgentState
	return &state, s.askAgent(ctx, "/v1/state", &state)
}

// AgentTasks asks the agent for its tasks.
func (s *System) AgentTasks(ctx context.Context) ([]AgentTask, error) {
	var tasks []AgentTask
	return tasks, s.askAgent(ctx, "/v1/tasks", &tasks)
}

// AgentHealth asks the agent for its conditions, as JSON.
func (s *System) AgentHealth(ctx context.Context) (json.RawMessage, error) {
	var health json.RawMessage
	return health, s.askAgent(ctx, "/v1/health", &health)
}

// Events asks the agent for the event log of a task.
func (s *System) Events(ctx context.Context, taskID string) ([]task.Event, error) {
	var events []task.Event
	return events, s.askAgent(ctx, "/v1/events?task="+url.QueryEscape(taskID), &events)
}

// askAgent gets a path of the agent's debug socket.
func (s *System) askAgent(ctx context.Context, path string, into any) error {
	client := &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", s.Layout.AgentSocket())
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if os.IsPermission(err) {
			return fmt.Errorf("only root may ask the agent at %s; run this as root", s.Layout.AgentSocket())
		}
		return fmt.Errorf("the agent does not answer at %s; is it up? see: berth status", s.Layout.AgentSocket())
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("agent: %s", strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("agent: answer to %s: %w", path, err)
	}
	return nil
}
