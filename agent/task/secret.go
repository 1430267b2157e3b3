package task

import "log/slog"

// Secret is a string that must not be shown: every way of printing, logging or
// encoding it gives a redaction. Reveal is the only way out, so that its uses can
// be listed with grep.
type Secret struct{ value string }

const redacted = "[redacted]"

// NewSecret wraps a value.
func NewSecret(v string) Secret { return Secret{value: v} }

// Reveal returns the value itself.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether there is no value.
func (s Secret) IsZero() bool { return s.value == "" }

// String redacts.
func (s Secret) String() string { return redacted }

// GoString redacts for %#v.
func (s Secret) GoString() string { return redacted }

// LogValue redacts in log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText redacts in every text and JSON encoding.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
