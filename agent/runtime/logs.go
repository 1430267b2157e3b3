package runtime

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/task"
)

// logPlan decides what becomes of a container's output.
func (c *Client) logPlan(p *planned, k *task.Container) (*logs.Plan, error) {
	about := logs.About{
		Dir: c.logDir(p.t.ID(), p.name), ID: p.h.ID, Image: k.Image, ImageID: p.image.Digest, Command: k.Command,
	}
	for _, ref := range k.Secrets {
		if ref.Use == task.UseLogOption {
			about.Secrets = append(about.Secrets, ref.Name)
		}
	}
	if len(about.Command) == 0 {
		about.Command = p.image.config.Cmd
	}
	plan, err := c.cfg.Logs.Plan(p.t, k, about)
	if err != nil {
		return nil, task.Failf(task.Invalid, task.CannotCreateContainer, "container %s: %w", k.Name, err)
	}
	return plan, nil
}

// prepareLog makes the container's log directory and says there where the log goes.
func (c *Client) prepareLog(p *planned) error {
	dir := c.logDir(p.t.ID(), p.name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	file := filepath.Join(dir, logs.StreamFile)
	if p.log.Stream == nil {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	st := *p.log.Stream
	st.Created = time.Now().UTC()
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	next := file + ".new"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, file)
}

// logURI starts the container's logger.
func (c *Client) logURI(p *planned) string {
	u := url.URL{Scheme: "binary", Path: c.cfg.LoggerPath, RawQuery: p.log.Args.Encode()}
	return u.String()
}
