// Package plugin is what Berth's CNI plugins have in common: the program around a
// plugin's verbs, the beginning of its configuration, how its result joins that of the
// plugins before it, and the durable record that it keeps of each attachment.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// DefaultDataDir holds what plugins keep of a network, in a folder of the network's name,
// where the configuration names no other place.
const DefaultDataDir = "/run/berth/cni"

// maxNetConf bounds a configuration, in bytes; a previous result is part of it.
const maxNetConf = 1 << 20

// Versions are the versions of the CNI specification that the plugins speak.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Main is the program of a plugin: it does what CNI asks for in the environment and
// returns the exit code. about is printed when it is called without CNI; args are those
// of the command line.
func Main(args []string, about string, funcs func(context.Context) skel.CNIFuncs) int {
	if len(args) > 1 && args[1] == "--version" {
		if err := printVersion(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if e := skel.PluginMainFuncsWithError(funcs(ctx), Versions(), about); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

// printVersion answers --version in the form that agents ask for (agent protocol, "CNI
// chain for the pause container").
func printVersion(w io.Writer) error {
	out := struct {
		Version      string `json:"version"`
		Dirty        bool   `json:"dirty"`
		GitShortHash string `json:"gitShortHash"`
	}{Version: "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		out.Version = info.Main.Version
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				out.GitShortHash = s.Value[:min(8, len(s.Value))]
			case "vcs.modified":
				out.Dirty = s.Value == "true"
			}
		}
	}
	return json.NewEncoder(w).Encode(out)
}

var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Decode reads a network configuration into conf, of which head is the part that all
// plugins have, with the previous result.
func Decode(data []byte, conf any, head *types.PluginConf) error {
	if len(data) > maxNetConf {
		return fmt.Errorf("the configuration is larger than %d bytes", maxNetConf)
	}
	if err := json.Unmarshal(data, conf); err != nil {
		return fmt.Errorf("decode the configuration: %w", err)
	}
	if !networkName.MatchString(head.Name) {
		return errors.New("name: must be 1 to 128 letters, digits, dots, dashes and underscores, the first a letter or digit")
	}
	if err := version.ParsePrevResult(head); err != nil {
		return fmt.Errorf("prevResult: %w", err)
	}
	return nil
}

// DataDir is the folder of a network below dir, which a configuration names; empty takes
// the default.
func DataDir(dir, network string) (string, error) {
	if dir == "" {
		dir = DefaultDataDir
	}
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("dataDir %q: must be an absolute path", dir)
	}
	return filepath.Join(dir, network), nil
}

// Print prints a result, behind that of the plugins before this one, in the version of
// the configuration.
func Print(head *types.PluginConf, r *current.Result) error {
	all, err := WithPrevious(head, r)
	if err != nil {
		return err
	}
	return types.PrintResult(all, head.CNIVersion)
}

// WithPrevious puts a result behind that of the plugins before this one, if any.
func WithPrevious(head *types.PluginConf, r *current.Result) (*current.Result, error) {
	if head.PrevResult == nil {
		return r, nil
	}
	prev, err := current.NewResultFromResult(head.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("prevResult: %w", err)
	}
	for _, ip := range r.IPs {
		at := *ip.Interface + len(prev.Interfaces)
		ip.Interface = &at
	}
	prev.Interfaces = append(prev.Interfaces, r.Interfaces...)
	prev.IPs = append(prev.IPs, r.IPs...)
	prev.Routes = append(prev.Routes, r.Routes...)
	prev.CNIVersion = current.ImplementedSpecVersion
	return prev, nil
}
