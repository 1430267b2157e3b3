// Package link connects a container's logger to the program that sends its output on,
// the shipper. The logger tells by it that it is there, that the log has grown, and,
// when the container is to wait for its destination, how far it has got.
//
// The connection is a unix stream socket, RUN/shipper.sock. The logger sends the path of
// the container's log directory and a newline, then single bytes; the shipper answers
// with single bytes. A logger that finds no shipper starts one. Both ends are kept so
// simple because one logger runs beside every container: this package avoids package
// net, which would double the size of a logger.
package link

// Bytes on the connection.
const (
	// From the shipper.
	Known   = 'k' // the log directory was read
	AtEnd   = 'e' // nothing is left to read: send Grown when there is
	Shipped = 's' // the place of the oldest mark that was not answered has been passed

	// From the logger.
	Grown = 'g'
	Mark  = 'm' // answer with Shipped when all that is in the log now has been sent
)

// Socket is the shipper's socket in the run directory.
const Socket = "shipper.sock"

// AgentSocket is the socket in the run directory at which the agent answers the shipper.
const AgentSocket = "logs.sock"

// MaxPath is the longest path that a logger may announce (Linux, PATH_MAX).
const MaxPath = 4096
