// Package spec translates a container of a task into an OCI runtime specification.
// It is pure: the same input gives the same specification, and everything about the
// host that matters is part of the input.
//
// The security defaults are written out here and kept by golden files, so that they do
// not change with the version of a library: the 14 capabilities, the masked and the
// read-only paths and the seccomp profile (seccomp.json) are those of containerd 2.4.2
// (Apache License 2.0, The containerd Authors).
package spec
