package hostile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/coder/websocket"

	agentacs "berth.dev/berth/agent/acs"
	"berth.dev/berth/agent/intake"
	"berth.dev/berth/agent/session"
	"berth.dev/berth/agent/state"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/await"
	"berth.dev/berth/wire/acs"
)

// enemy is a cluster that the agent trusts and should not: a websocket server that sends
// what a test gives it.
type enemy struct {
	*httptest.Server
	conns chan *websocket.Conn
	mu    sync.Mutex
	heard map[string]bool // "type id" of every message of the agent
}

func newEnemy(t *testing.T) *enemy {
	e := &enemy{conns: make(chan *websocket.Conn), heard: map[string]bool{}}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		select {
		case e.conns <- c:
		case <-r.Context().Done():
			return
		}
		e.listen(c)
	}))
	t.Cleanup(e.Server.Close)
	return e
}

func (e *enemy) listen(c *websocket.Conn) {
	defer c.CloseNow() //nolint:errcheck // the peer is gone
	c.SetReadLimit(acs.MaxFrame)
	for {
		_, b, err := c.Read(context.Background())
		if err != nil {
			return
		}
		m, err := acs.Decode(b)
		if err != nil {
			continue
		}
		id := ""
		switch m := m.(type) {
		case *acs.AckRequest:
			id = m.MessageID
		case *acs.HeartbeatAckRequest:
			id = m.MessageID
		}
		e.mu.Lock()
		e.heard[m.TypeName()+" "+id] = true
		e.mu.Unlock()
	}
}

func (e *enemy) session(t *testing.T) *websocket.Conn {
	t.Helper()
	select {
	case c := <-e.conns:
		return c
	case <-time.After(2 * time.Minute):
		t.Fatal("the agent did not open a session")
		return nil
	}
}

func (e *enemy) wait(t *testing.T, what string) {
	t.Helper()
	await.Until(t, 20*time.Second, "the agent answers with "+what, func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.heard[what] {
			return errors.New("nothing yet")
		}
		return nil
	})
}

func send(t *testing.T, c *websocket.Conn, frame []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, frame); err != nil {
		t.Fatalf("send %.60q: %v", frame, err)
	}
}

// engine keeps what was accepted. It is the engine as the intake sees it.
type engine struct {
	mu    sync.Mutex
	tasks map[string]task.Status
}

func (e *engine) Known(arn string) (task.Status, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.tasks[arn]
	return s, ok
}

func (e *engine) Accept(tasks ...task.Stored) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range tasks {
		e.tasks[t.Task.ARN] = t.Known.Desired
	}
}

func (e *engine) SetDesired(_ context.Context, arn string, s task.Status, _ int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.tasks[arn]; !ok {
		return errors.New("no such task")
	}
	e.tasks[arn] = s
	return nil
}

func (e *engine) Running() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for arn, s := range e.tasks {
		if s == task.StatusRunning {
			out = append(out, arn)
		}
	}
	return out
}

type purse struct{}

func (purse) Set(string, string, acs.IAMRoleCredentials) {}

// startAgent runs the agent's session, intake and state database against the enemy.
func startAgent(t *testing.T, e *enemy) (*engine, *state.DB) {
	t.Helper()
	db, err := state.Open(context.Background(), state.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	eng := &engine{tasks: map[string]task.Status{}}
	in := intake.New(intake.Config{Engine: eng, Store: db, Credentials: purse{}, Log: slog.New(slog.DiscardHandler)})
	client, err := agentacs.New(agentacs.Config{
		Endpoint: func(context.Context) (string, error) { return e.URL, nil }, Region: "us-east-1", Cluster: "default", InstanceARN: instanceARN,
		Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", ""), Handler: in, Log: slog.New(slog.DiscardHandler),
		Timing: session.Timing{BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.Run(ctx) // ends with ctx
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := db.Close(); err != nil {
			t.Errorf("close state: %v", err)
		}
	})
	return eng, db
}

// Thousands of bad frames, with honest ones among them: every honest one is answered, and
// what they asked for is in the database.
func TestAgentSession(t *testing.T) {
	e := newEnemy(t)
	eng, db := startAgent(t, e)
	c := e.session(t)
	frames := append(malformed(t, 2500), deceitful(t, 1500)...)
	warm := len(frames) / 10
	var before usage
	for i, frame := range frames {
		// A CloseMessage ends the session by design and is not part of this test.
		if !strings.Contains(string(frame), `"CloseMessage"`) {
			send(t, c, frame)
		}
		if i%250 == 0 {
			beat := fmt.Sprint("beat-", i)
			send(t, c, encode(t, &acs.HeartbeatMessage{Healthy: true, MessageID: beat}))
			e.wait(t, "HeartbeatAckRequest "+beat)
			good := fmt.Sprint("good-", i)
			send(t, c, encode(t, payload(good, int64(i+1), honest(500_000+i))))
			e.wait(t, "AckRequest "+good)
		}
		if i == warm {
			before = measure(t)
		}
	}
	stored, err := db.Load(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, k := range stored {
		have[k.Task.ARN] = true
	}
	for i := 0; i < len(frames); i += 250 {
		arn := taskARN(500_000 + i)
		if s, ok := eng.Known(arn); !ok || s != task.StatusRunning || !have[arn] {
			t.Errorf("task %s of an honest payload is lost (engine %v %v, database %v)", arn, s, ok, have[arn])
		}
	}
	t.Logf("%d frames; %d tasks were taken up", len(frames), len(have))
	// Deceitful tasks that were refused are in the outbox as reports and on disk; the
	// memory of a process is bounded by what is open, not by what was refused.
	notGrown(t, before)
}

// Frames that end a session end only that: the agent comes back and takes work.
func TestAgentSessionEndsAndComesBack(t *testing.T) {
	e := newEnemy(t)
	_, _ = startAgent(t, e)
	big := []byte(`{"type":"HeartbeatMessage","message":{"messageId":"` + strings.Repeat("x", acs.MaxFrame) + `"}}`)
	c := e.session(t)
	var before usage
	for i, cut := range []func(*websocket.Conn){
		func(c *websocket.Conn) { c.Write(context.Background(), websocket.MessageText, big) },        //nolint:errcheck // refused on the way
		func(c *websocket.Conn) { c.Write(context.Background(), websocket.MessageBinary, big) },      //nolint:errcheck // the same
		func(c *websocket.Conn) { c.CloseNow() },                                                     //nolint:errcheck // a broken line
		func(c *websocket.Conn) { c.Close(websocket.StatusInternalError, strings.Repeat("r", 100)) }, //nolint:errcheck // the same
		func(c *websocket.Conn) { c.Close(4999, "") },                                                //nolint:errcheck // the same
	} {
		for range 4 {
			cut(c)
			c = e.session(t)
		}
		id := fmt.Sprint("after-", i)
		send(t, c, encode(t, payload(id, int64(i+1), honest(600_000+i))))
		e.wait(t, "AckRequest "+id)
		if i == 0 {
			before = measure(t) // with the buffers that large frames leave behind
		}
	}
	notGrown(t, before)
}
