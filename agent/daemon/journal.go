package daemon

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalHandler sends entries to journald: the text with its attributes as MESSAGE, the
// level as PRIORITY, and every attribute as a field BERTH_NAME, so that
// "journalctl BERTH_TASK=…" finds all about one task.
type journalHandler struct {
	level slog.Leveler
	send  func(message string, p journal.Priority, fields map[string]string) error
	shared
	text   slog.Handler // renders an entry into buf
	prefix string       // of the fields: names of groups
	fields map[string]string
}

// shared is what handlers that come from one another have in common.
type shared struct {
	mu       *sync.Mutex
	buf      *bytes.Buffer
	fallback io.Writer // what journald does not take goes here
}

func newJournal(level slog.Leveler, send func(string, journal.Priority, map[string]string) error, fallback io.Writer) *journalHandler {
	buf := new(bytes.Buffer)
	// journald has the time and the priority as fields of its own.
	strip := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{}
		}
		return a
	}
	return &journalHandler{
		level: level, send: send, shared: shared{mu: new(sync.Mutex), buf: buf, fallback: fallback},
		text: slog.NewTextHandler(buf, &slog.HandlerOptions{Level: level, ReplaceAttr: strip}),
	}
}

// Enabled reports whether entries of this level are sent.
func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle sends one entry. What journald does not take is written as text.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	fields := make(map[string]string, len(h.fields)+r.NumAttrs()+1)
	for name, value := range h.fields {
		fields[name] = value
	}
	r.Attrs(func(a slog.Attr) bool {
		addField(fields, h.prefix, a)
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	message := strings.TrimSpace(r.Message + " " + strings.TrimSpace(h.buf.String()))
	if err := h.send(message, priority(r.Level), fields); err != nil {
		_, err = io.WriteString(h.fallback, message+"\n")
		return err
	}
	return nil
}

// WithAttrs returns a handler whose entries have these attributes as well.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *h
	more.text = h.text.WithAttrs(attrs)
	more.fields = make(map[string]string, len(h.fields)+len(attrs))
	for name, value := range h.fields {
		more.fields[name] = value
	}
	for _, a := range attrs {
		addField(more.fields, h.prefix, a)
	}
	return &more
}

// WithGroup returns a handler whose attributes are of this group.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	more := *h
	more.text = h.text.WithGroup(name)
	more.prefix = h.prefix + fieldName(name) + "_"
	return &more
}

// addField adds an attribute, or those of a group, as fields.
func addField(fields map[string]string, prefix string, a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += fieldName(a.Key) + "_"
		}
		for _, member := range value.Group() {
			addField(fields, prefix, member)
		}
		return
	}
	if a.Key != "" {
		const longest = 64 // bytes of a field's name (systemd.journal-fields(7))
		name := "BERTH_" + prefix + fieldName(a.Key)
		fields[name[:min(len(name), longest)]] = value.String()
	}
}

// fieldName turns containerInstance into CONTAINER_INSTANCE; journald takes capital
// letters, digits and underscores only (systemd.journal-fields(7)).
func fieldName(key string) string {
	var b strings.Builder
	lower := false
	for _, c := range []byte(key) {
		switch {
		case c >= 'a' && c <= 'z':
			b.WriteByte(c - 'a' + 'A')
		case c >= 'A' && c <= 'Z':
			if lower {
				b.WriteByte('_')
			}
			b.WriteByte(c)
		case c >= '0' && c <= '9':
			b.WriteByte(c)
		default:
			b.WriteByte('_')
		}
		lower = c >= 'a' && c <= 'z'
	}
	return b.String()
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError+4:
		return journal.PriCrit
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
