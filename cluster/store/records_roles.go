package store

import "time"

// A Role is a role of the role store.
type Role struct {
	Name, ID, Path, Description string
	// Trust is the policy of who may take the role.
	Trust string
	// MaxSession is how long keys of an AssumeRole may be valid, in seconds.
	MaxSession int
	Tags       []RoleTag
	Inline     map[string]string // policy documents by name
	Attached   []string          // ARNs of managed policies
	CreatedAt  time.Time
}

// A RoleTag is a tag of a role.
type RoleTag struct{ Key, Value string }

// A Policy is a managed policy of the account, which roles have by its ARN.
type Policy struct {
	Name, ID, Path, Description string
	Versions                    map[int]PolicyVersion
	// Default is the version that counts, Last the highest number ever given.
	Default, Last        int
	Tags                 []RoleTag
	CreatedAt, UpdatedAt time.Time
}

// A PolicyVersion is one document of a policy.
type PolicyVersion struct {
	Document  string
	CreatedAt time.Time
}
