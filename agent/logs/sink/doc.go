// Package sink has the destinations of containers' output: one file for each log
// driver. It runs in the shipper alone, so that no container pays for the libraries.
//
// A sink sends what it is given and keeps nothing: what it could not send it is given
// again. The log file is the buffer.
package sink
