// Package update changes the agent over to another version of its package when the
// cluster asks for that: it fetches the package, has a unit of its own install it, and
// goes back to the package before when the new agent does not get ready.
package update
