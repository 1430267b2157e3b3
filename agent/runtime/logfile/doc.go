// Package logfile is the local log of a container: a file of JSON lines as Docker's
// json-file driver writes them, rotated by size, written by cmd/berth-logger and read
// by everything that shows logs.
//
// One line is one entry: {"log":"text\n","stream":"stdout","time":"RFC 3339"}. A line
// of the container that is longer than MaxLine is stored as several entries, all but
// the last without the final "\n". The entries of one stream are in order. Rotated
// files have the suffix ".1" (newest) to ".n" (oldest), and ".gz" if they are compressed. Each file begins with a line of
// its own, the head, which is not an entry.
//
// The writing half uses as little of the standard library as it can, because one
// writer process runs beside every container.
package logfile
