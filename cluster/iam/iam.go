// Package iam is the cluster's role store: roles with their policies, temporary keys for
// those who take a role, and the decision what such a key may do on the cluster's own API.
// Its operations are those of AWS IAM and STS that clients need for the roles of tasks.
//
// A role of the store gives its tasks keys of this cluster. A role that the store does not
// know can, where the operator has configured it, be taken at AWS with the operator's own
// identity (see Service.Foreign).
package iam

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// Service is the role store.
type Service struct {
	Store *store.Store
	// Root is the cluster's root key, from which the secrets of temporary keys derive.
	Root []byte
	// Account and Partition are in every ARN.
	Account, Partition string
	// Lifetime is how long keys of tasks are valid; 0 means TaskLifetime.
	Lifetime time.Duration
	// Foreign takes a role that the store does not know; nil refuses such roles.
	Foreign func(ctx context.Context, roleARN, session string) (Keys, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// TaskLifetime is how long the keys of tasks are valid (as at AWS: 6 h). They are sent
// again long before.
const TaskLifetime = 6 * time.Hour

func (s *Service) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Service) keys() issuer { return issuer{s.Root} }

// roleARN is the ARN of a role.
func (s *Service) roleARN(r *store.Role) string {
	return "arn:" + s.Partition + ":iam::" + s.Account + ":role" + r.Path + r.Name
}

// find finds a role by its ARN or name.
func (s *Service) find(ref string) (*store.Role, bool) {
	name := ref[strings.LastIndexByte(ref, '/')+1:]
	var r *store.Role
	s.Store.View(func(rd store.Reader) { r, _ = store.Get(rd, store.Roles, name) })
	if r == nil || strings.HasPrefix(ref, "arn:") && s.roleARN(r) != ref {
		return nil, false
	}
	return r, true
}

// Secret is the secret of a temporary key, for the verifier of signatures. expired is set
// when the key was good once.
func (s *Service) Secret(id, token string) (secret string, expired, ok bool) {
	_, err := s.keys().open(id, token, s.now())
	if err != nil {
		return "", errors.Is(err, errExpired), false
	}
	return s.keys().secret(id, token), false, true
}

// A Principal is who a temporary key belongs to.
type Principal struct {
	ARN    string // of the session, as STS shows it
	UserID string
	Role   *store.Role
}

// Principal says who has a temporary key. A role that has been deleted has none.
func (s *Service) Principal(id, token string) (Principal, bool) {
	ss, err := s.keys().open(id, token, s.now())
	if err != nil {
		return Principal{}, false
	}
	r, ok := s.find(ss.Role)
	if !ok || r.ID != ss.RoleID {
		return Principal{}, false
	}
	return Principal{
		ARN:    "arn:" + s.Partition + ":sts::" + s.Account + ":assumed-role/" + r.Name + "/" + ss.Name,
		UserID: r.ID + ":" + ss.Name, Role: r,
	}, true
}

// Decide says what a role may do.
func (s *Service) Decide(r *store.Role, action, resource string, context map[string]string) Decision {
	var policies []*Policy
	add := func(doc string) bool {
		p, err := ParsePolicy(doc)
		if err == nil {
			policies = append(policies, p)
		}
		return err == nil
	}
	for _, doc := range r.Inline {
		if !add(doc) {
			return NotAllowed // it was checked when it was stored; what it denied is not known
		}
	}
	for _, arn := range r.Attached {
		doc, there := s.document(arn)
		if !there || doc != "" && !add(doc) {
			return NotAllowed
		}
	}
	return Evaluate(policies, action, resource, context)
}

// Services whose tasks take roles.
const tasksService = "ecs-tasks.amazonaws.com"

// Assumable says why tasks could not take a role; nil if they can.
func (s *Service) Assumable(roleARN string) error {
	r, ok := s.find(roleARN)
	if !ok {
		if s.Foreign != nil && strings.HasPrefix(roleARN, "arn:") {
			return nil
		}
		return fmt.Errorf("role %s is not in this cluster's role store: create it with iam create-role, or have the cluster take roles at AWS", roleARN)
	}
	trust, err := ParseTrust(r.Trust)
	if err != nil {
		return fmt.Errorf("trust policy of role %s: %w", roleARN, err)
	}
	if !trust.Trusts("Service", tasksService) {
		return fmt.Errorf("the trust policy of role %s does not let %s take it", roleARN, tasksService)
	}
	return nil
}

// take makes keys of a role for a session of that name.
func (s *Service) take(ctx context.Context, roleARN, session string, life time.Duration) (Keys, error) {
	r, ok := s.find(roleARN)
	if !ok && s.Foreign != nil {
		return s.Foreign(ctx, roleARN, session)
	}
	if !ok {
		return Keys{}, fmt.Errorf("role %s is not in this cluster's role store", roleARN)
	}
	return s.keys().issue(Session{Role: s.roleARN(r), RoleID: r.ID, Name: session, Expires: s.now().Add(life)})
}

// TaskCredentials makes the credentials of a task's roles; nil for a role that it has not.
func (s *Service) TaskCredentials(ctx context.Context, t *store.Task) (task, execution *acs.IAMRoleCredentials, err error) {
	roles := s.rolesOf(t)
	if task, err = s.credentials(ctx, t, roles[0], "task"); err != nil {
		return nil, nil, err
	}
	execution, err = s.credentials(ctx, t, roles[1], "execution")
	return task, execution, err
}

func (s *Service) credentials(ctx context.Context, t *store.Task, role, kind string) (*acs.IAMRoleCredentials, error) {
	if role == "" {
		return nil, nil
	}
	if err := s.Assumable(role); err != nil {
		return nil, err
	}
	life := s.Lifetime
	if life == 0 {
		life = TaskLifetime
	}
	// The session is named by the task's id, as at AWS.
	k, err := s.take(ctx, role, t.ID, life)
	if err != nil {
		return nil, err
	}
	return &acs.IAMRoleCredentials{
		CredentialsID: s.keys().credentialsID(aws.ToString(t.Task.TaskArn), kind), RoleARN: role,
		AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken,
		Expiration: k.Expires.UTC().Format(time.RFC3339),
	}, nil
}

// rolesOf are the task role and the execution role of a task, "" where it has none.
func (s *Service) rolesOf(t *store.Task) (roles [2]string) {
	arn := aws.ToString(t.Task.TaskDefinitionArn)
	family, revision, _ := strings.Cut(arn[strings.LastIndexByte(arn, '/')+1:], ":")
	n, err := strconv.ParseInt(revision, 10, 32)
	if err == nil {
		s.Store.View(func(r store.Reader) {
			if d, ok := store.Get(r, store.TaskDefinitions, store.DefinitionKey(family, int32(n))); ok {
				roles[0], roles[1] = aws.ToString(d.Definition.TaskRoleArn), aws.ToString(d.Definition.ExecutionRoleArn)
			}
		})
	}
	if o := t.Task.Overrides; o != nil {
		if o.TaskRoleArn != nil {
			roles[0] = *o.TaskRoleArn
		}
		if o.ExecutionRoleArn != nil {
			roles[1] = *o.ExecutionRoleArn
		}
	}
	for i, r := range roles {
		if r != "" && !strings.HasPrefix(r, "arn:") { // a name stands for the role of this account
			if found, ok := s.find(r); ok {
				roles[i] = s.roleARN(found)
			}
		}
	}
	return roles
}
