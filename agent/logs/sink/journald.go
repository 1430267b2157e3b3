package sink

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// journalSocket is where the journal takes entries (systemd, "Native Journal Protocol").
const journalSocket = "/run/systemd/journal/socket"

// journald writes entries of the journal's native protocol, with the fields that
// Docker's driver gives them.
type journald struct {
	path   string
	conn   *net.UnixConn
	fields []byte // of every entry
	buf    []byte
}

func newJournald(c Config) (*journald, error) {
	tag, err := c.tag("{{.ID}}")
	if err != nil {
		return nil, err
	}
	j := &journald{path: journalSocket}
	if c.JournalPath != "" {
		j.path = c.JournalPath
	}
	i := c.Stream.Info()
	for _, f := range [][2]string{
		{"CONTAINER_ID", i.ID()}, {"CONTAINER_ID_FULL", i.FullID()}, {"CONTAINER_NAME", i.Name()}, {"CONTAINER_TAG", tag},
		{"IMAGE_NAME", i.ImageName()}, {"SYSLOG_IDENTIFIER", tag},
	} {
		j.fields = appendField(j.fields, f[0], f[1])
	}
	for k, v := range c.Stream.Extra {
		if name := fieldName(k); name != "" {
			j.fields = appendField(j.fields, name, v)
		}
	}
	return j, nil
}

// fieldName makes a name that the journal takes: upper case letters, digits and
// underscores, and no underscore first.
func fieldName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(s))
	s = strings.TrimLeft(s, "_0123456789")
	return s[:min(64, len(s))]
}

// appendField appends one field. A value with newlines has its length before it.
func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	if strings.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
		b = append(b, value...)
		return append(b, '\n')
	}
	b = append(b, '\n')
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	b = append(b, value...)
	return append(b, '\n')
}

func (j *journald) Linger() time.Duration { return 0 }

func (j *journald) Close() error {
	if j.conn == nil {
		return nil
	}
	err := j.conn.Close()
	j.conn = nil
	return err
}

func (j *journald) Send(ctx context.Context, records []Record, _ bool) (int, error) {
	for i, r := range records {
		if err := j.entry(ctx, r); err != nil {
			return i, errors.Join(err, j.Close())
		}
	}
	return len(records), nil
}

func (j *journald) entry(ctx context.Context, r Record) error {
	if j.conn == nil {
		c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unixgram", j.path)
		if err != nil {
			return err
		}
		j.conn = c.(*net.UnixConn) //nolint:forcetypeassert // of that network it is nothing else
	}
	priority := severityInfo
	if r.Stream == "stderr" {
		priority = severityError
	}
	b := append(j.buf[:0], "PRIORITY="...)
	b = strconv.AppendInt(b, int64(priority), 10)
	b = append(b, '\n')
	b = append(b, j.fields...)
	b = appendField(b, "SYSLOG_TIMESTAMP", r.Time.UTC().Format(time.RFC3339Nano))
	if r.Part != nil {
		b = appendField(b, "CONTAINER_PARTIAL_ID", r.Part.ID)
		b = appendField(b, "CONTAINER_PARTIAL_ORDINAL", strconv.Itoa(r.Part.Ordinal))
		b = appendField(b, "CONTAINER_PARTIAL_LAST", strconv.FormatBool(r.Part.Last))
		if !r.Part.Last {
			b = appendField(b, "CONTAINER_PARTIAL_MESSAGE", "true")
		}
	}
	b = appendField(b, "MESSAGE", r.Line)
	j.buf = b
	if err := j.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := j.conn.Write(b)
	if errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, syscall.ENOBUFS) {
		return j.byFile(b)
	}
	return err
}

// byFile hands over an entry that is too large for a datagram in a sealed memory file.
func (j *journald) byFile(b []byte) error {
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "journal-entry")
	defer f.Close()
	if _, err := f.Write(bytes.Clone(b)); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	raw, err := j.conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(s uintptr) bool {
		sent = unix.Sendmsg(int(s), nil, unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sent, syscall.EAGAIN)
	})
	return errors.Join(err, sent)
}
