package config

import (
	"fmt"
	"io"
	"strings"
)

const preamble = `# Settings of the agent

<!-- Made from the table in agent/config/settings.go: go test ./agent/config -update -->

A value is taken from the first of these that has it:

1. the environment of the agent;
2. ` + "`" + UserFile + "`" + `, then ` + "`" + InstanceFile + "`" + `: one ` + "`NAME=value`" + ` a line, no quotes;
3. the JSON file named by ` + "`" + jsonFileName + "`" + ` (` + "`" + JSONFile + "`" + ` without it), with the keys of the second
   column, in any case; durations are whole nanoseconds there;
4. the default.

An empty value counts as not given, and so does a boolean that is none. Any other bad value keeps the agent from
starting, and the message names all of them. Settings marked *not yet* are read and checked, but this version of the
agent does nothing with them.
`

// WriteMarkdown writes docs/settings.md.
func WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString(preamble)
	for _, section := range sections() {
		fmt.Fprintf(&b, "\n## %s\n\n| setting | JSON key | kind | default | meaning |\n|---|---|---|---|---|\n", section.Title)
		for i := range section.Settings {
			s := &section.Settings[i]
			text := s.Text
			switch k := s.Kind(); {
			case len(s.OneOf) > 0, k == "number", k == "duration" && s.Allowed() != "a duration such as 30s or 1h30m":
				text += " Allowed: " + s.Allowed() + "." + s.outside()
			}
			if !s.Acted {
				text = "*not yet* " + text
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", code(s.Name), code(s.Key), s.Kind(), code(s.Default), text)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// outside says what happens to values outside the bounds.
func (s *Setting) outside() string {
	switch b := s.bounds; {
	case b.below == raise && b.above == lower:
		return " Others are taken as the nearest of these."
	case b.below == raise:
		return " Lower values are raised to it."
	case b.below == ignore:
		return " Lower values are ignored."
	default:
		return ""
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
