package secret

import (
	"bytes"
	"strings"
)

// pair is one variable of an environment file.
type pair struct{ name, value string }

// parseEnv reads an environment file: lines KEY=VALUE, cut at the first "=". Lines that
// begin with "#", have no "=" or no key are passed over; nothing is trimmed and quotes
// mean nothing (agent protocol, "Environment files"). Of a key that comes twice the last
// value counts.
func parseEnv(data []byte) ([]pair, error) {
	var out []pair
	at := map[string]int{}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // what some editors put first
	for line := range bytes.Lines(data) {
		s := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || strings.HasPrefix(s, "#") {
			continue
		}
		if err := variable(name, value); err != nil {
			return nil, err
		}
		if i, twice := at[name]; twice {
			out[i].value = value
			continue
		}
		at[name] = len(out)
		out = append(out, pair{name, value})
	}
	return out, nil
}
