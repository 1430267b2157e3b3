package tmds

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/eni"
	"berth.dev/berth/wire/tmds"
)

// keeper keeps descriptors as a service manager does.
type keeper struct {
	mu    sync.Mutex
	files map[string]*os.File
	taken map[string]bool // by this agent
}

func (k *keeper) Take(key string) (net.Listener, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.files[key]
	if f == nil || k.taken[key] {
		return nil, false
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, false
	}
	k.taken[key] = true
	return l, true
}

func (k *keeper) Keep(key string, l net.Listener) error {
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files[key], k.taken[key] = f, true
	return nil
}

func (k *keeper) Drop(key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.files[key]
	delete(k.files, key)
	if f == nil {
		return nil
	}
	return f.Close()
}

func (k *keeper) Retain(keys []string) (n int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wanted := make(map[string]bool)
	for _, key := range keys {
		wanted[key] = true
	}
	for key, f := range k.files {
		if !wanted[key] && !k.taken[key] {
			delete(k.files, key)
			n++
			f.Close() //nolint:errcheck // a copy
		}
	}
	return n, err
}

func (k *keeper) has(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.files[key] != nil
}

// again is the server of the next agent.
func (w *world) again(t *testing.T, k *keeper) {
	t.Helper()
	w.server.Close()
	k.taken = make(map[string]bool)
	c := w.server.c
	w.server = New(c)
	t.Cleanup(w.server.Close)
}

func (w *world) stored(t *testing.T) []task.Stored {
	t.Helper()
	b, err := json.Marshal(w.handle)
	if err != nil {
		t.Fatal(err)
	}
	w.known.Resources[task.ResourceID{Kind: task.KindEndpoint, Name: "task"}] = &task.Record{Phase: task.Present, Handle: b}
	return []task.Stored{{Task: w.task, Known: &w.known}}
}

func TestKeptSocketsQueueRequests(t *testing.T) {
	k := &keeper{files: make(map[string]*os.File), taken: make(map[string]bool)}
	w := start(t, func(_ *task.Task, c *Config) { c.Kept = k })
	key := keyOf(w.task.ID(), "task")
	if !k.has(key) {
		t.Fatal("the socket is not kept")
	}
	stale, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Keep("gone/task", stale); err != nil {
		t.Fatal(err)
	}
	stale.Close() //nolint:errcheck // it is kept
	stored := w.stored(t)
	w.again(t, k)
	// No agent serves now.
	var c net.Conn
	err = w.ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", wellKnown+":80", time.Minute)
		return err
	})
	if err != nil {
		t.Fatalf("while there is no agent: %v", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET /v2/metadata HTTP/1.0\r\nHost: " + wellKnown + "\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	w.server.Adopt(stored)
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("HTTP/1.0 200"))
	if _, err := c.Read(buf); err != nil || string(buf) != "HTTP/1.0 200" {
		t.Errorf("who waited is answered %q, %v", buf, err)
	}
	if k.has("gone/task") {
		t.Error("the socket of a task that has ended is still kept")
	}
	if status, _ := w.ask(t, http.MethodGet, "/v2/metadata", ""); status != http.StatusOK {
		t.Errorf("then: %d", status)
	}
	if err := w.server.Remove(t.Context(), w.task, "task", nil); err != nil {
		t.Fatal(err)
	}
	if k.has(key) {
		t.Error("the socket of an endpoint that was removed is still kept")
	}
}

// TestKeptSocketOfAnotherNamespace has the path of the task's network lead to a namespace
// that was made again.
func TestKeptSocketOfAnotherNamespace(t *testing.T) {
	k := &keeper{files: make(map[string]*os.File), taken: make(map[string]bool)}
	w := start(t, func(_ *task.Task, c *Config) { c.Kept = k })
	stored := w.stored(t)
	w.again(t, k)
	path := filepath.Join(t.TempDir(), "other")
	if err := eni.CreateNamespace(path, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := eni.RemoveNamespace(path); err != nil {
			t.Error(err)
		}
	})
	var err error
	if w.ns, err = eni.OpenNamespace(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ns.Close() }) //nolint:errcheck // it was only looked at
	w.handle.Namespace = path
	stored = append(stored[:0], w.stored(t)...)
	w.server.Adopt(stored)
	if status, _ := w.ask(t, http.MethodGet, "/v2/metadata", ""); status != http.StatusOK {
		t.Errorf("in the new namespace: %d", status)
	}
	if !k.has(keyOf(w.task.ID(), "task")) {
		t.Error("the new socket is not kept")
	}
}

// TestHostListenerIsKept is of tasks in the host's network.
func TestHostListenerIsKept(t *testing.T) {
	k := &keeper{files: make(map[string]*os.File), taken: make(map[string]bool)}
	h := &hostListener{kept: k}
	ask := func(addr string) (string, error) {
		resp, err := http.Get("http://" + addr)
		if err != nil {
			return "", err
		}
		return resp.Status, resp.Body.Close()
	}
	teapot := func() *http.Server {
		return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })}
	}
	addr, err := h.open("", "127.0.0.1:0", teapot)
	if err != nil {
		t.Fatal(err)
	}
	if !k.has(hostKey(addr)) {
		t.Fatal("the listener is not kept")
	}
	for _, s := range h.close() {
		end(t.Context(), s)
	}
	k.taken = make(map[string]bool)
	type result struct {
		status string
		err    error
	}
	done := make(chan result, 1)
	go func() {
		status, err := ask(addr)
		done <- result{status, err}
	}()
	h = &hostListener{kept: k}
	if again, err := h.open(addr, "127.0.0.1:0", teapot); err != nil || again != addr {
		t.Fatalf("%s, %v", again, err)
	}
	if r := <-done; r.err != nil || r.status != "418 I'm a teapot" {
		t.Errorf("%+v", r)
	}
	for _, s := range h.close() {
		end(t.Context(), s)
	}
}

// held has its answers wait.
type held struct {
	*world
	asked, answer chan struct{}
}

func (h held) Protection(ctx context.Context, c creds.Credentials, arn string, set *tmds.ProtectionRequest) (*tmds.ProtectionResponse, error) {
	close(h.asked)
	<-h.answer
	return h.world.Protection(ctx, c, arn, set)
}

// TestCloseAnswersWhatWasAsked ends the agent while a task waits for an answer.
func TestCloseAnswersWhatWasAsked(t *testing.T) {
	h := held{asked: make(chan struct{}), answer: make(chan struct{})}
	h.world = start(t, nil)
	h.server.c.Cluster = h
	if err := h.creds.Set(creds.Credentials{
		ID: "mine", TaskARN: h.task.ARN, Role: creds.Application, RoleARN: "arn:role", AccessKeyID: task.NewSecret("a"), SecretAccessKey: task.NewSecret("s"),
		SessionToken: task.NewSecret("t"), Expiration: time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
	}); err != nil {
		t.Fatal(err)
	}
	h.server.endpoints[keyOf(h.task.ID(), "task")].http.RegisterOnShutdown(func() { close(h.answer) })
	done := make(chan int, 1)
	go func() {
		status, _ := h.ask(t, http.MethodGet, "/api/"+h.handle.IDs["app"]+"/task-protection/v1/state", "")
		done <- status
	}()
	<-h.asked
	h.server.Close()
	if status := <-done; status != http.StatusOK {
		t.Errorf("who had asked is answered %d", status)
	}
}
