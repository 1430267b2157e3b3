// Package intake turns what the cluster sends into what is wanted on this host. A
// message is answered only when everything it asks for is on disk; until then the
// cluster sends it again, and doing it twice is the same as doing it once. Credentials
// in a message go to the credentials store and nowhere else.
package intake
