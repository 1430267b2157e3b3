package logs

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tinylib/msgp/msgp"
)

// received collects what a receiver got.
type received[T any] struct {
	mu   sync.Mutex
	list []T
}

func (r *received[T]) add(v ...T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, v...)
}

func (r *received[T]) all() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

func (r *received[T]) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list)
}

// forwarded is one event of the forward protocol.
type forwarded struct {
	Tag    string
	Nanos  int64 // since 1970
	Ext    bool  // the time was an EventTime
	Record map[string]string
}

// forwardReceiver takes the forward protocol in Forward mode and acknowledges chunks.
type forwardReceiver struct {
	received[forwarded]
	t     testing.TB
	l     net.Listener
	keep  func() bool // false: the chunk is dropped and the connection closed
	conns sync.WaitGroup
}

func newForward(t testing.TB, network, addr string) *forwardReceiver {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	f := &forwardReceiver{t: t, l: l}
	go f.accept()
	t.Cleanup(func() { l.Close() })
	return f
}

func (f *forwardReceiver) accept() {
	for {
		c, err := f.l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if err := f.serve(c); err != nil && err != io.EOF {
				f.t.Logf("forward receiver: %v", err)
			}
		}()
	}
}

func (f *forwardReceiver) serve(c net.Conn) error {
	r := msgp.NewReader(c)
	for {
		n, err := r.ReadArrayHeader()
		if err != nil {
			return io.EOF
		}
		if n != 3 {
			return fmt.Errorf("a message of %d members", n)
		}
		tag, err := r.ReadString()
		if err != nil {
			return err
		}
		entries, err := r.ReadArrayHeader()
		if err != nil {
			return err
		}
		list := make([]forwarded, entries)
		for i := range list {
			list[i].Tag = tag
			if err := readEntry(r, &list[i]); err != nil {
				return err
			}
		}
		option := map[string]any{}
		if err := r.ReadMapStrIntf(option); err != nil {
			return err
		}
		if size, ok := option["size"].(int64); !ok || int(size) != len(list) {
			return fmt.Errorf("option size %v of %d entries", option["size"], len(list))
		}
		if f.keep != nil && !f.keep() {
			return io.EOF
		}
		f.add(list...)
		if chunk, ok := option["chunk"].(string); ok {
			b := msgp.AppendMapHeader(nil, 1)
			b = msgp.AppendString(msgp.AppendString(b, "ack"), chunk)
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
}

func readEntry(r *msgp.Reader, e *forwarded) error {
	if n, err := r.ReadArrayHeader(); err != nil || n != 2 {
		return fmt.Errorf("an entry of %d members: %w", n, err)
	}
	kind, err := r.NextType()
	if err != nil {
		return err
	}
	if kind == msgp.ExtensionType || kind == msgp.TimeType {
		x := msgp.RawExtension{Type: 0}
		if err := r.ReadExtension(&x); err != nil {
			return err
		}
		if len(x.Data) != 8 {
			return fmt.Errorf("an event time of %d bytes", len(x.Data))
		}
		e.Ext = true
		e.Nanos = int64(binary.BigEndian.Uint32(x.Data))*1e9 + int64(binary.BigEndian.Uint32(x.Data[4:]))
	} else {
		seconds, err := r.ReadInt64()
		if err != nil {
			return err
		}
		e.Nanos = seconds * 1e9
	}
	n, err := r.ReadMapHeader()
	if err != nil {
		return err
	}
	e.Record = map[string]string{}
	for range n {
		k, err := r.ReadString()
		if err != nil {
			return err
		}
		if e.Record[k], err = r.ReadString(); err != nil {
			return err
		}
	}
	return nil
}

// journalReceiver speaks the journal's native protocol.
type journalReceiver struct {
	received[map[string]string]
	files int // entries that came in a memory file
}

func newJournal(t testing.TB, path string) *journalReceiver {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	j := &journalReceiver{}
	go func() {
		buf, oob := make([]byte, 1<<20), make([]byte, 1024)
		for {
			n, on, _, _, err := c.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			b := buf[:n]
			if on > 0 {
				if b, err = passedFile(oob[:on]); err != nil {
					t.Error(err)
					return
				}
				j.mu.Lock()
				j.files++
				j.mu.Unlock()
			}
			fields, err := journalFields(b)
			if err != nil {
				t.Error(err)
				return
			}
			j.add(fields)
		}
	}()
	return j
}

func passedFile(oob []byte) ([]byte, error) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(msgs), err)
	}
	fds, err := syscall.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	f := os.NewFile(uintptr(fds[0]), "entry")
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
}

func journalFields(b []byte) (map[string]string, error) {
	out := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return nil, fmt.Errorf("no newline after %q", line)
		}
		if k, v, ok := bytes.Cut(line, []byte("=")); ok {
			out[string(k)] = string(v)
			b = rest
			continue
		}
		if len(rest) < 8 {
			return nil, fmt.Errorf("no length after %q", line)
		}
		n := binary.LittleEndian.Uint64(rest)
		rest = rest[8:]
		if uint64(len(rest)) < n+1 || rest[n] != '\n' {
			return nil, fmt.Errorf("a value of %d bytes, of which %d are there", n, len(rest))
		}
		out[string(line)] = string(rest[:n])
		b = rest[n+1:]
	}
	return out, nil
}

// gelfUDP takes GELF over UDP, chunked and compressed as it comes.
func gelfUDP(t testing.TB) (*received[map[string]any], string) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	out := &received[map[string]any]{}
	go func() {
		chunks := map[string][][]byte{}
		buf := make([]byte, 65536)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			b := bytes.Clone(buf[:n])
			if bytes.HasPrefix(b, []byte{0x1e, 0x0f}) {
				id := string(b[2:10])
				if chunks[id] == nil {
					chunks[id] = make([][]byte, b[11])
				}
				chunks[id][b[10]] = b[12:]
				if slices.ContainsFunc(chunks[id], func(c []byte) bool { return c == nil }) {
					continue
				}
				b = bytes.Join(chunks[id], nil)
			}
			m, err := gelfMessage(b)
			if err != nil {
				t.Error(err)
				return
			}
			out.add(m)
		}
	}()
	return out, "udp://" + c.LocalAddr().String()
}

func gelfMessage(b []byte) (map[string]any, error) {
	var r io.Reader = bytes.NewReader(b)
	var err error
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(r)
	case len(b) > 0 && b[0] == 0x78:
		r, err = zlib.NewReader(r)
	}
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	return m, json.NewDecoder(r).Decode(&m)
}

// gelfTCP takes GELF over TCP: messages that end in a zero byte.
func gelfTCP(t testing.TB) (*received[map[string]any], string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	out := &received[map[string]any]{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				for m := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
					v := map[string]any{}
					if err := json.Unmarshal(m, &v); err != nil {
						t.Error(err)
					}
					out.add(v)
				}
			}()
		}
	}()
	return out, "tcp://" + l.Addr().String()
}

// collector is Splunk's HTTP Event Collector.
type collector struct {
	received[map[string]any]
	srv   *httptest.Server
	token string
	fail  func() int // a status to answer with, or 0
	zip   bool       // a body was compressed
}

func newCollector(t testing.TB, token string) *collector {
	t.Helper()
	c := &collector{token: token}
	c.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.fail != nil {
			if status := c.fail(); status != 0 {
				http.Error(w, `{"text":"Server is busy","code":9}`, status)
				return
			}
		}
		if r.Header.Get("Authorization") != "Splunk "+token {
			http.Error(w, `{"text":"Invalid token","code":4}`, http.StatusForbidden)
			return
		}
		if r.Method == http.MethodOptions {
			return
		}
		if !strings.HasPrefix(r.URL.Path, "/services/collector/event") {
			http.NotFound(w, r)
			return
		}
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			body = z
			c.mu.Lock()
			c.zip = true
			c.mu.Unlock()
		}
		for d := json.NewDecoder(body); ; {
			m := map[string]any{}
			if err := d.Decode(&m); err == io.EOF {
				break
			} else if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			c.add(m)
		}
		fmt.Fprint(w, `{"text":"Success","code":0}`)
	}))
	t.Cleanup(c.srv.Close)
	return c
}
