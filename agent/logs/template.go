package logs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template/parse"
)

// render carries out a Go template on fields, whose values are strings, ints, bools, lists
// of strings, maps of strings and times. It has the language of text/template without its
// use of methods by name: a program that has that keeps every method of every type it
// links, which makes the agent a third larger.
func render(text string, fields map[string]any) (string, error) {
	trees, err := parse.Parse("tag", text, "", "", functions)
	if err != nil {
		return "", err
	}
	tree := trees["tag"]
	if tree == nil || tree.Root == nil {
		return "", nil // nothing but comments and definitions
	}
	r := renderer{vars: []variable{{"$", fields}}}
	if err := r.list(tree.Root, fields); err != nil && !errors.Is(err, errBreak) && !errors.Is(err, errContinue) {
		return "", fmt.Errorf("template: tag: %w", err)
	}
	return r.out.String(), nil
}

// functions are those of Docker's templates and of text/template, by name.
var functions = map[string]any{
	"json": call(toJSON), "split": call(split), "join": call(join), "upper": call(upper), "lower": call(lower),
	"title": call(title), "pad": call(pad), "truncate": call(truncate),
	"not": call(not), "len": call(length), "index": call(index), "print": call(print), "println": call(println), "printf": call(printf),
	"eq": call(equal), "ne": call(different),
	"and": call(last), "or": call(last), // these end early; see command
}

// call is a function of templates.
type call func(args []any) (any, error)

var (
	errBreak    = errors.New("{{break}} outside of {{range}}")
	errContinue = errors.New("{{continue}} outside of {{range}}")
)

// maxSteps bounds what one template does: nested ranges would multiply.
const maxSteps = 10000

// renderer is one execution of a template.
type renderer struct {
	out   strings.Builder
	vars  []variable
	steps int
}

type variable struct {
	name  string
	value any
}

func (r *renderer) list(l *parse.ListNode, dot any) error {
	if l == nil {
		return nil
	}
	for _, n := range l.Nodes {
		if r.steps++; r.steps > maxSteps || r.out.Len() > maxTag {
			return fmt.Errorf("the tag is longer than %d bytes, or its template does not end", maxTag)
		}
		if err := r.node(n, dot); err != nil {
			return err
		}
	}
	return nil
}

func (r *renderer) node(n parse.Node, dot any) error {
	switch n := n.(type) {
	case *parse.TextNode:
		r.out.Write(n.Text)
	case *parse.CommentNode:
	case *parse.ActionNode:
		v, err := r.pipe(n.Pipe, dot)
		if err != nil {
			return err
		}
		if _, all := v.(map[string]any); all {
			return fmt.Errorf("%s has no text: name one of its fields", n)
		}
		if len(n.Pipe.Decl) == 0 {
			r.out.WriteString(show(v))
		}
	case *parse.IfNode:
		return r.branch(&n.BranchNode, dot, false)
	case *parse.WithNode:
		return r.branch(&n.BranchNode, dot, true)
	case *parse.RangeNode:
		return r.loop(n, dot)
	case *parse.BreakNode:
		return errBreak
	case *parse.ContinueNode:
		return errContinue
	default:
		return fmt.Errorf("%s is not possible in a tag", n)
	}
	return nil
}

// branch carries out an if, or a with, whose value is the dot inside.
func (r *renderer) branch(b *parse.BranchNode, dot any, with bool) error {
	mark := len(r.vars)
	defer func() { r.vars = r.vars[:mark] }()
	v, err := r.pipe(b.Pipe, dot)
	switch {
	case err != nil:
		return err
	case !truth(v):
		return r.list(b.ElseList, dot)
	case with:
		return r.list(b.List, v)
	default:
		return r.list(b.List, dot)
	}
}

func (r *renderer) loop(n *parse.RangeNode, dot any) error {
	mark := len(r.vars)
	defer func() { r.vars = r.vars[:mark] }()
	v, err := r.pipe(n.Pipe, dot)
	if err != nil {
		return err
	}
	var keys, values []any
	switch v := v.(type) {
	case []string:
		for i, s := range v {
			keys, values = append(keys, i), append(values, s)
		}
	case map[string]string:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			keys, values = append(keys, k), append(values, v[k])
		}
	case nil:
	default:
		return fmt.Errorf("range can't iterate over %v", v)
	}
	if len(values) == 0 {
		return r.list(n.ElseList, dot)
	}
	for i := range values {
		switch len(n.Pipe.Decl) {
		case 1:
			r.assign(n.Pipe.Decl[0].Ident[0], values[i])
		case 2:
			r.assign(n.Pipe.Decl[0].Ident[0], keys[i])
			r.assign(n.Pipe.Decl[1].Ident[0], values[i])
		}
		inner := len(r.vars)
		err := r.list(n.List, values[i])
		r.vars = r.vars[:inner]
		switch {
		case errors.Is(err, errBreak):
			return nil
		case err != nil && !errors.Is(err, errContinue):
			return err
		}
	}
	return nil
}

// pipe is the value of a pipeline.
func (r *renderer) pipe(p *parse.PipeNode, dot any) (v any, err error) {
	if p == nil {
		return nil, nil
	}
	for i, c := range p.Cmds {
		var before []any
		if i > 0 {
			before = []any{v}
		}
		if v, err = r.command(c, dot, before); err != nil {
			return nil, err
		}
	}
	for _, d := range p.Decl {
		if p.IsAssign {
			r.assign(d.Ident[0], v)
		} else {
			r.vars = append(r.vars, variable{d.Ident[0], v})
		}
	}
	return v, nil
}

// command is one part of a pipeline; before is the value of the part in front of it.
func (r *renderer) command(c *parse.CommandNode, dot any, before []any) (any, error) {
	id, isCall := c.Args[0].(*parse.IdentifierNode)
	if !isCall {
		if len(c.Args) > 1 || len(before) > 0 {
			return nil, fmt.Errorf("%s is no function and takes no arguments", c.Args[0])
		}
		return r.value(c.Args[0], dot)
	}
	f, ok := functions[id.Ident].(call)
	if !ok {
		return nil, fmt.Errorf("%q is no function of tags", id.Ident)
	}
	var args []any
	for _, a := range c.Args[1:] {
		v, err := r.value(a, dot)
		if err != nil {
			return nil, err
		}
		if id.Ident == "and" && !truth(v) || id.Ident == "or" && truth(v) {
			return v, nil
		}
		args = append(args, v)
	}
	v, err := f(append(args, before...))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return v, nil
}

func (r *renderer) value(n parse.Node, dot any) (any, error) {
	switch n := n.(type) {
	case *parse.DotNode:
		return dot, nil
	case *parse.NilNode:
		return nil, errors.New("nil is no value")
	case *parse.BoolNode:
		return n.True, nil
	case *parse.StringNode:
		return n.Text, nil
	case *parse.NumberNode:
		if !n.IsInt {
			return nil, fmt.Errorf("%s is not a whole number", n)
		}
		return int(n.Int64), nil
	case *parse.FieldNode:
		return chain(dot, n.Ident)
	case *parse.VariableNode:
		return r.variable(n.Ident)
	case *parse.PipeNode:
		return r.pipe(n, dot)
	case *parse.ChainNode:
		v, err := r.value(n.Node, dot)
		if err != nil {
			return nil, err
		}
		return chain(v, n.Field)
	case *parse.IdentifierNode:
		return r.command(&parse.CommandNode{NodeType: parse.NodeCommand, Args: []parse.Node{n}}, dot, nil)
	default:
		return nil, fmt.Errorf("%s is not possible in a tag", n)
	}
}

// variable is the value of $NAME or $NAME.FIELD; $ alone is where the template began.
func (r *renderer) variable(ident []string) (any, error) {
	for _, v := range slices.Backward(r.vars) {
		if v.name == ident[0] {
			return chain(v.value, ident[1:])
		}
	}
	return nil, fmt.Errorf("undefined variable %q", ident[0])
}

func (r *renderer) assign(name string, v any) {
	for i := range slices.Backward(r.vars) {
		if r.vars[i].name == name {
			r.vars[i].value = v
			return
		}
	}
}
