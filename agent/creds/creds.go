// Package creds holds the credentials of the tasks' roles, in memory only: after a
// restart of the agent the cluster sends them again (agent protocol, "sendCredentials").
//
// Credentials are bound to a task. Asking for those of another task gives the same
// answer as asking for some that do not exist, so that an id is worth nothing to anyone
// but its task.
package creds

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
)

// Role says whose credentials they are. The values are those of roleType in the
// protocol.
type Role string

// Roles.
const (
	Application Role = "TaskApplication" // the task role, for the task's processes
	Execution   Role = "TaskExecution"   // the execution role, for the agent on the task's behalf
)

// Credentials are those of one role of one task. Every member that could be used to
// sign a request is a task.Secret and cannot be printed.
type Credentials struct {
	ID      string
	TaskARN string
	Role    Role
	RoleARN string

	AccessKeyID     task.Secret
	SecretAccessKey task.Secret
	SessionToken    task.Secret

	// Expiration is the cluster's own text, which tasks are shown unchanged. One that is
	// not RFC 3339 has no end that is known here.
	Expiration string
}

// Bounds of what is accepted. Two sets of credentials for 4,096 tasks are far beyond
// what one host runs; session tokens have no documented limit and are about 1 KiB.
const (
	maxSets   = 8192
	maxString = 16 << 10
	purgeEach = time.Minute
)

// Errors of this package, with their classes.
var (
	errUnknown = &task.Error{Class: task.NotFound, Err: errors.New("no such credentials")}
	errExpired = &task.Error{Class: task.Unavailable, Err: errors.New("the credentials have expired and the cluster has not sent new ones")}
	errFull    = &task.Error{Class: task.Exhausted, Err: fmt.Errorf("more than %d sets of credentials are held", maxSets)}
)

// Store holds credentials. It is safe for use by many goroutines. The zero value is
// empty and ready.
type Store struct {
	mu     sync.RWMutex
	byID   map[string]entry
	byTask map[string]map[Role]string // the newest id of each role
	purged time.Time
}

type entry struct {
	Credentials
	ends time.Time // zero when it is not known
}

func (e *entry) expired(now time.Time) bool { return !e.ends.IsZero() && !now.Before(e.ends) }

// Set stores credentials, or replaces those with the same id by newer ones; older ones
// that come late are passed over. Errors are Invalid for credentials that cannot be
// used or whose id belongs to another task or role, and Exhausted when there are too
// many. No error names a secret.
func (s *Store) Set(c Credentials) error {
	e := entry{Credentials: c}
	if err := check(&c); err != nil {
		return &task.Error{Class: task.Invalid, Err: err}
	}
	if t, err := time.Parse(time.RFC3339, c.Expiration); err == nil {
		e.ends = t
	}
	now := time.Now()
	s.mu.Lock()
	err := s.set(e, now)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return fail.Point(fail.CredsAfterSet)
}

func (s *Store) set(e entry, now time.Time) error {
	if old, ok := s.byID[e.ID]; ok {
		if old.TaskARN != e.TaskARN || old.Role != e.Role {
			return &task.Error{Class: task.Invalid, Err: fmt.Errorf("credentials for task %s have the id of another task or role", e.TaskARN)}
		}
		if e.ends.Before(old.ends) {
			return nil
		}
	} else if len(s.byID) >= maxSets || now.Sub(s.purged) >= purgeEach {
		s.purge(now)
		if len(s.byID) >= maxSets {
			return errFull
		}
	}
	if s.byID == nil {
		s.byID = make(map[string]entry)
		s.byTask = make(map[string]map[Role]string)
	}
	s.byID[e.ID] = e
	newest := s.byTask[e.TaskARN]
	if newest == nil {
		newest = make(map[Role]string)
		s.byTask[e.TaskARN] = newest
	}
	if have, ok := s.byID[newest[e.Role]]; !ok || !e.ends.Before(have.ends) {
		newest[e.Role] = e.ID
	}
	return nil
}

func check(c *Credentials) error {
	switch {
	case c.ID == "":
		return errors.New("credentials without an id")
	case c.TaskARN == "":
		return errors.New("credentials without a task")
	case c.Role != Application && c.Role != Execution:
		return fmt.Errorf("credentials for task %s: the role type is neither %s nor %s", c.TaskARN, Application, Execution)
	case c.AccessKeyID.IsZero() || c.SecretAccessKey.IsZero():
		return fmt.Errorf("credentials for task %s lack their keys", c.TaskARN)
	}
	for _, v := range []string{c.ID, c.TaskARN, c.RoleARN, c.Expiration, c.AccessKeyID.Reveal(), c.SecretAccessKey.Reveal(), c.SessionToken.Reveal()} {
		if len(v) > maxString {
			return fmt.Errorf("credentials with a member of more than %d bytes", maxString)
		}
	}
	return nil
}

// Get returns the credentials with the given id, which must belong to the task. Errors
// are NotFound, and Unavailable for credentials that have expired.
func (s *Store) Get(id, taskARN string) (Credentials, error) {
	s.mu.RLock()
	e, ok := s.byID[id]
	s.mu.RUnlock()
	if !ok || e.TaskARN != taskARN {
		return Credentials{}, errUnknown
	}
	if e.expired(time.Now()) {
		return Credentials{}, errExpired
	}
	return e.Credentials, nil
}

// Of returns the newest credentials of one role of a task, with the errors of Get.
func (s *Store) Of(taskARN string, r Role) (Credentials, error) {
	s.mu.RLock()
	id, ok := s.byTask[taskARN][r]
	s.mu.RUnlock()
	if !ok {
		return Credentials{}, errUnknown
	}
	return s.Get(id, taskARN)
}

// Drop forgets everything of a task.
func (s *Store) Drop(taskARN string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.byID, func(_ string, e entry) bool { return e.TaskARN == taskARN })
	delete(s.byTask, taskARN)
}

// purge forgets what has expired: a task that still lives gets new ones.
func (s *Store) purge(now time.Time) {
	s.purged = now
	maps.DeleteFunc(s.byID, func(_ string, e entry) bool { return e.expired(now) })
	for arn, roles := range s.byTask {
		maps.DeleteFunc(roles, func(_ Role, id string) bool { _, ok := s.byID[id]; return !ok })
		if len(roles) == 0 {
			delete(s.byTask, arn)
		}
	}
}

// Len is the number of sets held.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byID)
}
