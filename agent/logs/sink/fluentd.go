package sink

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/tinylib/msgp/msgp"

	"berth.dev/berth/agent/logs"
)

// fluentd writes the forward protocol of Fluentd and Fluent Bit, version 1, in its
// Forward mode: one message for many records, and one acknowledgement where it is asked
// for (Fluentd, "Forward Protocol Specification v1").
type fluentd struct {
	wire       wire
	tag        string
	extra      map[string]string
	id, name   string
	subSecond  bool
	ack        bool
	ackTimeout time.Duration
	buf        []byte
}

func newFluentd(c Config) (*fluentd, error) {
	o := c.Options
	network, addr, err := logs.Address(cmp.Or(o["fluentd-address"], "tcp://127.0.0.1:24224"), "24224", "tcp", "tls", "unix")
	if err != nil {
		return nil, err
	}
	f := &fluentd{
		wire: wire{network: network, addr: addr}, extra: c.Stream.Extra, id: c.Stream.ID, name: "/" + c.Stream.Name, ackTimeout: replyTimeout,
		subSecond: truth(o["fluentd-sub-second-precision"]), ack: truth(o["fluentd-request-ack"]),
	}
	if network == "tls" {
		f.wire.network, f.wire.tls = "tcp", &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if v := o["fluentd-read-timeout"]; v != "" {
		if f.ackTimeout, err = logs.Duration(v); err != nil {
			return nil, err
		}
		f.ackTimeout = cmp.Or(f.ackTimeout, replyTimeout)
	}
	if f.tag, err = c.tag("{{.ID}}"); err != nil {
		return nil, err
	}
	return f, nil
}

// truth is a boolean option that was checked when the container was made.
func truth(v string) bool {
	b, err := strconv.ParseBool(v)
	return err == nil && b
}

func (f *fluentd) Linger() time.Duration { return 0 }

func (f *fluentd) Close() error { return f.wire.Close() }

func (f *fluentd) Send(ctx context.Context, records []Record, _ bool) (int, error) {
	if f.wire.conn != nil && !f.ack && !f.wire.alive() {
		_ = f.wire.Close()
	}
	chunk := ""
	if f.ack {
		var id [16]byte
		if _, err := rand.Read(id[:]); err != nil {
			return 0, err
		}
		chunk = base64.StdEncoding.EncodeToString(id[:])
	}
	f.buf = f.message(f.buf[:0], records, chunk)
	if err := f.wire.write(ctx, f.buf); err != nil {
		return 0, err
	}
	if f.ack {
		if err := f.acknowledged(chunk); err != nil {
			return 0, f.wire.broken(err)
		}
	}
	return len(records), nil
}

func (f *fluentd) message(b []byte, records []Record, chunk string) []byte {
	b = msgp.AppendArrayHeader(b, 3)
	b = msgp.AppendString(b, f.tag)
	b = msgp.AppendArrayHeader(b, uint32(len(records)))
	for i := range records {
		b = f.entry(b, &records[i])
	}
	if chunk == "" {
		b = msgp.AppendMapHeader(b, 1)
	} else {
		b = msgp.AppendMapHeader(b, 2)
		b = msgp.AppendString(msgp.AppendString(b, "chunk"), chunk)
	}
	return msgp.AppendInt(msgp.AppendString(b, "size"), len(records))
}

// entry appends one record, with the members that Docker's driver gives it.
func (f *fluentd) entry(b []byte, r *Record) []byte {
	b = msgp.AppendArrayHeader(b, 2)
	if f.subSecond {
		// EventTime: an extension of type 0 with seconds and nanoseconds.
		b = append(b, 0xd7, 0x00)
		b = binary.BigEndian.AppendUint32(b, uint32(r.Time.Unix()))
		b = binary.BigEndian.AppendUint32(b, uint32(r.Time.Nanosecond()))
	} else {
		b = msgp.AppendInt64(b, r.Time.Unix())
	}
	members := 4
	for k := range f.extra {
		if !own(k) {
			members++
		}
	}
	if r.Part != nil {
		members += 4
	}
	b = msgp.AppendMapHeader(b, uint32(members))
	for _, kv := range [][2]string{{"container_id", f.id}, {"container_name", f.name}, {"source", r.Stream}, {"log", r.Line}} {
		b = msgp.AppendString(msgp.AppendString(b, kv[0]), kv[1])
	}
	for k, v := range f.extra {
		if !own(k) {
			b = msgp.AppendString(msgp.AppendString(b, k), v)
		}
	}
	if p := r.Part; p != nil {
		for _, kv := range [][2]string{
			{"partial_message", "true"}, {"partial_id", p.ID}, {"partial_ordinal", strconv.Itoa(p.Ordinal)}, {"partial_last", strconv.FormatBool(p.Last)},
		} {
			b = msgp.AppendString(msgp.AppendString(b, kv[0]), kv[1])
		}
	}
	return b
}

// own reports whether a member of a record is the driver's.
func own(k string) bool {
	switch k {
	case "container_id", "container_name", "source", "log", "partial_message", "partial_id", "partial_ordinal", "partial_last":
		return true
	}
	return false
}

// acknowledged reads the answer to a chunk.
func (f *fluentd) acknowledged(chunk string) error {
	if err := f.wire.conn.SetReadDeadline(time.Now().Add(f.ackTimeout)); err != nil {
		return err
	}
	r := msgp.NewReader(io.LimitReader(f.wire.conn, 1024))
	n, err := r.ReadMapHeader()
	if err != nil {
		return fmt.Errorf("no acknowledgement: %w", err)
	}
	got := ""
	for range n {
		k, err := r.ReadString()
		if err != nil {
			return err
		}
		if k != "ack" {
			if err := r.Skip(); err != nil {
				return err
			}
			continue
		}
		if got, err = r.ReadString(); err != nil {
			return err
		}
	}
	if got != chunk {
		return errors.New("the acknowledgement is of another chunk")
	}
	return nil
}
