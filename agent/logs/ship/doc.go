// Package ship sends the output of containers to where their log drivers say. One
// process does it for all containers of a host: a library such as an AWS SDK costs its
// memory once, and not once a container.
//
// What is sent is read from the containers' local log files, from a position that is
// stored (positions.go). The file is the buffer: a destination that is dead costs no
// memory, and one that was dead for longer than the files reach back is told how many
// lines are missing. The agent is not needed, except for credentials and secrets.
package ship
