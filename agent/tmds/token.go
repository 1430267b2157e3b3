package tmds

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// tokenPath is where a container in the host's network finds its token.
const tokenPath = "/run/berth/credentials-token"

// newID is a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (s *Server) tokenFile(taskID string) string { return filepath.Join(s.c.Dir, taskID, "token") }

// token makes the token of a task, or finds it, and returns its file. Only root reaches
// the file on the host; in the container everybody may read it.
func (s *Server) token(taskID string) (string, error) {
	file := s.tokenFile(taskID)
	if err := os.MkdirAll(s.c.Dir, 0o700); err != nil {
		return "", fmt.Errorf("token of a task: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("token of a task: %w", err)
	}
	var b [32]byte
	rand.Read(b[:]) //nolint:errcheck // never fails (crypto/rand)
	tmp := file + ".new"
	if err := os.WriteFile(tmp, []byte(hex.EncodeToString(b[:])), 0o444); err != nil {
		return "", fmt.Errorf("token of a task: %w", err)
	}
	err := os.Link(tmp, file)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err := errors.Join(err, os.Remove(tmp)); err != nil {
		return "", fmt.Errorf("token of a task: %w", err)
	}
	return file, nil
}

// holds reports whether given is the token of a task.
func (s *Server) holds(taskID, given string) bool {
	want, err := os.ReadFile(s.tokenFile(taskID))
	return err == nil && len(want) > 0 && subtle.ConstantTimeCompare(want, []byte(given)) == 1
}

func (s *Server) removeToken(taskID string) error {
	return removeBelow(s.c.Dir, taskID)
}
