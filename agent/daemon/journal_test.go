package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
)

type entry struct {
	Message  string
	Priority journal.Priority
	Fields   map[string]string
}

func TestJournalEntriesHaveFields(t *testing.T) {
	var got []entry
	h := newJournal(slog.LevelInfo, func(message string, p journal.Priority, fields map[string]string) error {
		got = append(got, entry{message, p, fields})
		return nil
	}, nil)
	log := slog.New(h)
	log.Debug("not at this level")
	log.Info("alone")
	of := log.With("task", "0123", "containerInstance", "arn:a b")
	of.Warn("action failed", "attempt", 2, "err", errors.New("no room"))
	log.WithGroup("host").Error("group", "path.2", "/x", slog.Group("disk", "free", 1))
	of.Log(t.Context(), slog.LevelError+4, "the end")
	want := []entry{
		{"alone", journal.PriInfo, map[string]string{}},
		{`action failed task=0123 containerInstance="arn:a b" attempt=2 err="no room"`, journal.PriWarning, map[string]string{
			"BERTH_TASK": "0123", "BERTH_CONTAINER_INSTANCE": "arn:a b", "BERTH_ATTEMPT": "2", "BERTH_ERR": "no room",
		}},
		{"group host.path.2=/x host.disk.free=1", journal.PriErr, map[string]string{"BERTH_HOST_PATH_2": "/x", "BERTH_HOST_DISK_FREE": "1"}},
		{`the end task=0123 containerInstance="arn:a b"`, journal.PriCrit, map[string]string{"BERTH_TASK": "0123", "BERTH_CONTAINER_INSTANCE": "arn:a b"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("entries (-want +got):\n%s", d)
	}
}

func TestWhatTheJournalRefusesIsWritten(t *testing.T) {
	var out bytes.Buffer
	h := newJournal(slog.LevelInfo, func(string, journal.Priority, map[string]string) error { return errors.New("gone") }, &out)
	slog.New(h).Info("still said", "n", 1)
	if got := out.String(); got != "still said n=1\n" {
		t.Errorf("wrote %q", got)
	}
}
