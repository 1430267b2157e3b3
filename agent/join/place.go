package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Place says where what a member needs is kept.
type Place struct {
	KeyFile, CAFile, Settings string
	Profile                   string // in the key file; empty means "default"
}

// Record is what is remembered of a membership, beside the key file.
type Record struct {
	Endpoint string `json:"endpoint"`
	// KeyAt is when the key was made.
	KeyAt time.Time `json:"keyAt"`
	// Unconfirmed is set until the cluster was told that the key is in use.
	Unconfirmed bool `json:"unconfirmed,omitempty"`
}

// Record is the file with what is remembered of a membership.
func (p Place) Record() string { return p.KeyFile + ".json" }

// ReadRecord returns nil without an error where the host was not made a member by a token.
func (p Place) ReadRecord() (*Record, error) {
	b, err := os.ReadFile(p.Record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Record(), err)
	}
	return &r, nil
}

func (p Place) writeRecord(r Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replace(p.Record(), append(b, '\n'), 0o600)
}

func (p Place) writeKey(id, secret string) error {
	profile := p.Profile
	if profile == "" {
		profile = "default"
	}
	return replace(p.KeyFile, fmt.Appendf(nil, "[%s]\naws_access_key_id = %s\naws_secret_access_key = %s\n", profile, id, secret), 0o600)
}

// Prepare makes the folders and finds out whether everything can be written, before a
// token is spent.
func (p Place) Prepare() error {
	for path, mode := range map[string]fs.FileMode{p.KeyFile: 0o700, p.CAFile: 0o755, p.Settings: 0o755} {
		dir := filepath.Dir(path)
		err := os.MkdirAll(dir, mode)
		if err == nil {
			var f *os.File
			if f, err = os.CreateTemp(dir, ".join-*"); err == nil {
				err = errors.Join(f.Close(), os.Remove(f.Name()))
			}
		}
		if err != nil {
			return fmt.Errorf("%s cannot be written: %w; run this as root", path, err)
		}
	}
	return nil
}

// Write writes a membership. What fails is undone.
func (p Place) Write(m Member, at time.Time) (err error) {
	undo := []func() error{}
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	for _, path := range []string{p.CAFile, p.KeyFile, p.Record(), p.Settings} {
		back, err := remember(path)
		if err != nil {
			return err
		}
		undo = append(undo, back)
	}
	cluster := m.Cluster
	if cluster == "default" {
		cluster = "" // as a setting it must be there; otherwise it is made
	}
	values := [][2]string{
		{"ECS_CLUSTER", cluster}, {"ECS_BACKEND_HOST", m.Endpoint}, {"AWS_DEFAULT_REGION", m.Region}, {"ECS_EXTERNAL", "true"}, {"BERTH_CA_FILE", ""},
	}
	if len(m.CA) > 0 {
		if err := replace(p.CAFile, m.CA, 0o644); err != nil {
			return err
		}
		values[4][1] = p.CAFile
	}
	if err := p.writeKey(m.AccessKeyID, m.SecretAccessKey); err != nil {
		return err
	}
	if err := p.writeRecord(Record{Endpoint: m.Endpoint, KeyAt: at}); err != nil {
		return err
	}
	old, err := os.ReadFile(p.Settings)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return replace(p.Settings, []byte(set(string(old), values)), 0o600)
}

// remember returns what puts a file back as it is now.
func remember(path string) (func() error, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return func() error {
			if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	return func() error { return replace(path, b, st.Mode().Perm()) }, err
}

// set gives settings values; an empty one takes a setting away. Other lines stay.
func set(text string, values [][2]string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		given := false
		for _, v := range values {
			given = given || v[0] == name
		}
		if !given {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	for _, v := range values {
		if v[1] != "" {
			b.WriteString(v[0] + "=" + v[1] + "\n")
		}
	}
	return b.String()
}

// replace writes a file so that it has the old content or the new, also after a crash.
func replace(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
