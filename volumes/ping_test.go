package volumes

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// server answers each connection with bytes after it has read a call.
func server(t *testing.T, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // the test is over
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				call := make([]byte, 44)
				if _, err := io.ReadFull(c, call); err != nil {
					return
				}
				if answer == "" {
					io.Copy(io.Discard, c) //nolint:errcheck // it is silent until the other side has enough
					return
				}
				io.WriteString(c, strings.Replace(answer, "ID", string(call[4:8]), 1)) //nolint:errcheck // the other side says
			}()
		}
	}()
	return l.Addr().String()
}

func TestPing(t *testing.T) {
	if err := ping(t.Context(), server(t, "\x80\x00\x00\x18ID\x00\x00\x00\x01\x00\x00\x00\x00")); err != nil {
		t.Errorf("a server that answers: %v", err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{
		"silent": server(t, ""), "something else": server(t, "HTTP/1.1 400 Bad Request\r\n"), "short": server(t, "\x80"), "nobody": nobody,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := ping(ctx, address); !errors.Is(err, ErrLate) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}
