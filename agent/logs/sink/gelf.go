package sink

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/logs"
)

// Limits of GELF over UDP (GELF specification 1.1, "Chunking").
const (
	gelfChunk  = 1420 // bytes of one datagram: fits into an Ethernet frame
	gelfChunks = 128
)

// gelf writes messages of the Graylog Extended Log Format.
type gelf struct {
	wire     wire
	tcp      bool
	fixed    map[string]any
	compress func(io.Writer) (io.WriteCloser, error) // nil: not at all
}

func newGELF(c Config) (*gelf, error) {
	o := c.Options
	network, addr, err := logs.Address(o["gelf-address"], "12201", "udp", "tcp")
	if err != nil {
		return nil, err
	}
	tag, err := c.tag("{{.ID}}")
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	g := &gelf{wire: wire{network: network, addr: addr}, tcp: network == "tcp"}
	i := c.Stream.Info()
	g.fixed = map[string]any{
		"version": "1.1", "host": host, "_container_id": i.FullID(), "_container_name": i.Name(), "_image_id": i.ImageFullID(),
		"_image_name": i.ImageName(), "_command": i.Command(), "_tag": tag, "_created": i.ContainerCreated.UTC().Format(time.RFC3339Nano),
	}
	for k, v := range c.Stream.Extra {
		if k != "id" { // the specification forbids _id
			g.fixed["_"+strings.TrimPrefix(k, "_")] = v
		}
	}
	level := flate.BestSpeed
	if v := o["gelf-compression-level"]; v != "" {
		if level, err = strconv.Atoi(v); err != nil {
			return nil, err
		}
	}
	switch kind := o["gelf-compression-type"]; {
	case g.tcp || kind == "none":
	case kind == "zlib":
		g.compress = func(w io.Writer) (io.WriteCloser, error) { return zlib.NewWriterLevel(w, level) }
	default:
		g.compress = func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) }
	}
	return g, nil
}

func (g *gelf) Linger() time.Duration { return 0 }

func (g *gelf) Close() error { return g.wire.Close() }

func (g *gelf) Send(ctx context.Context, records []Record, _ bool) (int, error) {
	if g.tcp && g.wire.conn != nil && !g.wire.alive() {
		_ = g.wire.Close()
	}
	var all []byte
	for i, r := range records {
		if strings.TrimSpace(r.Line) == "" {
			continue // short_message must not be empty
		}
		b, err := g.message(r)
		if err != nil {
			return i, &Refused{N: 1, Err: err}
		}
		if g.tcp {
			all = append(append(all, b...), 0)
			continue
		}
		if err := g.datagrams(ctx, b); err != nil {
			return i, err
		}
	}
	if len(all) > 0 {
		if err := g.wire.write(ctx, all); err != nil {
			return 0, err
		}
	}
	return len(records), nil
}

func (g *gelf) message(r Record) ([]byte, error) {
	level := severityInfo
	if r.Stream == "stderr" {
		level = severityError
	}
	m := make(map[string]any, len(g.fixed)+3)
	for k, v := range g.fixed {
		m[k] = v
	}
	m["short_message"] = r.Line
	m["level"] = level
	m["timestamp"] = json.Number(fmt.Sprintf("%d.%03d", r.Time.Unix(), r.Time.Nanosecond()/1e6))
	return json.Marshal(m)
}

func (g *gelf) datagrams(ctx context.Context, b []byte) error {
	if g.compress != nil {
		var z bytes.Buffer
		w, err := g.compress(&z)
		if err == nil {
			_, err = w.Write(b)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return err
		}
		b = z.Bytes()
	}
	if len(b) <= gelfChunk {
		return g.wire.write(ctx, b)
	}
	const head = 12
	n := (len(b) + gelfChunk - head - 1) / (gelfChunk - head)
	if n > gelfChunks {
		return &Refused{N: 1, Err: fmt.Errorf("a message of %d bytes is too long for GELF over UDP", len(b))}
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	for i := range n {
		part := b[i*(gelfChunk-head) : min(len(b), (i+1)*(gelfChunk-head))]
		d := append([]byte{0x1e, 0x0f}, id[:]...)
		d = append(d, byte(i), byte(n))
		if err := g.wire.write(ctx, append(d, part...)); err != nil {
			return err
		}
	}
	return nil
}
