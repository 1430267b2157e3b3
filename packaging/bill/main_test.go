package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLicencesAreIdentified(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"  Apache License\n Version 2.0, January 2004", "Apache-2.0"},
		{"Mozilla Public License Version\n2.0", "MPL-2.0"},
		{"Redistribution and use in source and\nbinary forms, … may be used to endorse or\n promote products", "BSD-3-Clause"},
		{"Redistribution and use in source and binary forms", "BSD-2-Clause"},
		{"Permission to use, copy, modify, and distribute this\nsoftware", "ISC"},
		{"Permission is hereby granted, free of charge, to any person", "MIT"},
		{"GNU GENERAL PUBLIC LICENSE", ""},
		{"", ""},
	} {
		if got := identify([]byte(c.text)); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

func TestModuleWithoutLicenceIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := readOne(dir); err == nil || !strings.Contains(err.Error(), "no licence") {
		t.Errorf("an empty folder: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "NOTICE"), []byte("Permission is hereby granted, free of charge"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readOne(dir); err == nil {
		t.Error("a notice was taken for a licence")
	}
	if _, err := readOne(""); err == nil || !strings.Contains(err.Error(), "go mod download") {
		t.Errorf("no folder: %v", err)
	}
}
