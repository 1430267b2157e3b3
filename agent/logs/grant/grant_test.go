package grant

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve answers on a socket until the test ends.
func serve(t *testing.T, give func(context.Context, Ask) (Grant, error)) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "logs.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, path, give, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
			return NewClient(path)
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestGrant(t *testing.T) {
	want := Grant{
		Options: map[string]string{"splunk-token": "s"}, Region: "eu-west-1", AccessKeyID: "AKIA", SecretAccessKey: "k", SessionToken: "t",
		Expires: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
	}
	asked := make(chan Ask, 1)
	c := serve(t, func(_ context.Context, a Ask) (Grant, error) { asked <- a; return want, nil })
	for _, ask := range []Ask{
		{TaskID: "0123", Container: "web & co"},
		{TaskID: "0123", Container: "web", Credentials: true, Execution: true, Secrets: true},
	} {
		got, err := c.Get(t.Context(), ask)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(ask, <-asked); diff != "" {
			t.Error(diff)
		}
	}
}

func TestSocketIsForRootAlone(t *testing.T) {
	c := serve(t, func(context.Context, Ask) (Grant, error) { return Grant{}, nil })
	if _, err := c.Get(t.Context(), Ask{}); err != nil {
		t.Fatal(err)
	}
	tr := t.TempDir()
	matches, err := filepath.Glob(filepath.Join(filepath.Dir(tr), "*", "run", "logs.sock"))
	if err != nil || len(matches) != 1 {
		t.Fatalf("%v, %v", matches, err)
	}
	st, err := os.Stat(matches[0])
	if err != nil || st.Mode().Perm()&0o077 != 0 {
		t.Errorf("the socket has mode %v, %v", st.Mode(), err)
	}
}

func TestRefusal(t *testing.T) {
	c := serve(t, func(context.Context, Ask) (Grant, error) {
		return Grant{AccessKeyID: "AKIA-not-shown"}, errors.New("task 0123 is not known here")
	})
	_, err := c.Get(t.Context(), Ask{TaskID: "0123"})
	if err == nil || err.Error() != "the agent refuses: task 0123 is not known here" {
		t.Errorf("%v", err)
	}
}

func TestAgentThatIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.sock")
	if _, err := NewClient(path).Get(t.Context(), Ask{}); err == nil || !strings.HasPrefix(err.Error(), "the agent does not answer: ") {
		t.Errorf("%v", err)
	}
}

// TestAnswerThatCannotBeRead may hold secrets, so none of it is in the error.
func TestAnswerThatCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			if _, err := c.Read(b); err == nil {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"options\":\"secret\"}") //nolint:errcheck // a test sees it
			}
			c.Close()
		}
	}()
	if _, err := NewClient(path).Get(t.Context(), Ask{}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}
