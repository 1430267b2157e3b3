package secret

import (
	"strings"
	"testing"
)

func FuzzParseEnv(f *testing.F) {
	f.Add([]byte("# c\nA=1\r\nB=\n=x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		vars, err := parseEnv(data)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, kv := range vars {
			if kv.name == "" || seen[kv.name] || strings.ContainsAny(kv.name+kv.value, "\n\x00") {
				t.Errorf("%q", vars)
			}
			seen[kv.name] = true
		}
	})
}

func FuzzMemberOf(f *testing.F) {
	f.Add(`{"a":"b","n":1}`, "a")
	f.Fuzz(func(t *testing.T, text, key string) {
		if _, err := memberOf(text, key); err != nil && len(text) > 40 && strings.Contains(err.Error(), text) {
			t.Error("the error shows the secret")
		}
	})
}
