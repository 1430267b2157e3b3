// Package state is the agent's database: what makes a commit of the engine durable, and
// what the agent knows again after a crash. It is one bbolt file, with this layout:
//
//	v1/
//	  meta/
//	    agent              instance ARN, cluster, zone and boot id (Meta)
//	    database           random id of the file, generation, mark of a clean end
//	    schema             version of the layout below v1
//	    readable           the oldest version whose programs can use it
//	    sequence           highest payload or manifest sequence number seen
//	    sum                checksum over every other value
//	  tasks/<task id>/
//	    spec               the accepted task (task.Task), written once
//	    known              desired and known status, timestamps (task.Known)
//	    res/<kind>/<name>  one record (task.Record)
//	    events/<n>         the task's last 128 events (task.Event)
//	  outbox/<n>           changes that the cluster has not accepted yet (task.Change)
//	  inbox/<message id>   messages acted on: 4,096 of them or 24 hours
//	  tombstones/<arn>     tasks that were forgotten, for 24 hours
//	  attachments/<arn>    interfaces that the cluster has announced (task.Attachment); the
//	                       bucket is made with the first one
//
// <n> counts upwards and is eight bytes, big endian; "res/<kind>/<name>" is one key.
//
// Every value is an envelope of a version byte, a CRC-32C and JSON. The checksum covers
// the whole path of the value, and meta/sum adds up those of all values, so that also an
// entry that went missing or moved is noticed: bbolt itself notices neither a flipped
// bit in a leaf page nor a leaf page that lost its last entries.
//
// # Files
//
//	state.db             the database
//	state.id             which database belongs here: its id and generation
//	state.lock           held while the database is open
//	state.ballast        1 MiB that is given up when the filesystem is full
//	state.db.bad-<time>  a condemned database; the last three are kept
//	state.db.v<n>        copy from before a migration from schema n
//
// # Opening
//
// A damaged file can crash bbolt in ways that cannot be caught, so Open has a child
// process read it first (Config.Check), compares it with state.id, and only then opens
// it. A file that fails is condemned: renamed, kept, and replaced by an empty database;
// Opening tells the caller. A newer schema than this program's that it cannot use is refused, and nothing
// is touched.
//
// # Committing
//
// One goroutine writes. It takes everything that waits, makes one transaction of it and
// answers all; while it syncs, the next group gathers. There are no timers, so a lone
// commit is written at once.
package state
