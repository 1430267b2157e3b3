// Package engine owns the tasks of this host: one goroutine each, which asks
// agent/plan what to do, makes the intent durable, has the adapters act, and folds
// what they report into what is known. It knows no adapter, no database and no
// protocol; it reaches them through the interfaces declared here, whose value types
// live in agent/task.
package engine
