package ec2

import (
	"bytes"
	"encoding/xml"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// node is one element of an answer.
type node struct {
	name    string
	text    string
	members []node
}

func text(name, value string) node { return node{name: name, text: value} }

func number(name string, n int) node { return text(name, strconv.Itoa(n)) }

func boolean(name string, b bool) node { return text(name, strconv.FormatBool(b)) }

// list is an element with the given elements inside, in EC2 each called item.
func list(name string, items ...node) node { return node{name: name, members: items} }

func item(members ...node) node { return node{name: "item", members: members} }

type document struct {
	name, namespace string
	members         []node
}

func (d document) encode() []byte {
	var b bytes.Buffer
	b.WriteString(xml.Header)
	b.WriteString("<" + d.name)
	if d.namespace != "" {
		b.WriteString(` xmlns="` + d.namespace + `"`)
	}
	b.WriteString(">\n")
	for i := range d.members {
		d.members[i].encode(&b)
	}
	b.WriteString("</" + d.name + ">\n")
	return b.Bytes()
}

func (n *node) encode(b *bytes.Buffer) {
	if n.text == "" && len(n.members) == 0 {
		b.WriteString("<" + n.name + "/>")
		return
	}
	b.WriteString("<" + n.name + ">")
	xml.EscapeText(b, []byte(n.text)) //nolint:errcheck // a buffer takes everything
	for i := range n.members {
		n.members[i].encode(b)
	}
	b.WriteString("</" + n.name + ">")
}

// form is the parameters of a request.
type form struct{ values url.Values }

func (f form) get(name string) string { return f.values.Get(name) }

func (f form) has(name string) bool { return f.values.Has(name) }

// list reads NAME.1, NAME.2, ….
func (f form) list(name string) ([]string, error) {
	var out []string
	for i := 1; ; i++ {
		key := name + "." + strconv.Itoa(i)
		if !f.values.Has(key) {
			return out, nil
		}
		if i > maxItems {
			return nil, failure("InvalidParameterValue", "%s has more than %d items.", name, maxItems)
		}
		out = append(out, f.values.Get(key))
	}
}

// structures reads NAME.1.…, NAME.2.…: the part of the form of each, without its prefix.
func (f form) structures(name string) ([]form, error) {
	parts := map[int]url.Values{}
	for key, v := range f.values {
		rest, ok := strings.CutPrefix(key, name+".")
		if !ok {
			continue
		}
		at, member, ok := strings.Cut(rest, ".")
		n, err := strconv.Atoi(at)
		if !ok || err != nil || n < 1 || n > maxItems {
			return nil, failure("InvalidParameterValue", "%s is not a member of a list of at most %d.", clip(key), maxItems)
		}
		if parts[n] == nil {
			parts[n] = url.Values{}
		}
		parts[n][member] = v
	}
	order := make([]int, 0, len(parts))
	for n := range parts {
		order = append(order, n)
	}
	slices.Sort(order)
	out := make([]form, 0, len(order))
	for _, n := range order {
		out = append(out, form{parts[n]})
	}
	return out, nil
}

// filter is one filter of a Describe operation.
type filter struct {
	name   string
	values []string
}

func (f form) filters() ([]filter, error) {
	parts, err := f.structures("Filter")
	if err != nil {
		return nil, err
	}
	var out []filter
	for _, p := range parts {
		values, err := p.list("Value")
		if err != nil {
			return nil, err
		}
		out = append(out, filter{p.get("Name"), values})
	}
	return out, nil
}

// matches reports whether what a filter asks for, by its name, is among the values that
// get returns for that name. Values may have the wildcards * and ?. A filter that get
// does not know is an error.
func matches(filters []filter, tags map[string]string, get func(name string) ([]string, bool)) (bool, error) {
	for _, f := range filters {
		have, known := tagValues(f.name, tags)
		if !known {
			have, known = get(f.name)
		}
		if !known {
			return false, failure("InvalidParameterValue", "The filter '%s' is invalid", clip(f.name))
		}
		if !slices.ContainsFunc(have, func(h string) bool {
			return slices.ContainsFunc(f.values, func(p string) bool { return like(p, h) })
		}) {
			return false, nil
		}
	}
	return true, nil
}

// tagValues are the values of the filters that every resource with tags has.
func tagValues(name string, tags map[string]string) ([]string, bool) {
	if key, ok := strings.CutPrefix(name, "tag:"); ok {
		if v, has := tags[key]; has {
			return []string{v}, true
		}
		return nil, true
	}
	var out []string
	switch name {
	case "tag-key":
		for k := range tags {
			out = append(out, k)
		}
		return out, true
	case "tag-value":
		for _, v := range tags {
			out = append(out, v)
		}
		return out, true
	}
	return nil, false
}

// like matches a pattern with * and ?. It takes time in the product of the lengths at
// most.
func like(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i] && pattern[p] != '*'):
			p++
			i++
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// tagSet is the tags of a resource, in the order of their keys.
func tagSet(tags map[string]string) node {
	keys := make([]string, 0, len(tags))
	for k := range tags {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	n := node{name: "tagSet"}
	for _, k := range keys {
		n.members = append(n.members, item(text("key", k), text("value", tags[k])))
	}
	return n
}

// tagsOf reads the tags that a request gives a new resource of a kind.
func (f form) tagsOf(kind string) (map[string]string, error) {
	specs, err := f.structures("TagSpecification")
	if err != nil {
		return nil, err
	}
	tags := map[string]string{}
	for _, s := range specs {
		if s.get("ResourceType") != kind {
			continue
		}
		if err := s.addTags(tags); err != nil {
			return nil, err
		}
	}
	return tags, nil
}

// addTags reads Tag.1.Key, Tag.1.Value, ….
func (f form) addTags(tags map[string]string) error {
	list, err := f.structures("Tag")
	if err != nil {
		return err
	}
	for _, t := range list {
		key, value := t.get("Key"), t.get("Value")
		if key == "" || len(key) > 128 || len(value) > 256 || strings.HasPrefix(key, "aws:") {
			return failure("InvalidParameterValue", "Tag key '%s' is empty, too long or reserved, or its value is too long.", clip(key))
		}
		tags[key] = value
	}
	if len(tags) > maxTags {
		return failure("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
	}
	return nil
}
