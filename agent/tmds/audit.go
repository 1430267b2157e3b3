package tmds

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/creds"
)

// Audit records requests for credentials in a file (agent protocol, "Server"). A file
// that is full is kept as one older file.
type Audit struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// auditSize is when the file is full, in bytes.
const auditSize = 8 << 20

// OpenAudit opens the record at path, and makes its directory.
func OpenAudit(path string) (*Audit, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	a := &Audit{path: path, max: auditSize}
	return a, a.open()
}

func (a *Audit) open() error {
	f, err := os.OpenFile(a.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("audit log: %w", err), f.Close())
	}
	a.file, a.size = f, st.Size()
	return nil
}

// Close closes the record.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}

func (a *Audit) write(line string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return fs.ErrClosed
	}
	if a.size+int64(len(line)) > a.max {
		if err := errors.Join(a.file.Close(), os.Rename(a.path, a.path+".1"), a.open()); err != nil {
			return err
		}
	}
	n, err := a.file.WriteString(line)
	a.size += int64(n)
	return err
}

// eventVersion is the version of the form of a line.
const eventVersion = 2

// audit records how a request for credentials was answered. The id in the path, which
// could serve to ask again, is left out.
func (q *request) audit(status int, role creds.Role) {
	if q.s.c.Audit == nil {
		return
	}
	ip, _, err := net.SplitHostPort(q.r.RemoteAddr)
	if err != nil {
		ip = "-"
	}
	path := "/v1/credentials"
	if strings.HasPrefix(q.r.URL.Path, "/v2/") {
		path = "/v2/credentials"
	}
	arn := "-"
	if g := q.s.guest(q.taskID); g != nil {
		arn = g.arn
	}
	kind := "GetCredentialsInvalidRoleType"
	switch role {
	case creds.Application:
		kind = "GetCredentials"
	case creds.Execution:
		kind = "GetCredentialsExecutionRole"
	}
	i := q.s.c.Instance()
	line := fmt.Sprintf("%s %d %s %q %q %s %s %d %s %s\n", time.Now().UTC().Format(time.RFC3339), status, ip, path,
		clip(q.r.UserAgent()), arn, kind, eventVersion, dash(i.Cluster), dash(i.ARN))
	if err := q.s.c.Audit.write(line); err != nil {
		q.s.log.Error("a request for credentials could not be recorded", "task", q.taskID, "err", err)
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
