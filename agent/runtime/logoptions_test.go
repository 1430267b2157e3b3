package runtime

import (
	"testing"

	"berth.dev/berth/agent/task"
)

func TestLogLimits(t *testing.T) {
	for _, tt := range []struct {
		size, files string
		want        logLimits
		ok          bool
	}{
		{"", "", logLimits{}, true},
		{"10m", "3", logLimits{10 << 20, 3}, true},
		{"4096", "1", logLimits{4096, 1}, true},
		{"2KB", "", logLimits{2048, 0}, true},
		{"-1", "", logLimits{}, true},
		{"1g", "", logLimits{1 << 30, 0}, true},
		{"0", "", logLimits{}, false},
		{"m", "", logLimits{}, false},
		{"9999999g", "", logLimits{}, false},
		{"-5m", "", logLimits{}, false},
		{"", "0", logLimits{}, false},
		{"", "x", logLimits{}, false},
	} {
		c := &task.Container{Name: "c", HostConfig: task.HostConfig{LogConfig: task.LogConfig{Type: "json-file", Config: map[string]string{}}}}
		if tt.size != "" {
			c.HostConfig.LogConfig.Config["max-size"] = tt.size
		}
		if tt.files != "" {
			c.HostConfig.LogConfig.Config["max-file"] = tt.files
		}
		got, err := logLimitsOf(c)
		if (err == nil) != tt.ok || tt.ok && got != tt.want {
			t.Errorf("max-size %q, max-file %q: %+v, %v", tt.size, tt.files, got, err)
		}
		if err != nil && task.ClassOf(err) != task.Invalid {
			t.Errorf("max-size %q, max-file %q: class %q", tt.size, tt.files, task.ClassOf(err))
		}
	}
}
