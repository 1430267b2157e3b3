// Package acs is the cluster's side of the agent communication service: the websocket
// over which an agent is given its tasks (agent protocol, "ACS websocket").
//
// # What a session owes its agent
//
// There is no queue on disk. The task records say what every agent must still be told: a
// task that is to run and of which nothing has been heard, a task that is to stop and
// has not. A session works that out from the records when it opens and again whenever
// one of its instance's tasks changes, so neither a lost connection nor a restart of the
// cluster can lose a message, and an acknowledgement costs no write. What has been
// acknowledged is remembered for as long as the session lives; after that it is sent
// again where nothing has been heard, and agents recognise a task they know by its ARN.
//
// # Order and repetition
//
// One goroutine writes to a session. Sequence numbers grow with every message, also over
// restarts, because they follow the clock. A payload that is not acknowledged is
// repeated with the same message id a few times; then its tasks are sent one by one, so
// that one which the agent cannot take holds up no other; then the session gives up on
// the task until the next session or until it changes (agent protocol, "ACS": a payload
// with one bad task is never acknowledged).
package acs
