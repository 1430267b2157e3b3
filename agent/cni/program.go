package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// maxOutput bounds what is kept of what a plugin prints, in bytes.
	maxOutput = 1 << 20
	// maxText bounds what of it gets into an error.
	maxText = 512
	// pipeWait is how long output may stay open after its plugin has ended.
	pipeWait = time.Second
)

// program executes plugins. It implements invoke.Exec.
type program struct {
	version.PluginDecoder
	lock *os.File // inherited by the plugin
}

// FindInPath implements invoke.Exec.
func (p *program) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("CNI plugin %q is in none of %s: install it there, or name its directory in ECS_CNI_PLUGINS_PATH", plugin, strings.Join(dirs, ", "))
	}
	return path, nil
}

// ExecPlugin implements invoke.Exec. With ctx everything that the plugin has started ends.
func (p *program) ExecPlugin(ctx context.Context, path string, conf []byte, environ []string) ([]byte, error) {
	// The kernel ends the plugin with the thread that started it, which must be the agent's
	// to the end, therefore.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = onlyCNI(environ)
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(conf)
	stdout, stderr := &limited{max: maxOutput}, &limited{max: maxText}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{p.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeWait
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("CNI plugin %s was ended: %w", path, ctx.Err())
	case stdout.cut:
		return nil, fmt.Errorf("CNI plugin %s printed more than %d bytes", path, maxOutput)
	case err == nil:
		return stdout.kept.Bytes(), nil
	}
	e := &types.Error{}
	if json.Unmarshal(stdout.kept.Bytes(), e) == nil && e.Msg != "" {
		return nil, e
	}
	text := strings.TrimSpace(stderr.kept.String() + " " + clip(stdout.kept.String()))
	return nil, fmt.Errorf("CNI plugin %s: %w: %s", path, err, text)
}

// onlyCNI leaves of an environment what plugins are to know.
func onlyCNI(environ []string) []string {
	var out []string
	for _, v := range environ {
		if strings.HasPrefix(v, "CNI_") || strings.HasPrefix(v, "PATH=") {
			out = append(out, v)
		}
	}
	return out
}

func clip(s string) string { return s[:min(len(s), maxText)] }

// limited keeps the first bytes of what is written to it.
type limited struct {
	kept bytes.Buffer // not embedded: its ReadFrom would take everything
	max  int
	cut  bool
}

func (l *limited) Write(b []byte) (int, error) {
	keep := min(len(b), l.max-l.kept.Len())
	l.cut = l.cut || keep < len(b)
	l.kept.Write(b[:keep]) // never fails
	return len(b), nil
}

// codeOf is the number of a plugin's error, 0 when it said none.
func codeOf(err error) uint {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e.Code
	}
	return 0
}
