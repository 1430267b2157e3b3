package runtime

import (
	"fmt"
	"regexp"
	"strings"

	"berth.dev/berth/agent/task"
)

// explain makes the words of a failed creation or start those that a person needs: what
// the kernel refused, the field of the definition that asked for it, and the remedy. The
// names of the layers in between are of no use to the person; errors that no rule knows
// keep their words after them. The class stays, and so does the original in the chain.
func explain(err error) error {
	if err == nil || task.ClassOf(err).Retriable() || task.ClassOf(err) == task.Canceled {
		return err
	}
	text := plain(err.Error())
	code := task.ReasonOf(err, task.CannotStartContainer).Code
	for _, r := range explanations {
		if m := r.match.FindStringSubmatch(text); m != nil {
			return &task.Error{Class: task.ClassOf(err), Reason: task.Reason{Code: code, Detail: r.say(m)}, Err: err}
		}
	}
	return &task.Error{Class: task.ClassOf(err), Reason: task.Reason{Code: code, Detail: text}, Err: err}
}

// layers are what containerd, its shim, runc and crun put before what went wrong.
var layers = regexp.MustCompile(`^(failed to create shim task|failed to create task for container|OCI runtime (create|start) failed|(runc|crun)[a-z ]* failed|unable to (start|init) container process|container_linux\.go:[0-9]+|` +
	`starting container process caused|error during container init|creating container|cannot start a container process)(: |$)`)

// plain is an error's text without the layers, and without the class that containerd 1.x
// names after it.
func plain(text string) string {
	for {
		rest := layers.ReplaceAllString(text, "")
		if rest == text || rest == "" {
			break
		}
		text = rest
	}
	return strings.TrimSuffix(text, ": unknown")
}

type explanation struct {
	match *regexp.Regexp
	say   func(m []string) string
}

// said makes an explanation: the first group that matched, and what to do about it.
func said(match, remedy string) explanation {
	return explanation{regexp.MustCompile(match), func(m []string) string {
		return m[1] + ": " + remedy
	}}
}

// explanations know the words of runc 1.1 to 1.5 and of crun. The words of a command
// that cannot be run are kept, because people know and search for them.
var explanations = []explanation{
	said(`(exec: .*: executable file not found in \$PATH)`, "correct command or entryPoint, or use an image that has the program"),
	said(`(exec: .*: (?:stat .*: )?no such file or directory)`, "correct command or entryPoint, or use an image that has the program"),
	said("(executable file `.*` not found(?: in \\$PATH)?)", "correct command or entryPoint, or use an image that has the program"),
	said(`(exec: .*: (?:is a directory|permission denied))`, "name a program that the container's user may execute"),
	said("((?:open|exec|executable) `?.*`?: (?:Is a directory|Permission denied))", "name a program that the container's user may execute"),
	said(`(exec.*: [eE]xec format error)`, "the program is for another processor than this host's, or a script without its first line #!"),
	said(`((?:chdir to cwd|mkdir|open|chdir|stat) .*(?:not a directory|Not a directory|set in config\.json failed: .*|permission denied))`, "correct workingDirectory, or the permissions of the directory in the image"),
	{regexp.MustCompile(`error setting rlimit(?: type (\d+)|s).*: (.*)`), rlimitRefused},
	said("(setrlimit `.*`: .*)", "ulimits: ask for less than this host's hard limit"),
	said(`((?:write sysctl key .*|(?:open|write)[^:]* ?/proc/sys/.*|sysctl .*): .*)`, "correct systemControls: the kernel of this host does not have the setting, or refuses the value"),
	said(`((?:failed to write|write) .*cpuset.*: .*)`, "correct CpusetCpus or CpusetMems: the task may not use them"),
	said(`((?:failed to write|write|unable to set memory limit).*memory\..*: .*)`, "memory: the limit is less than what the container needs to start; raise memory"),
	said(`(.*container init was OOM-killed.*|.*OOM.*killed.*)`, "memory: the limit is too low to start the container; raise memory"),
	said(`((?:unable to apply apparmor profile|apparmor).*: .*)`, "dockerSecurityOptions: load the profile on this host, or remove the option"),
	said(`(.*(?:mknod|device).*: (?:operation not permitted|Operation not permitted))`, "devices: this host does not let the agent make the device"),
}

// rlimitRefused says which ulimit a runtime could not set.
func rlimitRefused(m []string) string {
	name := "a limit"
	for k, n := range rlimitNumbers {
		if fmt.Sprint(n) == m[1] {
			name = strings.ToLower(strings.TrimPrefix(k, "RLIMIT_"))
		}
	}
	return fmt.Sprintf("ulimits: this host does not let the agent raise %s so far (%s): ask for less", name, m[2])
}
