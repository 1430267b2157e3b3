package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Where settings come from unless Sources says otherwise (agent protocol,
// "Configuration" and "The agent's container").
const (
	UserFile     = "/etc/ecs/ecs.config"
	InstanceFile = "/var/lib/ecs/ecs.config"
	JSONFile     = "/etc/ecs_container_agent/config.json"
	jsonFileName = "ECS_AGENT_CONFIG_FILE_PATH"

	fromDefault     = "default"
	fromEnvironment = "environment"
	maxFile         = 1 << 20 // bytes of one configuration file
)

// Sources says where settings are read from. What comes earlier here wins: the
// environment, the environment files in their order, the JSON file.
type Sources struct {
	Environ  []string // as os.Environ gives it
	EnvFiles []string // nil means UserFile, then InstanceFile
	JSONFile string   // where ECS_AGENT_CONFIG_FILE_PATH is not set; empty means JSONFile
	// UserData is that of an EC2 instance. If it is JSON, the settings in its member
	// ECSAgentConfiguration come last of all.
	UserData []byte
}

// loader is the state of one Load.
type loader struct {
	settings []Setting
	byName   map[string]*Setting
	config   *Config
	errs     []error
}

// Load reads the settings. Its error names every bad value: the setting, where it was
// found, the value and what is allowed. Files that are not there are no error.
func Load(src Sources) (*Config, error) {
	l := &loader{byName: map[string]*Setting{}, config: &Config{origin: map[string]string{}}}
	for _, section := range sections() {
		l.settings = append(l.settings, section.Settings...)
	}
	for i := range l.settings {
		s := &l.settings[i]
		if s.Name != "" {
			l.byName[s.Name] = s
		}
		if s.Default != "" {
			l.take(s, s.Default, fromDefault)
		}
		l.config.origin[s.id()] = fromDefault
	}
	files := src.EnvFiles
	if files == nil {
		files = []string{UserFile, InstanceFile}
	}
	layers := []layer{{from: fromEnvironment, values: parseEnviron(src.Environ)}}
	for _, path := range files {
		layers = append(layers, layer{from: path, values: l.envFile(path)})
	}
	l.userData(src.UserData)
	l.jsonFile(jsonPath(layers, src.JSONFile))
	for _, y := range slices.Backward(layers) {
		l.apply(y)
	}
	l.external()
	if err := errors.Join(l.errs...); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return l.config, nil
}

// external applies what follows from ECS_EXTERNAL (agent protocol, "ECS Anywhere").
func (l *loader) external() {
	c := l.config
	if !c.Cluster.External {
		return
	}
	if c.Cluster.Region == "" {
		l.errs = append(l.errs, errors.New("AWS_DEFAULT_REGION is not set; with ECS_EXTERNAL=true nobody else can tell the region"))
	}
	c.Cluster.NoIID = true
	c.Network.TaskENI = false
}

// layer is one source of settings in the form NAME=value.
type layer struct {
	from   string
	values []pair
}

type pair struct{ name, value string }

func parseEnviron(environ []string) []pair {
	var out []pair
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok {
			out = append(out, pair{name, value})
		}
	}
	return out
}

// ParseEnvFile reads an environment file: one NAME=value a line, split at the first
// "=", the line trimmed; quotes mean nothing; lines without "=" are skipped (agent
// protocol, "The agent's container"). A line that begins with "#" is a comment.
func ParseEnvFile(text []byte) []string {
	var out []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || !strings.Contains(line, "=") {
			continue
		}
		out = append(out, line)
	}
	return out
}

func (l *loader) envFile(path string) []pair {
	text, err := readFile(path)
	if err != nil {
		l.errs = append(l.errs, err)
		return nil
	}
	return parseEnviron(ParseEnvFile(text))
}

// readFile reads a small file; one that is not there is empty.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, maxFile)
	}
	return text, nil
}

func jsonPath(layers []layer, fallback string) string {
	for _, y := range layers {
		for _, p := range y.values {
			if p.name == jsonFileName && p.value != "" {
				return p.value
			}
		}
	}
	if fallback != "" {
		return fallback
	}
	return JSONFile
}

// apply takes the values of a layer. An empty value counts as not given, and of a
// name that is given twice the last value counts.
func (l *loader) apply(y layer) {
	for _, p := range y.values {
		s := l.byName[p.name]
		switch {
		case s != nil && p.value != "":
			l.take(s, p.value, y.from)
		case s == nil && slices.Contains(initNames(), p.name):
			l.warn("%s (%s) concerns the reference agent's own container and has no effect", p.name, y.from)
		case s == nil && p.name != jsonFileName && (strings.HasPrefix(p.name, "ECS_") || strings.HasPrefix(p.name, "BERTH_")):
			l.warn("%s (%s) is not a setting and is ignored", p.name, y.from)
		}
	}
}

// initNames are settings of the program that runs the reference agent in a container
// (agent protocol, "The agent's container" and "Firewall rules").
func initNames() []string {
	return []string{
		"ECS_AGENT_APPARMOR_PROFILE", "ECS_AGENT_LABELS", "ECS_AGENT_PID_NAMESPACE_HOST", "ECS_AGENT_RUN_PRIVILEGED",
		"ECS_ALLOW_OFFHOST_INTROSPECTION_ACCESS", "ECS_INIT_DOCKER_LOG_FILE_NUM", "ECS_INIT_DOCKER_LOG_FILE_SIZE",
		"ECS_LOG_OPTS", "ECS_SKIP_LOCALHOST_TRAFFIC_FILTER",
	}
}

func (l *loader) warn(format string, args ...any) {
	l.config.Warnings = append(l.config.Warnings, fmt.Sprintf(format, args...))
}

// take assigns one value and keeps book of where it came from.
func (l *loader) take(s *Setting, value, from string) {
	warning, err := s.assign(l.config, value)
	var ignored errIgnored
	switch {
	case errors.As(err, &ignored):
		l.warn("%s (%s): %s %s", s.id(), from, s.shown(value), ignored.why)
		return
	case err != nil:
		l.errs = append(l.errs, &ValueError{
			Setting: s.id(), From: from, Value: s.shown(value), Fault: err.Error(), Allowed: s.Allowed(),
		})
		return
	case warning != "":
		l.warn("%s (%s): %s %s", s.id(), from, s.shown(value), warning)
	}
	l.config.origin[s.id()] = from
}

// shown is a value as it may be shown.
func (s *Setting) shown(value string) string {
	const most = 64
	switch {
	case s.secret():
		return "(not shown)"
	case len(value) > most:
		return strconv.Quote(value[:most]) + "..."
	default:
		return strconv.Quote(value)
	}
}

// ValueError is one bad value.
type ValueError struct {
	Setting string
	From    string // environment, or the path of a file
	Value   string // quoted; hidden for secrets
	Fault   string
	Allowed string // what would be right
}

// Error is one line with the remedy.
func (e *ValueError) Error() string {
	text := fmt.Sprintf("%s (%s): %s: %s", e.Setting, e.From, e.Value, e.Fault)
	if e.Allowed != "" {
		text += "; allowed: " + e.Allowed
	}
	return text
}

// jsonFile takes the values of the JSON file. null counts as not given.
func (l *loader) jsonFile(path string) {
	text, err := readFile(path)
	if err != nil {
		l.errs = append(l.errs, err)
		return
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		l.errs = append(l.errs, fmt.Errorf("%s is not a JSON object of settings", path))
		return
	}
	l.jsonMembers(members, path)
}

// userData takes the settings of user data. Such data are often something else.
func (l *loader) userData(text []byte) {
	var data struct {
		ECSAgentConfiguration map[string]json.RawMessage
	}
	if len(text) <= maxFile && json.Unmarshal(text, &data) == nil {
		l.jsonMembers(data.ECSAgentConfiguration, "user data")
	}
}

// jsonMembers takes the members of a JSON object of settings.
func (l *loader) jsonMembers(members map[string]json.RawMessage, path string) {
	byKey := make(map[string]json.RawMessage, len(members))
	names := make(map[string]string, len(members))
	for name, raw := range members {
		byKey[strings.ToLower(name)] = raw
		names[strings.ToLower(name)] = name
	}
	for i := range l.settings {
		s := &l.settings[i]
		raw, ok := byKey[strings.ToLower(s.Key)]
		if s.Key == "" || !ok {
			continue
		}
		delete(names, strings.ToLower(s.Key))
		if value := s.fromJSON(raw); value != "" {
			l.take(s, value, path)
		}
	}
	unknown := make([]string, 0, len(names))
	for _, name := range names {
		unknown = append(unknown, name)
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		l.warn("%q (%s) is not a setting and is ignored", name, path)
	}
}

// fromJSON turns a JSON value into the form that the environment has: durations are
// whole nanoseconds, a choice may be its position, everything else is its own text.
func (s *Setting) fromJSON(raw json.RawMessage) string {
	text := string(bytes.TrimSpace(raw))
	if text == "null" {
		return ""
	}
	var quoted string
	if json.Unmarshal(raw, &quoted) == nil {
		return quoted
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return text
	}
	if s.Kind() == "duration" {
		return time.Duration(n).String()
	}
	if n >= 0 && n < int64(len(s.OneOf)) {
		return s.OneOf[n]
	}
	return text
}
