package iam

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/cluster/store"
)

// An Error is an answer of the query protocol that is no success.
type Error struct {
	Code, Message string
	Status        int
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

func refuse(status int, code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Status: status}
}

func invalid(format string, args ...any) error {
	return refuse(http.StatusBadRequest, "ValidationError", format, args...)
}

func noRole(name string) error {
	return refuse(http.StatusNotFound, "NoSuchEntity", "The role with name %.64s cannot be found.", name)
}

// Limits of AWS (IAM quotas).
const (
	maxTags      = 50
	maxAttached  = 20
	maxInline    = 50
	minSession   = 900
	usualSession = 3600
	maxSession   = 43200
)

var (
	roleName    = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)
	policyName  = regexp.MustCompile(`^[\w+=,.@-]{1,128}$`)
	rolePath    = regexp.MustCompile(`^/([\x21-\x2e\x30-\x7e]+/)*$`)
	sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	managedARN  = regexp.MustCompile(`^arn:[a-z0-9-]+:iam::(aws|[0-9]{12}):policy/[\w+=,.@/-]{1,512}$`)
)

// operations are those of IAM. Each returns the inside of its result element.
func (s *Service) operations() map[string]func(ctx context.Context, f url.Values) (string, error) {
	all := map[string]func(ctx context.Context, f url.Values) (string, error){
		"CreateRole":                  s.createRole,
		"GetRole":                     s.getRole,
		"ListRoles":                   s.listRoles,
		"UpdateRole":                  s.updateRole,
		"UpdateRoleDescription":       s.updateRoleDescription,
		"UpdateAssumeRolePolicy":      s.updateTrust,
		"DeleteRole":                  s.deleteRole,
		"TagRole":                     s.tagRole,
		"UntagRole":                   s.untagRole,
		"ListRoleTags":                s.listRoleTags,
		"PutRolePolicy":               s.putPolicy,
		"GetRolePolicy":               s.getPolicy,
		"ListRolePolicies":            s.listPolicies,
		"DeleteRolePolicy":            s.deletePolicy,
		"AttachRolePolicy":            s.attachPolicy,
		"DetachRolePolicy":            s.detachPolicy,
		"ListAttachedRolePolicies":    s.listAttached,
		"ListInstanceProfilesForRole": s.listProfiles,
	}
	maps.Copy(all, s.managedOperations())
	return all
}

// Call performs an operation of IAM and returns the inside of its result element.
func (s *Service) Call(ctx context.Context, action string, f url.Values) (string, error) {
	op, ok := s.operations()[action]
	if !ok {
		return "", refuse(http.StatusBadRequest, "InvalidAction", "Could not find operation %.64s for version 2010-05-08", action)
	}
	return op(ctx, f)
}

// el is an element; parts are XML.
func el(name string, parts ...string) string {
	return "<" + name + ">" + strings.Join(parts, "") + "</" + name + ">"
}

// txt is an element with a text.
func txt(name, text string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(text)); err != nil {
		return el(name)
	}
	return el(name, b.String())
}

// doc is an element with a policy document, which is URL-encoded (RFC 3986).
func doc(name, text string) string {
	return txt(name, strings.ReplaceAll(url.QueryEscape(text), "+", "%20"))
}

func members[T any](name string, list []T, member func(T) string) string {
	var b strings.Builder
	for _, v := range list {
		b.WriteString(el("member", member(v)))
	}
	return el(name, b.String())
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func tag(t store.RoleTag) string { return txt("Key", t.Key) + txt("Value", t.Value) }

const notTruncated = "<IsTruncated>false</IsTruncated>"

func (s *Service) roleXML(r *store.Role) string {
	out := txt("Path", r.Path) + txt("RoleName", r.Name) + txt("RoleId", r.ID) + txt("Arn", s.roleARN(r)) +
		txt("CreateDate", date(r.CreatedAt)) + doc("AssumeRolePolicyDocument", r.Trust) +
		txt("MaxSessionDuration", strconv.Itoa(r.MaxSession))
	if r.Description != "" {
		out += txt("Description", r.Description)
	}
	if len(r.Tags) > 0 {
		out += members("Tags", r.Tags, tag)
	}
	return out + "<RoleLastUsed/>"
}

func (s *Service) createRole(ctx context.Context, f url.Values) (string, error) {
	r := &store.Role{
		Name: f.Get("RoleName"), Path: cmp.Or(f.Get("Path"), "/"), Description: f.Get("Description"),
		Trust: f.Get("AssumeRolePolicyDocument"), MaxSession: usualSession, CreatedAt: s.now().UTC(),
	}
	if !roleName.MatchString(r.Name) {
		return "", invalid("The specified value for roleName is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-")
	}
	if !rolePath.MatchString(r.Path) || len(r.Path) > 512 {
		return "", invalid("The specified value for path is invalid. It must begin and end with / and contain only alphanumeric characters and/or / characters.")
	}
	var err error
	if r.MaxSession, err = duration(f.Get("MaxSessionDuration"), usualSession, usualSession); err != nil {
		return "", err
	}
	if r.Tags, err = tags(f); err != nil {
		return "", err
	}
	if err := checkTrust(r.Trust); err != nil {
		return "", err
	}
	var b [10]byte
	rand.Read(b[:]) //nolint:errcheck // never fails (crypto/rand)
	r.ID = "AROA" + base32.StdEncoding.EncodeToString(b[:])
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		if _, there := store.Get(tx, store.Roles, r.Name); there {
			return refuse(http.StatusConflict, "EntityAlreadyExists", "Role with name %s already exists.", r.Name)
		}
		store.Put(tx, store.Roles, r.Name, r)
		return nil
	})
	return el("Role", s.roleXML(r)), err
}

func checkTrust(text string) error {
	if _, err := ParseTrust(text); err != nil {
		return refuse(http.StatusBadRequest, "MalformedPolicyDocument", "%s", err)
	}
	return nil
}

func duration(text string, usual, least int) (int, error) {
	if text == "" {
		return usual, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > maxSession {
		return 0, invalid("The duration must be between %d and %d seconds.", least, maxSession)
	}
	return n, nil
}

// tags reads Tags.member.N.
func tags(f url.Values) ([]store.RoleTag, error) {
	var out []store.RoleTag
	for n := 1; f.Has(fmt.Sprintf("Tags.member.%d.Key", n)); n++ {
		t := store.RoleTag{Key: f.Get(fmt.Sprintf("Tags.member.%d.Key", n)), Value: f.Get(fmt.Sprintf("Tags.member.%d.Value", n))}
		if t.Key == "" || len(t.Key) > 128 || len(t.Value) > 256 || n > maxTags {
			return nil, invalid("Tags: up to %d, with keys of 1 to 128 characters and values of up to 256.", maxTags)
		}
		out = append(out, t)
	}
	return out, nil
}

// role finds the role that a request names.
func (s *Service) role(f url.Values) (*store.Role, error) {
	name := f.Get("RoleName")
	var r *store.Role
	ok := false
	s.Store.View(func(rd store.Reader) { r, ok = store.Get(rd, store.Roles, name) })
	if !ok || !roleName.MatchString(name) {
		return nil, noRole(name)
	}
	return r, nil
}

// change changes the role that a request names.
func (s *Service) change(ctx context.Context, f url.Values, fn func(r *store.Role) error) (*store.Role, error) {
	return s.changeIn(ctx, f, func(_ *store.Tx, r *store.Role) error { return fn(r) })
}

// changeIn is change for what has to look at other records as well.
func (s *Service) changeIn(ctx context.Context, f url.Values, fn func(tx *store.Tx, r *store.Role) error) (*store.Role, error) {
	name := f.Get("RoleName")
	if !roleName.MatchString(name) {
		return nil, noRole(name)
	}
	var out *store.Role
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		old, ok := store.Get(tx, store.Roles, name)
		if !ok {
			return noRole(name)
		}
		r := *old
		r.Inline, r.Tags, r.Attached = maps.Clone(old.Inline), slices.Clone(old.Tags), slices.Clone(old.Attached)
		if err := fn(tx, &r); err != nil {
			return err
		}
		store.Put(tx, store.Roles, name, &r)
		out = &r
		return nil
	})
	return out, err
}

func (s *Service) getRole(_ context.Context, f url.Values) (string, error) {
	r, err := s.role(f)
	if err != nil {
		return "", err
	}
	return el("Role", s.roleXML(r)), nil
}

func (s *Service) listRoles(_ context.Context, f url.Values) (string, error) {
	limit, err := strconv.Atoi(cmp.Or(f.Get("MaxItems"), "100"))
	if err != nil || limit < 1 || limit > 1000 {
		return "", invalid("MaxItems must be between 1 and 1000.")
	}
	var list []*store.Role
	s.Store.View(func(rd store.Reader) {
		store.ScanAfter(rd, store.Roles, "", f.Get("Marker"), func(_ string, r *store.Role) bool {
			if strings.HasPrefix(r.Path, cmp.Or(f.Get("PathPrefix"), "/")) {
				list = append(list, r)
			}
			return len(list) <= limit
		})
	})
	end := notTruncated
	if len(list) > limit {
		list = list[:limit]
		end = "<IsTruncated>true</IsTruncated>" + txt("Marker", list[limit-1].Name)
	}
	return members("Roles", list, s.roleXML) + end, nil
}

func (s *Service) updateRole(ctx context.Context, f url.Values) (string, error) {
	_, err := s.change(ctx, f, func(r *store.Role) (err error) {
		if f.Has("Description") {
			r.Description = f.Get("Description")
		}
		r.MaxSession, err = duration(f.Get("MaxSessionDuration"), r.MaxSession, usualSession)
		return err
	})
	return "", err
}

func (s *Service) updateRoleDescription(ctx context.Context, f url.Values) (string, error) {
	r, err := s.change(ctx, f, func(r *store.Role) error { r.Description = f.Get("Description"); return nil })
	if err != nil {
		return "", err
	}
	return el("Role", s.roleXML(r)), nil
}

func (s *Service) updateTrust(ctx context.Context, f url.Values) (string, error) {
	if err := checkTrust(f.Get("PolicyDocument")); err != nil {
		return "", err
	}
	_, err := s.change(ctx, f, func(r *store.Role) error { r.Trust = f.Get("PolicyDocument"); return nil })
	return "", err
}

func (s *Service) deleteRole(ctx context.Context, f url.Values) (string, error) {
	name := f.Get("RoleName")
	if !roleName.MatchString(name) {
		return "", noRole(name)
	}
	return "", s.Store.Update(ctx, func(tx *store.Tx) error {
		r, ok := store.Get(tx, store.Roles, name)
		switch {
		case !ok:
			return noRole(name)
		case len(r.Inline) > 0:
			return refuse(http.StatusConflict, "DeleteConflict", "Cannot delete entity, must delete policies first.")
		case len(r.Attached) > 0:
			return refuse(http.StatusConflict, "DeleteConflict", "Cannot delete entity, must detach all policies first.")
		}
		store.Delete(tx, store.Roles, name)
		return nil
	})
}

func (s *Service) tagRole(ctx context.Context, f url.Values) (string, error) {
	set, err := tags(f)
	if err != nil {
		return "", err
	}
	_, err = s.change(ctx, f, func(r *store.Role) error {
		for _, t := range set {
			if i := slices.IndexFunc(r.Tags, func(o store.RoleTag) bool { return o.Key == t.Key }); i >= 0 {
				r.Tags[i] = t
			} else {
				r.Tags = append(r.Tags, t)
			}
		}
		if len(r.Tags) > maxTags {
			return refuse(http.StatusConflict, "LimitExceeded", "A role may have up to %d tags.", maxTags)
		}
		return nil
	})
	return "", err
}

func (s *Service) untagRole(ctx context.Context, f url.Values) (string, error) {
	_, err := s.change(ctx, f, func(r *store.Role) error {
		for n := 1; f.Has(fmt.Sprintf("TagKeys.member.%d", n)) && n <= maxTags; n++ {
			key := f.Get(fmt.Sprintf("TagKeys.member.%d", n))
			r.Tags = slices.DeleteFunc(r.Tags, func(t store.RoleTag) bool { return t.Key == key })
		}
		return nil
	})
	return "", err
}

func (s *Service) listRoleTags(_ context.Context, f url.Values) (string, error) {
	r, err := s.role(f)
	if err != nil {
		return "", err
	}
	return members("Tags", r.Tags, tag) + notTruncated, nil
}

func (s *Service) putPolicy(ctx context.Context, f url.Values) (string, error) {
	name, text := f.Get("PolicyName"), f.Get("PolicyDocument")
	if !policyName.MatchString(name) {
		return "", invalid("The specified value for policyName is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-")
	}
	if _, err := ParsePolicy(text); err != nil {
		return "", refuse(http.StatusBadRequest, "MalformedPolicyDocument", "%s", err)
	}
	_, err := s.change(ctx, f, func(r *store.Role) error {
		if r.Inline == nil {
			r.Inline = make(map[string]string)
		}
		r.Inline[name] = text
		size := 0
		for _, p := range r.Inline {
			size += len(p)
		}
		if size > maxPolicy || len(r.Inline) > maxInline {
			return refuse(http.StatusConflict, "LimitExceeded", "Maximum policy size of %d bytes exceeded for role %s", maxPolicy, r.Name)
		}
		return nil
	})
	return "", err
}

func noPolicy(name string) error {
	return refuse(http.StatusNotFound, "NoSuchEntity", "The role policy with name %.128s cannot be found.", name)
}

func (s *Service) getPolicy(_ context.Context, f url.Values) (string, error) {
	r, err := s.role(f)
	if err != nil {
		return "", err
	}
	text, ok := r.Inline[f.Get("PolicyName")]
	if !ok {
		return "", noPolicy(f.Get("PolicyName"))
	}
	return txt("RoleName", r.Name) + txt("PolicyName", f.Get("PolicyName")) + doc("PolicyDocument", text), nil
}

func (s *Service) listPolicies(_ context.Context, f url.Values) (string, error) {
	r, err := s.role(f)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.Inline)) {
		b.WriteString(txt("member", name))
	}
	return el("PolicyNames", b.String()) + notTruncated, nil
}

func (s *Service) deletePolicy(ctx context.Context, f url.Values) (string, error) {
	name := f.Get("PolicyName")
	_, err := s.change(ctx, f, func(r *store.Role) error {
		if _, ok := r.Inline[name]; !ok {
			return noPolicy(name)
		}
		delete(r.Inline, name)
		return nil
	})
	return "", err
}

func (s *Service) attachPolicy(ctx context.Context, f url.Values) (string, error) {
	arn := f.Get("PolicyArn")
	if !managedARN.MatchString(arn) {
		return "", invalid("ARN %.200s is not valid.", arn)
	}
	_, err := s.changeIn(ctx, f, func(tx *store.Tx, r *store.Role) error {
		if !ofAWS(arn) {
			p, err := s.findManaged(tx, arn)
			if err != nil {
				return err
			}
			held := *p
			store.Put(tx, store.Policies, p.Name, &held) // so that it is not deleted at the same time
		}
		if !slices.Contains(r.Attached, arn) {
			r.Attached = append(r.Attached, arn)
		}
		if len(r.Attached) > maxAttached {
			return refuse(http.StatusConflict, "LimitExceeded", "Cannot exceed quota for PoliciesPerRole: %d", maxAttached)
		}
		return nil
	})
	return "", err
}

func (s *Service) detachPolicy(ctx context.Context, f url.Values) (string, error) {
	arn := f.Get("PolicyArn")
	_, err := s.change(ctx, f, func(r *store.Role) error {
		i := slices.Index(r.Attached, arn)
		if i < 0 {
			return refuse(http.StatusNotFound, "NoSuchEntity", "Policy %.200s was not found.", arn)
		}
		r.Attached = slices.Delete(r.Attached, i, i+1)
		return nil
	})
	return "", err
}

func (s *Service) listAttached(_ context.Context, f url.Values) (string, error) {
	r, err := s.role(f)
	if err != nil {
		return "", err
	}
	return members("AttachedPolicies", r.Attached, func(arn string) string {
		return txt("PolicyName", arn[strings.LastIndexByte(arn, '/')+1:]) + txt("PolicyArn", arn)
	}) + notTruncated, nil
}

func (s *Service) listProfiles(_ context.Context, f url.Values) (string, error) {
	if _, err := s.role(f); err != nil {
		return "", err
	}
	return el("InstanceProfiles") + notTruncated, nil
}

// AssumeRole is the operation of STS. The caller is the operator (from nil), who may take
// every role of the store, or has a role, whose policies and the trust policy of the other
// role decide.
func (s *Service) AssumeRole(ctx context.Context, from *Principal, f url.Values) (string, error) {
	arn, session := f.Get("RoleArn"), f.Get("RoleSessionName")
	if !sessionName.MatchString(session) {
		return "", invalid("roleSessionName must have 2 to 64 characters of letters, digits and _+=,.@-")
	}
	r, ok := s.find(arn)
	allowed := ok && strings.HasPrefix(arn, "arn:")
	who := "arn:" + s.Partition + ":iam::" + s.Account + ":root"
	if allowed && from != nil {
		who = from.ARN
		trust, err := ParseTrust(r.Trust)
		root := "arn:" + s.Partition + ":iam::" + s.Account + ":root"
		allowed = err == nil && trust.Trusts("AWS", from.ARN, s.roleARN(from.Role), root, s.Account) &&
			s.Decide(from.Role, "sts:AssumeRole", arn, nil) == Allowed
	}
	if !allowed {
		return "", refuse(http.StatusForbidden, "AccessDenied", "User: %s is not authorized to perform: sts:AssumeRole on resource: %.256s", who, arn)
	}
	seconds, err := duration(f.Get("DurationSeconds"), usualSession, minSession)
	if err != nil {
		return "", err
	}
	if seconds > r.MaxSession {
		return "", invalid("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	k, err := s.take(ctx, arn, session, time.Duration(seconds)*time.Second)
	if err != nil {
		return "", err
	}
	return el("Credentials", txt("AccessKeyId", k.AccessKeyID), txt("SecretAccessKey", k.SecretAccessKey), txt("SessionToken", k.SessionToken), txt("Expiration", date(k.Expires))) +
		el("AssumedRoleUser", txt("AssumedRoleId", r.ID+":"+session), txt("Arn", "arn:"+s.Partition+":sts::"+s.Account+":assumed-role/"+r.Name+"/"+session)), nil
}
