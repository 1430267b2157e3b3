// Package render turns task definitions into what goes over the wire to an agent: the
// task of a PayloadMessage, with the Docker-shaped dockerConfig strings of the agent
// protocol ("PayloadMessage task model" and "Mapping a container to the runtime").
// It is pure: the same task gives the same bytes, and nothing is read or asked.
//
// The work has two halves. Resolve applies the overrides of one RunTask or StartTask to
// a definition; placement, the API's answers and Task all start from its result, so they
// cannot disagree about what a task needs. Task writes the wire form.
package render
