//go:build nextstate

package state

// nextMigrations makes a program, built with the tag nextstate, stand for the next version
// in tests of upgrades: it has a schema of its own that this version can read.
var nextMigrations = []migration{
	{To: 2, Readable: 1, Do: func(w *writer) error { return w.putMeta([]byte("next"), "made by the next version") }},
}
