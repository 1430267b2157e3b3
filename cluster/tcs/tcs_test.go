package tcs

import (
	"encoding/json"
	"testing"
)

// Sessions are tested with the whole cluster, in its package.

func FuzzParse(f *testing.F) {
	f.Add([]byte("Authorization: x\r\n\r\n{\"type\":\"PublishMetricsRequest\",\"message\":{}}"))
	f.Add([]byte(`{"type":"PublishHealthRequest"}`))
	f.Add([]byte("\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fr, err := parse(data)
		if err != nil {
			if len(err.Error()) > 100 {
				t.Fatalf("the error repeats the frame: %s", err)
			}
			return
		}
		if _, known := acks[fr.Type]; !known || len(fr.Message) > 0 && !json.Valid(fr.Message) {
			t.Fatalf("accepted %q", data)
		}
	})
}
