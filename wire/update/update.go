// Package update is what agents and clusters have to agree on of updates: what versions
// are, which may follow which, and where packages are fetched.
package update

import (
	"fmt"
	"regexp"
	"strconv"
)

const (
	// Path is where a cluster hands out packages, to agents who sign the request; the
	// name of the file follows.
	Path = "/berth/v1/packages/"
	// Attribute is the beginning of the attribute by which an agent tells that it obeys
	// update messages, and what kind of package it is installed from: deb or rpm.
	Attribute = "berth.capability.update."
	// Package is the package that the agent is in.
	Package = "berth-agent"
	// MaxSize is how large a package may be, in bytes.
	MaxSize = 512 << 20
)

// The kinds of packages.
const (
	Deb = "deb"
	RPM = "rpm"
)

// Version is a version x.y.z.
type Version [3]int

var versionRule = regexp.MustCompile(`^([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})$`)

// Parse reads a version, which is x.y.z and nothing else.
func Parse(s string) (Version, error) {
	m := versionRule.FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("%.64q is no version of the form x.y.z", s)
	}
	var v Version
	for i := range v {
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return Version{}, err
		}
		v[i] = n
	}
	return v, nil
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// Compare is negative if v is before other, and positive if it is after it.
func (v Version) Compare(other Version) int {
	for i := range v {
		if v[i] != other[i] {
			return v[i] - other[i]
		}
	}
	return 0
}

// Step says why one version may not take the place of another: it is the same, or more
// than one before it, which cannot read what the other has written.
func Step(from, to Version) error {
	switch {
	case from == to:
		return fmt.Errorf("version %s is the one that runs", to)
	case to.Compare(from) > 0:
		return nil
	case to[0] != from[0] || to[1] < from[1]-1:
		return fmt.Errorf("version %s is more than one before %s, and cannot use its state", to, from)
	}
	return nil
}
