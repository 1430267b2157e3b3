package logs

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/agent/logs/ship"
	"berth.dev/berth/integ/await"
)

// scale is how much output the tests of much output have: BERTH_LOG_SCALE=full is what
// users are promised (1 GiB), and the default a part of it that takes seconds.
func scale() int64 {
	if os.Getenv("BERTH_LOG_SCALE") == "full" {
		return 1 << 30
	}
	return 64 << 20
}

// Bounds of memory, in bytes of resident set.
const (
	loggerMemory  = 8 << 20
	shipperMemory = 64 << 20
)

// peak is the highest resident set of a process so far, in bytes.
func peak(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("process %d has no VmHWM", pid)
	return 0
}

// counter is a TCP syslog receiver that counts lines and their bytes.
type counter struct {
	l            net.Listener
	lines, bytes atomic.Int64
}

func newCounter(t testing.TB) *counter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &counter{l: l}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 1<<20)
				for {
					n, err := conn.Read(buf)
					c.lines.Add(int64(bytes.Count(buf[:n], []byte("\n"))))
					c.bytes.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return c
}

func (c *counter) options(mode string) map[string]string {
	return map[string]string{"syslog-address": "tcp://" + c.l.Addr().String(), "mode": mode, "tag": "x"}
}

// pour writes n bytes of lines of the given length and returns the number of lines.
func pour(k *container, n int64, line int) int64 {
	text := bytes.Repeat(append(bytes.Repeat([]byte("x"), line-1), '\n'), max(1, 64<<10/line))
	lines := int64(0)
	for n > 0 {
		b := text[:min(int64(len(text)), (n+int64(line)-1)/int64(line)*int64(line))]
		if _, err := k.out.Write(b); err != nil {
			return lines
		}
		n -= int64(len(b))
		lines += int64(bytes.Count(b, []byte("\n")))
	}
	return lines
}

func TestAllOfMuchOutputArrives(t *testing.T) {
	r := newRig(t)
	c := newCounter(t)
	k := r.container("syslog", c.options("blocking"))
	began := time.Now()
	lines := pour(k, scale(), 120)
	took := time.Since(began)
	logger := peak(t, k.logger.Process.Pid)
	shipper := peak(t, r.shipper())
	k.end()
	if p := k.sent(2 * time.Minute); p.Lost != 0 {
		t.Errorf("lost %d", p.Lost)
	}
	await.Until(t, soon, "every line has come", func() error { return want(int(lines), int(c.lines.Load())) })
	t.Logf("%d MiB in %d lines, blocking: %.1f s, %.0f lines/s; peak of the logger %.1f MB, of the shipper %.1f MB",
		scale()>>20, lines, took.Seconds(), float64(lines)/took.Seconds(), float64(logger)/1e6, float64(shipper)/1e6)
	if logger > loggerMemory || shipper > shipperMemory {
		t.Errorf("logger %d bytes, shipper %d", logger, shipper)
	}
}

func TestOutputAtFullSpeedIsCountedWhereItDoesNotWait(t *testing.T) {
	r := newRig(t)
	c := newCounter(t)
	k := r.container("syslog", c.options("non-blocking"))
	began := time.Now()
	lines := pour(k, scale(), 60)
	took := time.Since(began)
	logger := peak(t, k.logger.Process.Pid)
	k.end()
	p := k.sent(2 * time.Minute)
	await.Until(t, soon, "every line has come or was counted", func() error {
		if got := c.lines.Load(); got < lines-int64(p.Lost) {
			return fmt.Errorf("%d came, %d lost, of %d", got, p.Lost, lines)
		}
		return nil
	})
	if p.Seq != uint64(lines) {
		t.Errorf("the log had %d entries, want %d", p.Seq, lines)
	}
	t.Logf("%d lines, non-blocking: %.1f s, %.0f lines/s; %d lost and counted; peak of the logger %.1f MB",
		lines, took.Seconds(), float64(lines)/took.Seconds(), p.Lost, float64(logger)/1e6)
	if logger > loggerMemory {
		t.Errorf("logger %d bytes", logger)
	}
}

func TestHundredThousandLinesASecond(t *testing.T) {
	r := newRig(t)
	c := newCounter(t)
	k := r.container("syslog", c.options("non-blocking"))
	const rate, tick = 100_000, 10 * time.Millisecond
	seconds := max(3, int(scale()>>27)*4)
	chunk := bytes.Repeat([]byte("0123456789012345678901234567890123456789012345678\n"), rate/100)
	began := time.Now()
	for i := range seconds * 100 {
		wait(time.Until(began.Add(time.Duration(i) * tick)))
		if _, err := k.out.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	k.end()
	p := k.sent(time.Minute)
	if p.Lost != 0 {
		t.Errorf("lost %d", p.Lost)
	}
	await.Until(t, soon, "every line has come", func() error { return want(seconds*rate, int(c.lines.Load())) })
	t.Logf("%d lines in %.2f s, all sent %.2f s after the first", seconds*rate, took.Seconds(), time.Since(began).Seconds())
}

func TestOneVeryLongLine(t *testing.T) {
	r := newRig(t)
	f := newForward(t, "tcp", "127.0.0.1:0")
	k := r.container("syslog", newCounter(t).options("non-blocking"))
	_ = f
	buf := bytes.Repeat([]byte("long "), 64<<10/5)
	for n := int64(0); n < scale(); n += int64(len(buf)) {
		if _, err := k.out.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	k.say("\n")
	logger, shipper := peak(t, k.logger.Process.Pid), peak(t, r.shipper())
	k.end()
	k.sent(2 * time.Minute)
	t.Logf("a line of %d MiB: peak of the logger %.1f MB, of the shipper %.1f MB", scale()>>20, float64(logger)/1e6, float64(shipper)/1e6)
	if logger > loggerMemory || shipper > shipperMemory {
		t.Errorf("logger %d bytes, shipper %d", logger, shipper)
	}
}

func TestDeadDestinationStopsNobody(t *testing.T) {
	r := newRig(t)
	r.settings.MaxBytes, r.settings.Files = 1<<20, 4
	k := r.container("syslog", map[string]string{"syslog-address": "tcp://" + refusing(t)})
	began := time.Now()
	lines := pour(k, 16<<20, 100)
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("16 MiB took %v", took)
	}
	await.Until(t, soon, "why nothing is sent is written down", func() error {
		if p := placeOf(t, k); !strings.Contains(p.Error, "connection refused") || p.Since.IsZero() {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	k.end()
	if shipper := peak(t, r.shipper()); shipper > shipperMemory {
		t.Errorf("the shipper takes %d bytes", shipper)
	}
	_ = lines
}

func TestBlockingContainerWaitsForItsDestination(t *testing.T) {
	r := newRig(t)
	addr := refusing(t)
	k := r.container("syslog", map[string]string{"syslog-address": "tcp://" + addr, "mode": "blocking"})
	written := atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 160 {
			pour(k, 64<<10, 100)
			written.Add(64 << 10)
		}
	}()
	last := int64(-1)
	await.Until(t, soon, "the container waits", func() error {
		now := written.Load()
		defer func() { last = now }()
		if now == 0 || now != last {
			wait(500 * time.Millisecond)
			return fmt.Errorf("%d bytes written", now)
		}
		return nil
	})
	if last > 4<<20 {
		t.Errorf("it wrote %d bytes before it waited", last)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &counter{l: l}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(lineCounter{c}, conn) //nolint:errcheck // it ends with the test
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("it still waits, %d bytes written", written.Load())
	}
	k.end()
	if p := k.sent(time.Minute); p.Lost != 0 {
		t.Errorf("lost %d", p.Lost)
	}
	await.Until(t, soon, "every line has come", func() error { return want(160*656, int(c.lines.Load())) })
}

type lineCounter struct{ c *counter }

func (w lineCounter) Write(b []byte) (int, error) {
	w.c.lines.Add(int64(bytes.Count(b, []byte("\n"))))
	return len(b), nil
}

func TestShipperThatIsKilledGoesOnWhereItWas(t *testing.T) {
	r := newRig(t)
	f := newForward(t, "tcp", "127.0.0.1:0")
	k := r.container("fluentd", map[string]string{"fluentd-address": f.l.Addr().String(), "fluentd-request-ack": "true"})
	const lines = 3000
	for i := range lines {
		k.say(fmt.Sprintf("line %d\n", i))
		if i%1000 == 500 {
			await.Until(t, soon, "there is a shipper", func() error {
				if pid := r.shipper(); pid != 0 {
					return syscall.Kill(pid, syscall.SIGKILL)
				}
				return fmt.Errorf("none")
			})
		}
	}
	await.Until(t, 2*soon, "every line has come", func() error {
		seen := map[string]bool{}
		for _, e := range f.all() {
			seen[e.Record["log"]] = true
		}
		return want(lines, len(seen))
	})
	k.end()
	k.sent(soon)
	last := -1
	for _, e := range f.all() {
		var n int
		if _, err := fmt.Sscanf(e.Record["log"], "line %d", &n); err != nil || n > last+1 {
			t.Fatalf("%q after line %d: %v", e.Record["log"], last, err)
		}
		last = n
	}
}

func TestFullDiskStopsNobody(t *testing.T) {
	r := newRig(t)
	if err := os.MkdirAll(r.root, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", r.root).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		r.endShipper()
		if out, err := exec.Command("umount", "-l", r.root).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	c := newCounter(t)
	k := r.container("syslog", c.options("non-blocking"))
	k.say("before\n")
	ballast := filepath.Join(r.root, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	began := time.Now()
	pour(k, 8<<20, 100)
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("it took %v", took)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	before := c.lines.Load()
	k.say("after\n")
	await.Until(t, soon, "it is sent again", func() error {
		if c.lines.Load() <= before {
			return fmt.Errorf("%d lines", c.lines.Load())
		}
		return nil
	})
	k.end()
}

func TestOneShipperForManyContainers(t *testing.T) {
	r := newRig(t)
	f := newForward(t, "tcp", "127.0.0.1:0")
	n := 20
	if scale() == 1<<30 {
		n = 100
	}
	var all []*container
	for range n {
		k := r.container("fluentd", map[string]string{"fluentd-address": f.l.Addr().String()})
		k.say("hello\n")
		all = append(all, k)
	}
	await.Until(t, 2*soon, "all have said hello", func() error { return want(n, f.len()) })
	memory := peak(t, r.shipper())
	loggers := int64(0)
	for _, k := range all {
		loggers += peak(t, k.logger.Process.Pid)
		k.end()
	}
	t.Logf("%d containers: the shipper takes %.1f MB, a logger %.1f MB", n, float64(memory)/1e6, float64(loggers)/1e6/float64(n))
	for _, k := range all {
		if p := k.sent(soon); p == (ship.Place{}) {
			t.Error("no place")
		}
	}
	await.Until(t, soon, "the shipper ends when there is nothing to do", func() error {
		if pid := r.shipper(); pid != 0 {
			return fmt.Errorf("process %d", pid)
		}
		return nil
	})
}
