package runtime

import (
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"":                               0,
		"3":                              3 * time.Second,
		"0":                              0,
		"-5":                             0,
		"600":                            maxRetryAfter,
		"99999999999999999999":           0,
		"soon":                           0,
		"Mon, 23 Nov 2026 12:00:07 GMT":  7 * time.Second,
		"Mon, 23 Nov 2026 11:59:00 GMT":  0,
		"Mon, 23 Nov 2026 13:00:00 GMT":  maxRetryAfter,
		"Monday, 23-Nov-26 12:00:02 GMT": 2 * time.Second,
		"Mon Nov 23 12:00:04 2026":       4 * time.Second,
	} {
		if got := retryAfter(v, now); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}
