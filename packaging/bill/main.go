// Command bill writes what a package is made of: a bill of materials in CycloneDX form
// and the licences of all modules, from what the linker recorded in the programs.
//
//	bill NAME VERSION FOLDER PROGRAM...
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bill:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 4 {
		return errors.New("usage: bill NAME VERSION FOLDER PROGRAM")
	}
	name, version, folder := args[0], args[1], args[2]
	modules, err := linked(args[3:])
	if err != nil {
		return err
	}
	dirs, err := folders()
	if err != nil {
		return err
	}
	licences, err := read(modules, dirs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(document(name, version, modules, licences), "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "sbom.cdx.json"), append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(folder, "licenses.txt"), list(name, modules, licences), 0o644),
	)
}

// module is a dependency, with the hash that go.sum has of it.
type module struct{ Path, Version, Sum string }

// linked lists the modules of programs, sorted and each once.
func linked(programs []string) ([]module, error) {
	var all []module
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, err
		}
		all = append(all, module{Path: "std", Version: info.GoVersion})
		for _, m := range append(info.Deps, &info.Main) {
			if m.Replace != nil {
				m = m.Replace
			}
			if m.Sum != "" { // the module that is being built has none
				all = append(all, module{m.Path, m.Version, m.Sum})
			}
		}
	}
	slices.SortFunc(all, func(a, b module) int { return strings.Compare(a.Path+"@"+a.Version, b.Path+"@"+b.Version) })
	return slices.Compact(all), nil
}

// folders finds where the sources of modules lie, by path@version.
func folders() (map[string]string, error) {
	list := exec.Command("go", "list", "-m", "-f", "{{.Path}}@{{.Version}} {{.Dir}}", "all")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m: %w", err)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	dirs := map[string]string{"std": strings.TrimSpace(string(goroot))}
	for line := range strings.Lines(string(out)) {
		if id, dir, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			dirs[id] = dir
		}
	}
	return dirs, nil
}

// licence is what a module may be used under.
type licence struct {
	ID   string // of SPDX
	Text []byte
}

// allowed are the licences that a module of a program may have, by words that only they
// have; the order matters, because BSD-3-Clause has the words of BSD-2-Clause.
var allowed = []struct{ id, words string }{
	{"Apache-2.0", "Apache License"},
	{"MPL-2.0", "Mozilla Public License Version 2.0"},
	{"MPL-2.0", "Mozilla Public License, version 2.0"},
	{"BSD-3-Clause", "endorse or promote products"},
	{"BSD-2-Clause", "Redistribution and use in source and binary forms"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software"},
	{"ISC", "Permission to use, copy, modify, and distribute this software"},
	{"MIT", "Permission is hereby granted, free of charge"},
}

// read reads the licences of modules, by path. One that is not on the list, or not
// there, is an error: somebody has to look.
func read(modules []module, dirs map[string]string) (map[string]licence, error) {
	licences := map[string]licence{}
	var errs []error
	for _, m := range modules {
		dir := dirs[m.Path+"@"+m.Version]
		if m.Path == "std" {
			dir = dirs["std"]
		}
		l, err := readOne(dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s@%s: %w", m.Path, m.Version, err))
		}
		licences[m.Path] = l
	}
	return licences, errors.Join(errs...)
}

func readOne(dir string) (licence, error) {
	if dir == "" {
		return licence{}, errors.New("its sources are not at hand; run: go mod download")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return licence{}, err
	}
	var l licence
	for _, e := range entries {
		upper := strings.ToUpper(e.Name())
		if e.IsDir() || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE"}, func(p string) bool { return strings.HasPrefix(upper, p) }) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return l, err
		}
		if l.ID == "" && !strings.HasPrefix(upper, "NOTICE") {
			l.ID = identify(text)
		}
		l.Text = append(append(l.Text, text...), '\n')
	}
	if l.ID == "" {
		return l, fmt.Errorf("no licence in %s is one of those allowed", dir)
	}
	return l, nil
}

func identify(text []byte) string {
	flat := string(bytes.Join(bytes.Fields(text), []byte(" ")))
	for _, a := range allowed {
		if strings.Contains(flat, a.words) {
			return a.id
		}
	}
	return ""
}

// document is the bill in the form of CycloneDX 1.6. It has neither a time nor a serial
// number, so that equal programs have equal bills.
func document(name, version string, modules []module, licences map[string]licence) map[string]any {
	components := []map[string]any{}
	for _, m := range modules {
		purl := "pkg:golang/" + m.Path + "@" + m.Version
		c := map[string]any{
			"type": "library", "bom-ref": purl, "name": m.Path, "version": m.Version, "purl": purl,
			"licenses": []any{map[string]any{"license": map[string]string{"id": licences[m.Path].ID}}},
		}
		if m.Sum != "" {
			c["properties"] = []any{map[string]string{"name": "go.sum", "value": m.Sum}}
		}
		components = append(components, c)
	}
	return map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
		"metadata": map[string]any{"component": map[string]any{
			"type": "application", "bom-ref": name, "name": name, "version": version,
			"licenses": []any{map[string]any{"license": map[string]string{"id": "Apache-2.0"}}},
		}},
		"components": components,
	}
}

// list is the licences of all modules as text: an overview, then each in full.
func list(name string, modules []module, licences map[string]licence) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "What the programs of %s are made of besides Berth itself, and under which licences.\n\n", name)
	for _, m := range modules {
		fmt.Fprintf(&b, "%-12s  %s %s\n", licences[m.Path].ID, m.Path, m.Version)
	}
	for _, m := range modules {
		fmt.Fprintf(&b, "\n%s\n%s %s\n\n%s", strings.Repeat("=", 78), m.Path, m.Version, licences[m.Path].Text)
	}
	return b.Bytes()
}
