package bench

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/berth/eni"
)

// BenchmarkMetadata is how long one task waits for its metadata, each time with a new
// connection, alone and while another task sends its own endpoint 10,000 requests a second.
func BenchmarkMetadata(b *testing.B) {
	const (
		lasts   = 5 * time.Second
		clients = 200 // below the connections that a listener takes
		each    = 50  // requests a second of each of them
	)
	x := newBed(b)
	arns := x.Run(x.definition("asks", "bridge", 1), 2)
	x.await(b, "RUNNING", 20*time.Second, arns...)
	paths, err := filepath.Glob(filepath.Join(x.Dir, "run", "network", "namespaces", "*"))
	if err != nil || len(paths) != 2 {
		b.Fatalf("namespaces: %q, %v", paths, err)
	}
	quiet, noisy := inside(b, paths[0]), inside(b, paths[1])
	for b.Loop() {
		alone := ask(b, quiet, lasts)
		ctx, cancel := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		var sent, answered atomic.Int64
		for range clients {
			c, err := noisy(ctx, "tcp", endpoint)
			if err != nil {
				b.Fatal(err)
			}
			wg.Go(func() { shout(ctx, c, each, &sent) })
			wg.Go(func() { count(c, &answered) })
		}
		before := cpuTime(b, x.Agent.PID())
		beside := ask(b, quiet, lasts)
		cpu := cpuTime(b, x.Agent.PID()) - before
		cancel()
		wg.Wait()
		b.ReportMetric(ms(median(alone)), "alone-median-ms")
		b.ReportMetric(ms(alone[len(alone)*99/100]), "alone-p99-ms")
		b.ReportMetric(ms(median(beside)), "beside-median-ms")
		b.ReportMetric(ms(beside[len(beside)*99/100]), "beside-p99-ms")
		b.ReportMetric(float64(sent.Load())/lasts.Seconds(), "sent/s")
		b.ReportMetric(float64(answered.Load())/lasts.Seconds(), "answered/s")
		b.ReportMetric(cpu.Seconds()/lasts.Seconds()*100, "agent-cpu-%")
	}
	x.System.Stop(arns[0])
	x.System.Stop(arns[1])
	x.Wait("STOPPED", 20*time.Second, arns...)
}

// endpoint is where every task finds its own (agent protocol, "Server").
const endpoint = "169.254.170.2:80"

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// inside dials in the namespace of a container.
func inside(b *testing.B, path string) dialer {
	b.Helper()
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ns.Close() }) //nolint:errcheck // it was only looked at
	return func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		var d net.Dialer
		return c, ns.Do(func() error { c, err = d.DialContext(ctx, network, addr); return err })
	}
}

// ask asks for the metadata of a task 30 times a second, and returns how long each answer
// took.
func ask(b *testing.B, dial dialer, lasts time.Duration) (took []time.Duration) {
	b.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	tick := time.NewTicker(time.Second / 30)
	defer tick.Stop()
	for end := time.Now().Add(lasts); time.Now().Before(end); <-tick.C {
		begin := time.Now()
		resp, err := client.Get("http://" + endpoint + "/v2/metadata")
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			b.Fatalf("the quiet task is answered %s", resp.Status)
		}
		took = append(took, time.Since(begin))
	}
	return took
}

// shout sends requests without waiting for answers.
func shout(ctx context.Context, c net.Conn, perSecond int, sent *atomic.Int64) {
	defer c.Close()
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if _, err := c.Write([]byte("GET /v2/metadata HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n")); err != nil {
			return
		}
		sent.Add(1)
	}
}

// count counts answers until the connection is closed.
func count(c net.Conn, answered *atomic.Int64) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		answered.Add(int64(bytes.Count(buf[:n], []byte("HTTP/1.1 "))))
		if err != nil {
			return
		}
	}
}
