// Package image brings the images of containers to this host: pull policy, attempts,
// time limits and error names of the agent protocol ("Pull behaviour", "Transition
// details", "Error names and texts") around the runtime's registry client.
//
// An image is resolved to a digest first and pulled by that digest. Pulls of one digest
// are shared between tasks: the download ends only when nobody wants it any more.
//
// The policy default asks the registry every time and falls back to what is on the host.
// So that a host without a network starts its local images at once, an image that is
// here waits at most LocalConnect for the registry, a registry that could not be
// reached is not asked again for a while, and an image that was imported on this host
// from an archive is used without asking anyone.
package image
