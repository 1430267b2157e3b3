// Package resource makes the things on the host, besides networks, images and
// containers, that a task needs. One file each.
package resource
