//go:build !nextstate

package state

// nextMigrations is empty but in programs that stand for the next version.
var nextMigrations []migration
