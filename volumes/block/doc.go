// Package block has the parts of block volumes: it finds a device by the serial number
// that it carries, which is the volume's id, puts a file system on one that is empty,
// and keeps a pool of volumes in files where nobody plugs devices in.
package block
