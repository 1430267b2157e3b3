package logs

import (
	"encoding/json"
	"strings"
	"testing"
	standard "text/template"
	"time"
)

func tagInfo() *Info {
	return &Info{
		Config: map[string]string{"labels": "team", "a-b": "c"}, ContainerID: "0123456789abcdef", ContainerName: "/web",
		ContainerEntrypoint: "/bin/app", ContainerArgs: []string{"-v", "x y"}, ContainerImageID: "sha256:feedbeef0123456789",
		ContainerImageName: "repo/web:1", ContainerCreated: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		ContainerEnv: []string{"A=1", "B=2"}, ContainerLabels: map[string]string{"team": "red", "b": "2"}, DaemonName: "berth",
	}
}

// reference is the standard library's, with Docker's functions.
func reference(text string, i *Info) (string, error) {
	t, err := standard.New("tag").Option("missingkey=zero").Funcs(standard.FuncMap{
		"json":  func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
		"split": strings.Split, "join": strings.Join, "upper": strings.ToUpper, "lower": strings.ToLower,
		"title": func(s string) string {
			if s == "" {
				return s
			}
			return strings.ToUpper(s[:1]) + s[1:]
		},
		"pad": func(s string, a, b int) string {
			if s == "" || a < 0 || b < 0 || a > maxTag || b > maxTag {
				return s
			}
			return strings.Repeat(" ", a) + s + strings.Repeat(" ", b)
		},
		"truncate": func(s string, n int) string { return s[:max(0, min(n, len(s)))] },
	}).Parse(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, i)
	return b.String(), err
}

var tags = []string{
	"", "plain", "{{.ID}}", "{{.FullID}}/{{.Name}}", "{{.ImageName}}/{{.Name}}/{{.ID}}", "{{.ImageID}}-{{.ImageFullID}}",
	"{{.Command}}", "{{.Hostname}}", "{{.DaemonName}}", "{{.Config.labels}}", "{{.Config.none}}|", `{{index .Config "a-b"}}`,
	"{{.ContainerLabels.team}}", `{{index .ContainerLabels "none"}}|`, "{{.ContainerArgs}} {{.ContainerLabels}}",
	"{{upper .Name}}", "{{.Name | upper | lower | title}}", `{{join .ContainerArgs ","}}`, `{{(split .ImageName ":") | json}}`,
	`{{index (split .ImageName ":") 1}}`, "{{pad .Name 2 1}}|", "{{truncate .Name 2}}", "{{truncate .Name 99}}",
	`{{if .ContainerLabels.team}}team {{.ContainerLabels.team}}{{else}}none{{end}}`, `{{if eq .Name "web" "x"}}yes{{end}}`,
	`{{if and .Name (not .LogPath)}}a{{else if or .LogPath .Name}}b{{end}}`, `{{with .ContainerLabels.team}}{{.}}{{end}}`,
	`{{range split .ImageName ":"}}{{.}}{{end}}`, `{{range .ContainerEnv}}<{{.}}>{{end}}`, `{{range $k, $v := .ContainerLabels}}{{$k}}={{$v}},{{end}}`,
	`{{range $i, $v := .ContainerArgs}}{{if eq $i 1}}{{break}}{{end}}{{$v}}{{end}}`, `{{range .LogPath | split ","}}x{{end}}`,
	`{{$n := .Name}}{{$n}}{{$.ID}}`, `{{$n := 1}}{{if true}}{{$n = 2}}{{end}}{{$n}}`, `{{printf "%s-%d" .Name 3}}`, `{{print 1 "a" true}}`,
	"{{/* nothing */}}x", "a {{- .Name -}} b", `{{len .ContainerArgs}}{{len .Name}}`, `{{json .ContainerLabels}}`, `{{ne 1 2}}`,
	"{{", "{{.}", "{{nothing}}", "{{.Nothing}}", "{{.Name.First}}", "{{end}}", `{{upper 1}}`, `{{index .ContainerArgs 9}}`, "{{.Name 1}}", "{{$x}}",
}

// TestTag carries out templates as the standard library does.
func TestTag(t *testing.T) {
	for _, text := range tags {
		want, wantErr := reference(text, tagInfo())
		got, err := Tag(text, tagInfo())
		if (err != nil) != (wantErr != nil) || err == nil && got != want {
			t.Errorf("%s: %q, %v; the standard library says %q, %v", text, got, err, want, wantErr)
		}
	}
	if _, err := Tag(strings.Repeat("x", maxTag+1), tagInfo()); err == nil {
		t.Error("a tag without an end was taken")
	}
}

// FuzzTag finds no template that is carried out in another way than by the standard
// library, or without an end. One that is refused here and possible there is none of
// Docker's documentation.
func FuzzTag(f *testing.F) {
	for _, text := range tags {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Tag(text, tagInfo())
		if len(got) > maxTag {
			t.Errorf("a tag of %d bytes", len(got))
		}
		if err != nil || strings.Contains(text, "print") || strings.Contains(text, "define") || strings.Contains(text, "block") {
			return
		}
		want, err := reference(text, tagInfo())
		if err != nil || got != want {
			t.Errorf("%q: %q; the standard library says %q, %v", text, got, want, err)
		}
	})
}
