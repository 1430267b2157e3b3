// Package logs says what becomes of a container's output: it checks the log driver and
// its options, chooses the arguments of the container's logger, and describes the
// destination to the shipper. DESIGN.md has the whole picture and its reasons.
//
// The package is pure; agent/runtime writes what it returns. Option names and meanings
// are those of Docker's documentation of its logging drivers, because task definitions
// use them (agent protocol, "Logging").
package logs
