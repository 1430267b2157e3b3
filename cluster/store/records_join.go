package store

import "time"

// A JoinToken lets hosts become members of an ECS cluster. Its secret is derived from the
// cluster's root key and is not stored.
type JoinToken struct {
	ID                   string
	Cluster              string // name of the ECS cluster; "default" may not be there yet
	CreatedAt, ExpiresAt time.Time
	Left                 int      // how many hosts may still join
	Hosts                []string // those that have
}
