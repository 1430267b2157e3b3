package runtime

import (
	"fmt"
	"strconv"
	"strings"

	"berth.dev/berth/agent/task"
)

// logLimits are what a container says of its own log; 0 stands for the agent's setting.
type logLimits struct {
	bytes int64 // of one file
	files int
}

// logLimitsOf reads the options of the log driver json-file that limit its files
// (Docker's documentation of the driver: max-size, max-file). Other options, which
// choose what else is written beside each line, have no effect.
func logLimitsOf(c *task.Container) (logLimits, error) {
	var l logLimits
	var err error
	for name, v := range c.HostConfig.LogConfig.Config {
		switch name {
		case "max-size":
			l.bytes, err = logSize(v)
		case "max-file":
			l.files, err = strconv.Atoi(v)
			if err == nil && l.files < 1 {
				err = fmt.Errorf("%q is not a positive number", v)
			}
		}
		if err != nil {
			return l, task.Failf(task.Invalid, task.CannotCreateContainer, "log option %s of container %s: %w", name, c.Name, err)
		}
	}
	return l, nil
}

// logSize reads a size such as "10m": bytes, or binary kilo-, mega- or gigabytes. -1 is
// Docker's word for no limit, which Berth does not give: the agent's setting holds.
func logSize(v string) (int64, error) {
	if v == "-1" {
		return 0, nil
	}
	shift := 0
	digits := strings.TrimSuffix(strings.ToLower(v), "b")
	for unit, bits := range map[string]int{"k": 10, "m": 20, "g": 30} {
		if d, ok := strings.CutSuffix(digits, unit); ok {
			digits, shift = d, bits
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<40>>shift {
		return 0, fmt.Errorf("%q is not a size such as 10m", v)
	}
	return n << shift, nil
}
