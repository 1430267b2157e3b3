package iam

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"berth.dev/berth/cluster/store"
)

// Limits of managed policies (IAM quotas).
const (
	maxManaged  = 6144 // characters of a document, white space not counted
	maxVersions = 5
)

// awsManaged are the policies of AWS that mean something here; all others may be attached
// and allow nothing.
var awsManaged = map[string]string{
	"AdministratorAccess":  `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`,
	"AmazonECS_FullAccess": `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecs:*","Resource":"*"}]}`,
	"ReadOnlyAccess":       `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecs:Describe*","ecs:List*","ecs:Get*"],"Resource":"*"}]}`,
}

// ofAWS reports whether a policy is one that AWS manages.
func ofAWS(arn string) bool { return strings.Contains(arn, ":iam::aws:policy/") }

// nameOf is the last part of an ARN.
func nameOf(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

func (s *Service) policyARN(p *store.Policy) string {
	return "arn:" + s.Partition + ":iam::" + s.Account + ":policy" + p.Path + p.Name
}

func noManaged(arn string) error {
	return refuse(http.StatusNotFound, "NoSuchEntity", "Policy %.512s does not exist or is not attachable.", arn)
}

// findManaged finds a policy of this account by its ARN.
func (s *Service) findManaged(r store.Reader, arn string) (*store.Policy, error) {
	if !managedARN.MatchString(arn) {
		return nil, invalid("ARN %.200s is not valid.", arn)
	}
	p, ok := store.Get(r, store.Policies, nameOf(arn))
	if !ok || s.policyARN(p) != arn {
		return nil, noManaged(arn)
	}
	return p, nil
}

// document is the text of an attached policy; "" for one of AWS that means nothing here.
// false is for one that is not there, which attaching and deleting do not let happen.
func (s *Service) document(arn string) (string, bool) {
	if ofAWS(arn) {
		return awsManaged[nameOf(arn)], true
	}
	var p *store.Policy
	var err error
	s.Store.View(func(r store.Reader) { p, err = s.findManaged(r, arn) })
	if err != nil {
		return "", false
	}
	doc, ok := p.Versions[p.Default]
	return doc.Document, ok
}

// managedOperations are those of IAM on managed policies.
func (s *Service) managedOperations() map[string]func(ctx context.Context, f url.Values) (string, error) {
	return map[string]func(ctx context.Context, f url.Values) (string, error){
		"CreatePolicy":            s.createManaged,
		"GetPolicy":               s.getManaged,
		"ListPolicies":            s.listManaged,
		"DeletePolicy":            s.deleteManaged,
		"CreatePolicyVersion":     s.createVersion,
		"GetPolicyVersion":        s.getVersion,
		"ListPolicyVersions":      s.listVersions,
		"SetDefaultPolicyVersion": s.setDefaultVersion,
		"DeletePolicyVersion":     s.deleteVersion,
		"ListEntitiesForPolicy":   s.listEntities,
		"TagPolicy":               s.tagManaged,
		"UntagPolicy":             s.untagManaged,
		"ListPolicyTags":          s.listManagedTags,
	}
}

// checkManaged checks a document that is to become a version.
func checkManaged(text string) error {
	n := 0
	for _, c := range text {
		if !unicode.IsSpace(c) {
			n++
		}
	}
	if n > maxManaged {
		return refuse(http.StatusConflict, "LimitExceeded", "Cannot exceed quota for PolicySize: %d", maxManaged)
	}
	if _, err := ParsePolicy(text); err != nil {
		return refuse(http.StatusBadRequest, "MalformedPolicyDocument", "%s", err)
	}
	return nil
}

func (s *Service) createManaged(ctx context.Context, f url.Values) (string, error) {
	p := &store.Policy{
		Name: f.Get("PolicyName"), Path: cmp.Or(f.Get("Path"), "/"), Description: f.Get("Description"), CreatedAt: s.now().UTC(), Default: 1, Last: 1,
	}
	p.UpdatedAt = p.CreatedAt
	p.Versions = map[int]store.PolicyVersion{1: {Document: f.Get("PolicyDocument"), CreatedAt: p.CreatedAt}}
	switch {
	case !policyName.MatchString(p.Name):
		return "", invalid("The specified value for policyName is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-")
	case !rolePath.MatchString(p.Path) || len(p.Path) > 512:
		return "", invalid("The specified value for path is invalid. It must begin and end with / and contain only alphanumeric characters and/or / characters.")
	case len(p.Description) > 1000:
		return "", invalid("The description must have at most 1000 characters.")
	}
	var err error
	if p.Tags, err = tags(f); err != nil {
		return "", err
	}
	if err := checkManaged(f.Get("PolicyDocument")); err != nil {
		return "", err
	}
	var b [10]byte
	rand.Read(b[:]) //nolint:errcheck // never fails (crypto/rand)
	p.ID = "ANPA" + base32.StdEncoding.EncodeToString(b[:])
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		if _, there := store.Get(tx, store.Policies, p.Name); there {
			return refuse(http.StatusConflict, "EntityAlreadyExists", "A policy called %s already exists. Duplicate names are not allowed.", p.Name)
		}
		store.Put(tx, store.Policies, p.Name, p)
		return nil
	})
	if err != nil {
		return "", err
	}
	return el("Policy", s.policyXML(p, 0)), nil
}

func (s *Service) policyXML(p *store.Policy, attached int) string {
	out := txt("PolicyName", p.Name) + txt("PolicyId", p.ID) + txt("Arn", s.policyARN(p)) + txt("Path", p.Path) +
		txt("DefaultVersionId", versionID(p.Default)) + txt("AttachmentCount", strconv.Itoa(attached)) +
		"<PermissionsBoundaryUsageCount>0</PermissionsBoundaryUsageCount><IsAttachable>true</IsAttachable>" +
		txt("CreateDate", date(p.CreatedAt)) + txt("UpdateDate", date(p.UpdatedAt))
	if p.Description != "" {
		out += txt("Description", p.Description)
	}
	if len(p.Tags) > 0 {
		out += members("Tags", p.Tags, tag)
	}
	return out
}

func versionID(n int) string { return "v" + strconv.Itoa(n) }

// holders lists the roles that a policy is attached to.
func holders(r store.Reader, arn string) (out []*store.Role) {
	store.Scan(r, store.Roles, "", func(_ string, role *store.Role) bool {
		if slices.Contains(role.Attached, arn) {
			out = append(out, role)
		}
		return true
	})
	return out
}

// managed finds the policy that a request names, and who has it.
func (s *Service) managed(f url.Values) (p *store.Policy, roles []*store.Role, err error) {
	arn := f.Get("PolicyArn")
	s.Store.View(func(r store.Reader) {
		if p, err = s.findManaged(r, arn); err == nil {
			roles = holders(r, arn)
		}
	})
	return p, roles, err
}

// changeManaged changes the policy that a request names.
func (s *Service) changeManaged(ctx context.Context, f url.Values, fn func(p *store.Policy) error) error {
	return s.Store.Update(ctx, func(tx *store.Tx) error {
		old, err := s.findManaged(tx, f.Get("PolicyArn"))
		if err != nil {
			return err
		}
		p := *old
		p.Versions, p.Tags = maps.Clone(old.Versions), slices.Clone(old.Tags)
		if err := fn(&p); err != nil {
			return err
		}
		store.Put(tx, store.Policies, p.Name, &p)
		return nil
	})
}

func (s *Service) getManaged(_ context.Context, f url.Values) (string, error) {
	arn := f.Get("PolicyArn")
	if doc, known := awsManaged[nameOf(arn)]; known && ofAWS(arn) && doc != "" {
		return el("Policy", txt("PolicyName", nameOf(arn)), txt("PolicyId", "ANPA"+strings.ToUpper(nameOf(arn))), txt("Arn", arn), txt("Path", "/"),
			"<DefaultVersionId>v1</DefaultVersionId><IsAttachable>true</IsAttachable>"), nil
	}
	p, roles, err := s.managed(f)
	if err != nil {
		return "", err
	}
	return el("Policy", s.policyXML(p, len(roles))), nil
}

func (s *Service) listManaged(_ context.Context, f url.Values) (string, error) {
	limit, err := strconv.Atoi(cmp.Or(f.Get("MaxItems"), "100"))
	if err != nil || limit < 1 || limit > 1000 {
		return "", invalid("MaxItems must be between 1 and 1000.")
	}
	type row struct {
		p *store.Policy
		n int
	}
	var list []row
	s.Store.View(func(r store.Reader) {
		if f.Get("Scope") == "AWS" {
			return
		}
		store.ScanAfter(r, store.Policies, "", f.Get("Marker"), func(_ string, p *store.Policy) bool {
			n := len(holders(r, s.policyARN(p)))
			if strings.HasPrefix(p.Path, cmp.Or(f.Get("PathPrefix"), "/")) && (n > 0 || f.Get("OnlyAttached") != "true") {
				list = append(list, row{p, n})
			}
			return len(list) <= limit
		})
	})
	end := notTruncated
	if len(list) > limit {
		list = list[:limit]
		end = "<IsTruncated>true</IsTruncated>" + txt("Marker", list[limit-1].p.Name)
	}
	return members("Policies", list, func(r row) string { return s.policyXML(r.p, r.n) }) + end, nil
}

func (s *Service) deleteManaged(ctx context.Context, f url.Values) (string, error) {
	arn := f.Get("PolicyArn")
	return "", s.Store.Update(ctx, func(tx *store.Tx) error {
		p, err := s.findManaged(tx, arn)
		switch {
		case err != nil:
			return err
		case len(holders(tx, arn)) > 0:
			return refuse(http.StatusConflict, "DeleteConflict", "Cannot delete a policy attached to entities.")
		case len(p.Versions) > 1:
			return refuse(http.StatusConflict, "DeleteConflict", "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The default version is deleted with the policy.")
		}
		store.Delete(tx, store.Policies, p.Name)
		return nil
	})
}

func versionXML(n int, v store.PolicyVersion, isDefault, withDocument bool) string {
	out := ""
	if withDocument {
		out = doc("Document", v.Document)
	}
	return out + txt("VersionId", versionID(n)) + txt("IsDefaultVersion", strconv.FormatBool(isDefault)) + txt("CreateDate", date(v.CreatedAt))
}

func (s *Service) createVersion(ctx context.Context, f url.Values) (string, error) {
	text := f.Get("PolicyDocument")
	if err := checkManaged(text); err != nil {
		return "", err
	}
	made, at := 0, s.now().UTC()
	err := s.changeManaged(ctx, f, func(p *store.Policy) error {
		if len(p.Versions) >= maxVersions {
			return refuse(http.StatusConflict, "LimitExceeded", "A managed policy can have up to %d versions. Before you create a new version, you must delete an existing version.", maxVersions)
		}
		p.Last++
		made = p.Last
		p.Versions[made] = store.PolicyVersion{Document: text, CreatedAt: at}
		if f.Get("SetAsDefault") == "true" {
			p.Default = made
		}
		p.UpdatedAt = at
		return nil
	})
	if err != nil {
		return "", err
	}
	return el("PolicyVersion", versionXML(made, store.PolicyVersion{CreatedAt: at}, f.Get("SetAsDefault") == "true", false)), nil
}

// version reads VersionId and finds it in a policy.
func version(p *store.Policy, f url.Values) (int, store.PolicyVersion, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(f.Get("VersionId"), "v"))
	v, ok := p.Versions[n]
	if err != nil || !ok || f.Get("VersionId") != versionID(n) {
		return 0, v, refuse(http.StatusNotFound, "NoSuchEntity", "Policy %s version %.32s does not exist or is not attachable.", p.Name, f.Get("VersionId"))
	}
	return n, v, nil
}

func (s *Service) getVersion(_ context.Context, f url.Values) (string, error) {
	if arn := f.Get("PolicyArn"); ofAWS(arn) && awsManaged[nameOf(arn)] != "" && f.Get("VersionId") == "v1" {
		return el("PolicyVersion", versionXML(1, store.PolicyVersion{Document: awsManaged[nameOf(arn)]}, true, true)), nil
	}
	p, _, err := s.managed(f)
	if err != nil {
		return "", err
	}
	n, v, err := version(p, f)
	if err != nil {
		return "", err
	}
	return el("PolicyVersion", versionXML(n, v, n == p.Default, true)), nil
}

func (s *Service) listVersions(_ context.Context, f url.Values) (string, error) {
	p, _, err := s.managed(f)
	if err != nil {
		return "", err
	}
	numbers := slices.Sorted(maps.Keys(p.Versions))
	slices.Reverse(numbers)
	return members("Versions", numbers, func(n int) string { return versionXML(n, p.Versions[n], n == p.Default, false) }) + notTruncated, nil
}

func (s *Service) setDefaultVersion(ctx context.Context, f url.Values) (string, error) {
	return "", s.changeManaged(ctx, f, func(p *store.Policy) (err error) {
		n, _, err := version(p, f)
		if err == nil {
			p.Default, p.UpdatedAt = n, s.now().UTC()
		}
		return err
	})
}

func (s *Service) deleteVersion(ctx context.Context, f url.Values) (string, error) {
	return "", s.changeManaged(ctx, f, func(p *store.Policy) error {
		n, _, err := version(p, f)
		if err != nil {
			return err
		}
		if n == p.Default {
			return refuse(http.StatusConflict, "DeleteConflict", "Cannot delete the default version of a policy.")
		}
		delete(p.Versions, n)
		return nil
	})
}

func (s *Service) listEntities(_ context.Context, f url.Values) (string, error) {
	arn := f.Get("PolicyArn")
	var roles []*store.Role
	if ofAWS(arn) {
		s.Store.View(func(r store.Reader) { roles = holders(r, arn) })
	} else {
		var err error
		if _, roles, err = s.managed(f); err != nil {
			return "", err
		}
	}
	return el("PolicyGroups") + el("PolicyUsers") + members("PolicyRoles", roles, func(r *store.Role) string {
		return txt("RoleName", r.Name) + txt("RoleId", r.ID)
	}) + notTruncated, nil
}

func (s *Service) tagManaged(ctx context.Context, f url.Values) (string, error) {
	set, err := tags(f)
	if err != nil {
		return "", err
	}
	return "", s.changeManaged(ctx, f, func(p *store.Policy) error {
		for _, t := range set {
			if i := slices.IndexFunc(p.Tags, func(o store.RoleTag) bool { return o.Key == t.Key }); i >= 0 {
				p.Tags[i] = t
			} else {
				p.Tags = append(p.Tags, t)
			}
		}
		if len(p.Tags) > maxTags {
			return refuse(http.StatusConflict, "LimitExceeded", "A policy may have up to %d tags.", maxTags)
		}
		return nil
	})
}

func (s *Service) untagManaged(ctx context.Context, f url.Values) (string, error) {
	return "", s.changeManaged(ctx, f, func(p *store.Policy) error {
		for n := 1; f.Has(fmt.Sprintf("TagKeys.member.%d", n)) && n <= maxTags; n++ {
			key := f.Get(fmt.Sprintf("TagKeys.member.%d", n))
			p.Tags = slices.DeleteFunc(p.Tags, func(t store.RoleTag) bool { return t.Key == key })
		}
		return nil
	})
}

func (s *Service) listManagedTags(_ context.Context, f url.Values) (string, error) {
	p, _, err := s.managed(f)
	if err != nil {
		return "", err
	}
	return members("Tags", p.Tags, tag) + notTruncated, nil
}
