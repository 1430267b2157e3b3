package acs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// examples are the frames of the protocol reference, "Worked examples" and "Seen on
// the wire", and one of every other type.
func examples(t testing.TB) [][]byte {
	t.Helper()
	raw, err := os.ReadFile("testdata/frames.txt")
	if err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	for line := range bytes.Lines(raw) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			frames = append(frames, line)
		}
	}
	return frames
}

func sameMessage(a, b Message) string { return cmp.Diff(a, b, cmpopts.EquateEmpty()) }

func TestExamplesRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for _, frame := range examples(t) {
		m, err := Decode(frame)
		if err != nil {
			t.Fatalf("decode %.80s: %v", frame, err)
		}
		seen[m.TypeName()] = true
		again, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		if d := sameMessage(m, m2); d != "" {
			t.Errorf("%s changed (-first +second):\n%s", m.TypeName(), d)
		}
		// Nothing that the reference sends may be lost: every member of the example that
		// is not a zero value must be in what we encode.
		var want, got any
		if json.Unmarshal(frame, &want) != nil || json.Unmarshal(again, &got) != nil {
			t.Fatal("not JSON")
		}
		if d := cmp.Diff(withoutZeros(want), withoutZeros(got)); d != "" {
			t.Errorf("%s lost members (-reference +ours):\n%s", m.TypeName(), d)
		}
	}
	if len(seen) != 23 {
		t.Errorf("%d message types have an example, want 23: %v", len(seen), seen)
	}
}

// withoutZeros removes members that an encoder may leave out.
func withoutZeros(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			e = withoutZeros(e)
			if e == nil || e == false || e == "" || e == 0.0 || k == "host" {
				continue
			}
			if l, ok := e.([]any); ok && len(l) == 0 && k != "entryPoint" {
				continue
			}
			out[k] = e
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = withoutZeros(v[i])
		}
		return out
	default:
		return v
	}
}

func TestDecodePayload(t *testing.T) {
	m, err := Decode(examples(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	p, ok := m.(*PayloadMessage)
	if !ok {
		t.Fatalf("got %T", m)
	}
	task := p.Tasks[0]
	c := task.Containers[0]
	if p.SeqNum != 17 || task.CPU != 0.5 || task.RoleCredentials.SecretAccessKey != "s" ||
		c.PortMappings[0].ContainerPort != 8080 || c.EntryPoint != nil || !strings.Contains(c.DockerConfig.HostConfig, "NET_RAW") {
		t.Errorf("payload was not understood: %s", p.LogValue())
	}
}

func TestEntryPointKeepsEmptyAndAbsentApart(t *testing.T) {
	for text, want := range map[string]string{`{"entryPoint":[]}`: "empty", `{}`: "absent", `{"entryPoint":null}`: "absent"} {
		var c Container
		if err := DecodeText(text, &c); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		got := "absent"
		if strings.Contains(string(again), `"entryPoint":[]`) {
			got = "empty"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	deep := `{"type":"PayloadMessage","message":{"tasks":` + strings.Repeat("[", 1_000_000) + `}}`
	for name, frame := range map[string]string{
		"empty":                "",
		"not an object":        `[]`,
		"text":                 `hello`,
		"no type":              `{"message":{}}`,
		"no message":           `{"type":"AckRequest"}`,
		"null message":         `{"type":"AckRequest","message":null}`,
		"trailing data":        `{"type":"AckRequest","message":{}} {}`,
		"trailing bracket":     `{"type":"AckRequest","message":{}}}`,
		"wrong kind":           `{"type":"AckRequest","message":{"messageId":1}}`,
		"kind of list":         `{"type":"PayloadMessage","message":{"tasks":{}}}`,
		"null task":            `{"type":"PayloadMessage","message":{"tasks":[null]}}`,
		"doubled member":       `{"type":"PayloadMessage","message":{"tasks":[{"arn":"a"}],"tasks":[{"arn":"b"}]}}`,
		"doubled by escape":    `{"type":"AckRequest","message":{"messageId":"a","message\u0049d":"b"}}`,
		"invalid UTF-8":        "{\"type\":\"AckRequest\",\"message\":{\"messageId\":\"\xff\"}}",
		"fraction for integer": `{"type":"PayloadMessage","message":{"seqNum":1.5}}`,
		"number too large":     `{"type":"PayloadMessage","message":{"seqNum":99999999999999999999}}`,
		"deep":                 deep,
		"many tasks":           `{"type":"PayloadMessage","message":{"tasks":[` + strings.Repeat("{},", 99_999) + `{}]}}`,
		"many numbers":         `{"type":"PayloadMessage","message":{"tasks":[` + strings.Repeat("1,", 99_999) + `1]}}`,
		"long string":          `{"type":"AckRequest","message":{"messageId":"` + strings.Repeat("x", MaxString) + `"}}`,
		"frame over the limit": `{"type":"AckRequest","message":{}}` + strings.Repeat(" ", MaxFrame),
		"open string":          `{"type":"AckRequest`,
		"two short exceptions": `{"ServerException":"a","BadRequestException":"b"}`,
		"unknown exception":    `{"MadeUpException":"a"}`,
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Decode([]byte(frame))
			if err == nil {
				t.Fatalf("decoded to %T", m)
			}
			if len(err.Error()) > 160 {
				t.Errorf("error text of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestDecodeBoundsMemory(t *testing.T) {
	frame := []byte(`{"type":"PayloadMessage","message":{"tasks":[` + strings.Repeat(`{"containers":[{}]},`, MaxElements/2) + `{}]}}`)
	used := testing.AllocsPerRun(1, func() {
		if _, err := Decode(frame); err == nil {
			t.Error("frame over the element limit was taken")
		}
	})
	if used > 100 {
		t.Errorf("refusing a frame made %v allocations; it must be refused before anything is built", used)
	}
}

func TestErrorsHoldNoPayload(t *testing.T) {
	secret := strings.Repeat("TOPSECRET", 20)
	for _, frame := range []string{
		`{"type":"` + secret + `","message":{}}`,
		`{"type":"AckRequest","message":{"messageId":{"` + secret + `":1}}}`,
		`{"type":"AckRequest","message":{"messageId":1234567890123456789012345678901234567890}}`,
		`{"type":"AckRequest","message":` + secret + `}`,
		`{"` + secret + `":"` + secret + `"}`,
	} {
		_, err := Decode([]byte(frame))
		if err == nil {
			t.Fatalf("decoded %.60s", frame)
		}
		if n := longestCommon(err.Error(), frame); n > 32 {
			t.Errorf("error text %q holds %d bytes of the frame", err, n)
		}
	}
}

func TestUnknownType(t *testing.T) {
	_, err := Decode([]byte(`{"type":"NewMessage","message":{"a":1}}`))
	unknown, ok := errors.AsType[*UnknownTypeError](err)
	if !ok || unknown.Type != "NewMessage" {
		t.Errorf("got %v", err)
	}
}

func TestShortException(t *testing.T) {
	m, err := Decode([]byte(`{"InactiveInstanceException":"instance is gone"}`))
	if err != nil {
		t.Fatal(err)
	}
	e, ok := m.(error)
	if !ok || e.Error() != "InactiveInstanceException: instance is gone" {
		t.Errorf("got %T %v", m, m)
	}
}

func TestEncodeRefusesLargeFrame(t *testing.T) {
	if _, err := Encode(&CloseMessage{Message: strings.Repeat("x", MaxFrame)}); err == nil {
		t.Error("encoded")
	}
	if _, err := Encode(nil); err == nil {
		t.Error("encoded nothing")
	}
}

func TestCredentialsAreRedacted(t *testing.T) {
	c := IAMRoleCredentials{CredentialsID: "c-1", AccessKeyID: "AKCANARY", SecretAccessKey: "SKCANARY", SessionToken: "STCANARY"}
	task := Task{ARN: "arn", RoleCredentials: &c, ExecutionRoleCredentials: &c}
	payload := &PayloadMessage{MessageID: "m", Tasks: []Task{task}}
	message := &IAMRoleCredentialsMessage{RoleCredentials: &c}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&out, verb, c)
		fmt.Fprintf(&out, verb, &c)
		fmt.Fprintf(&out, verb, struct{ C IAMRoleCredentials }{c})
	}
	for _, h := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(h).Info("x", "c", c, "p", &c, "task", task, "payload", payload, "message", message)
	}
	if strings.Contains(out.String(), "CANARY") {
		t.Errorf("credentials were printed:\n%s", out.String())
	}
	frame, err := Encode(message)
	if err != nil || strings.Count(string(frame), "CANARY") != 3 {
		t.Errorf("credentials are not on the wire: %s %v", frame, err)
	}
}

func FuzzACSDecode(f *testing.F) {
	for _, frame := range examples(f) {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, err := Decode(frame)
		if err != nil {
			if len(err.Error()) > 400 {
				t.Fatalf("error text of %d bytes", len(err.Error()))
			}
			return
		}
		again, err := Encode(m)
		if err != nil {
			t.Skip("escapes made it larger than a frame")
		}
		m2, err := Decode(again)
		if err != nil {
			t.Fatalf("our own encoding is refused: %v", err)
		}
		if d := sameMessage(m, m2); d != "" {
			t.Fatal(d)
		}
	})
}

func BenchmarkDecode100Tasks(b *testing.B) {
	m, err := Decode(examples(b)[0])
	if err != nil {
		b.Fatal(err)
	}
	p := m.(*PayloadMessage)
	for len(p.Tasks) < 100 {
		p.Tasks = append(p.Tasks, p.Tasks[0])
	}
	frame, err := Encode(p)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		if _, err := Decode(frame); err != nil {
			b.Fatal(err)
		}
	}
}

// longestCommon is the length of the longest string that a and b share.
func longestCommon(a, b string) int {
	longest := 0
	for i := range a {
		for n := longest + 1; i+n <= len(a) && strings.Contains(b, a[i:i+n]); n++ {
			longest = n
		}
	}
	return longest
}
