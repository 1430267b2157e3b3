// Package router makes the configuration of a task's log router (FireLens): the
// container with a firelensConfiguration, Fluent Bit or Fluentd, to which the containers
// with log driver awsfirelens send their output (agent protocol, "FireLens").
//
// The configuration and the router's socket are in Dir/<task id>, config and socket.
package router

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"berth.dev/berth/agent/task"
)

// Types of log routers.
const (
	Fluentd   = "fluentd"
	FluentBit = "fluentbit"
)

// Driver is the log driver of containers that send to the router.
const Driver = "awsfirelens"

// Options of log drivers and routers that are not for the router's outputs.
const (
	includePattern = "include-pattern"
	excludePattern = "exclude-pattern"
	bufferLimit    = "log-driver-buffer-limit"
	logMetadata    = "enable-ecs-log-metadata"
	fileType       = "config-file-type"
	fileValue      = "config-file-value"
)

// defaultBuffer is the Mem_Buf_Limit, in megabytes, of a router without a memory limit.
const defaultBuffer = 25

// socketInside is the router's socket as the router sees it.
const socketInside = "/var/run/fluent.sock"

// ConfigPath is where a router of a type reads its configuration.
func ConfigPath(kind string) string {
	if kind == Fluentd {
		return "/fluentd/etc/fluent.conf"
	}
	return "/fluent-bit/etc/fluent-bit.conf"
}

// ExternalPath is where it finds the user's own part, if that comes from S3.
func ExternalPath(kind string) string {
	if kind == Fluentd {
		return "/fluentd/etc/external.conf"
	}
	return "/fluent-bit/etc/external.conf"
}

// section is one part of a configuration: a block of settings, perhaps with one block
// inside, or an include.
type section struct {
	fluentd, fluentbit string // opening words: "filter x**" and "FILTER"
	pairs              [][2]string
	inner              string
	innerPairs         [][2]string
}

// Config is the text of the configuration of a task's router. cluster is the name that
// log records carry. An error names the option at fault.
func Config(t *task.Task, cluster string) (string, error) {
	r := t.LogRouter()
	if r == nil {
		return "", fmt.Errorf("task %s has no log router", t.ID())
	}
	kind := r.Router.Type
	var b strings.Builder
	parts := inputs(t, r)
	filters, outputs, err := routes(t, kind)
	if err != nil {
		return "", err
	}
	parts = append(parts, filters...)
	if v := r.Router.Options[logMetadata]; v == "" || v == "true" {
		parts = append(parts, metadata(t, r, cluster))
	}
	for _, p := range parts {
		p.write(&b, kind)
	}
	if err := include(&b, r.Router); err != nil {
		return "", err
	}
	if kind == FluentBit && networked(t) {
		section{fluentbit: "OUTPUT", pairs: [][2]string{{"Name", "null"}, {"Match", "firelens-healthcheck"}}}.write(&b, kind)
	}
	for _, p := range outputs {
		p.write(&b, kind)
	}
	return b.String(), nil
}

// networked reports whether other containers reach the router by a network of the task.
func networked(t *task.Task) bool {
	return t.NetworkMode == task.NetworkBridge || t.NetworkMode == task.NetworkAWSVPC
}

func inputs(t *task.Task, r *task.Container) []section {
	out := []section{{
		fluentd: "source", fluentbit: "INPUT",
		pairs: [][2]string{{"@type", "unix"}, {"path", socketInside}},
	}}
	if r.Router.Type == FluentBit {
		n := r.HostConfig.MemoryReservation >> 20 / 2
		if n == 0 {
			n = r.Memory / 2
		}
		out[0].pairs = [][2]string{{"Name", "forward"}, {"unix_path", socketInside}, {"Mem_Buf_Limit", strconv.FormatInt(cmp.Or(n, defaultBuffer), 10) + "MB"}}
	}
	if !networked(t) {
		return out
	}
	listen := "0.0.0.0"
	if t.NetworkMode == task.NetworkAWSVPC {
		listen = "127.0.0.1"
	}
	if r.Router.Type == Fluentd {
		return append(out, section{fluentd: "source", pairs: [][2]string{{"@type", "forward"}, {"bind", listen}, {"port", "24224"}}})
	}
	return append(out,
		section{fluentbit: "INPUT", pairs: [][2]string{{"Name", "forward"}, {"Listen", listen}, {"Port", "24224"}}},
		section{fluentbit: "INPUT", pairs: [][2]string{{"Name", "tcp"}, {"Tag", "firelens-healthcheck"}, {"Listen", "127.0.0.1"}, {"Port", "8877"}}})
}

// routes are the filters and outputs that the containers' log options ask for.
func routes(t *task.Task, kind string) (filters, outputs []section, err error) {
	var excludes []section
	for i := range t.Containers {
		c := &t.Containers[i]
		if c.HostConfig.LogConfig.Type != Driver {
			continue
		}
		o := maps.Clone(c.HostConfig.LogConfig.Config)
		for _, name := range slices.Sorted(maps.Keys(o)) {
			if strings.ContainsAny(name+o[name], "\r\n\x00") || strings.ContainsAny(name, " \t") || name == "" {
				return nil, nil, fmt.Errorf("container %s: log option %q: neither name nor value may have line breaks in it", c.Name, name)
			}
		}
		match := c.Name + "-firelens*"
		if kind == Fluentd {
			match += "*"
		}
		grep := func(pattern, how string) section {
			if kind == Fluentd {
				return section{
					fluentd: "filter " + match, pairs: [][2]string{{"@type", "grep"}},
					inner: map[string]string{"Regex": "regexp", "Exclude": "exclude"}[how], innerPairs: [][2]string{{"key", "log"}, {"pattern", pattern}},
				}
			}
			return section{fluentbit: "FILTER", pairs: [][2]string{{"Name", "grep"}, {"Match", match}, {how, "log " + pattern}}}
		}
		if v := o[includePattern]; v != "" {
			filters = append(filters, grep(v, "Regex"))
		}
		if v := o[excludePattern]; v != "" {
			excludes = append(excludes, grep(v, "Exclude"))
		}
		out, err := output(c, i, kind, match, o)
		if err != nil {
			return nil, nil, err
		}
		outputs = append(outputs, out...)
	}
	return append(filters, excludes...), outputs, nil
}

// output is the output of one container; one without options has none.
func output(c *task.Container, index int, kind, match string, o map[string]string) ([]section, error) {
	for _, name := range []string{includePattern, excludePattern, bufferLimit, "mode", "max-buffer-size"} {
		delete(o, name)
	}
	for _, ref := range c.Secrets {
		if ref.Use == task.UseLogRouter {
			o[ref.Name] = SecretReference(kind, ref.Name, index)
		}
	}
	if len(o) == 0 {
		return nil, nil
	}
	key := "Name"
	if kind == Fluentd {
		key = "@type"
	}
	if o[key] == "" {
		return nil, fmt.Errorf("container %s: missing output key %s which is required for firelens configuration of type %s", c.Name, key, kind)
	}
	s := section{fluentd: "match " + match, fluentbit: "OUTPUT", pairs: [][2]string{{key, o[key]}}}
	if kind == FluentBit {
		s.pairs = append(s.pairs, [2]string{"Match", match})
	}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		if name != key {
			s.pairs = append(s.pairs, [2]string{name, o[name]})
		}
	}
	return []section{s}, nil
}

// SecretVariable is the router's variable with the value of a secret log option of the
// container with that index.
func SecretVariable(name string, index int) string { return name + "_" + strconv.Itoa(index) }

// SecretReference is how a configuration refers to it.
func SecretReference(kind, name string, index int) string {
	if kind == Fluentd {
		return `"#{ENV['` + SecretVariable(name, index) + `']}"`
	}
	return "${" + SecretVariable(name, index) + "}"
}

// metadata adds to each record whose it is.
func metadata(t *task.Task, r *task.Container, cluster string) section {
	fields := [][2]string{{"ecs_cluster", cluster}, {"ecs_task_arn", t.ARN}, {"ecs_task_definition", t.Family + ":" + t.Version}}
	if r.Router.Type == Fluentd {
		return section{fluentd: "filter **", pairs: [][2]string{{"@type", "record_transformer"}}, inner: "record", innerPairs: fields}
	}
	s := section{fluentbit: "FILTER", pairs: [][2]string{{"Name", "record_modifier"}, {"Match", "*"}}}
	for _, f := range fields {
		s.pairs = append(s.pairs, [2]string{"Record", f[0] + " " + f[1]})
	}
	return s
}

// include names the user's own part of the configuration.
func include(b *strings.Builder, r *task.LogRouter) error {
	path := ""
	switch v := r.Options[fileValue]; r.Options[fileType] {
	case "":
		return nil
	case "file":
		path = v
	case "s3":
		path = ExternalPath(r.Type)
	default:
		return fmt.Errorf("firelensConfiguration: option %s must be s3 or file", fileType)
	}
	if r.Options[fileValue] == "" || strings.ContainsAny(path, "\r\n\x00") {
		return fmt.Errorf("firelensConfiguration: option %s is missing or not a path", fileValue)
	}
	word := "@INCLUDE"
	if r.Type == Fluentd {
		word = "@include"
	}
	b.WriteString(word + " " + path + "\n\n")
	return nil
}

// write writes a section in the language of the router.
func (s section) write(b *strings.Builder, kind string) {
	line := func(indent, k, v string) { b.WriteString(indent + k + " " + v + "\n") }
	if kind == FluentBit {
		b.WriteString("[" + s.fluentbit + "]\n")
		for _, p := range s.pairs {
			line("    ", p[0], p[1])
		}
		b.WriteString("\n")
		return
	}
	word, _, _ := strings.Cut(s.fluentd, " ")
	b.WriteString("<" + s.fluentd + ">\n")
	for _, p := range s.pairs {
		line("  ", p[0], p[1])
	}
	if s.inner != "" {
		b.WriteString("  <" + s.inner + ">\n")
		for _, p := range s.innerPairs {
			line("    ", p[0], p[1])
		}
		b.WriteString("  </" + s.inner + ">\n")
	}
	b.WriteString("</" + word + ">\n\n")
}
