package sched

import (
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// Limits of a request (ECS API reference, "Placement").
const (
	MaxConstraints      = 10   // the definition's and the request's together
	MaxStrategies       = 5    // of one request
	MaxConstraintLength = 2000 // characters of one memberOf expression
)

// Constraint narrows the candidates: distinctInstance when Query is nil, else memberOf.
type Constraint struct{ Query *Query }

// Constraints compiles those of the task definition and of the request. The error
// names the constraint and is fit for an InvalidParameterException.
func Constraints(def []types.TaskDefinitionPlacementConstraint, req []types.PlacementConstraint) ([]Constraint, error) {
	if n := len(def) + len(req); n > MaxConstraints {
		return nil, fmt.Errorf("%d placement constraints given, at most %d are allowed with those of the task definition", n, MaxConstraints)
	}
	var out []Constraint
	for i, c := range def {
		k, err := constraint(string(c.Type), c.Expression)
		if err != nil {
			return nil, fmt.Errorf("placementConstraints[%d] of the task definition: %w", i, err)
		}
		out = append(out, k)
	}
	for i, c := range req {
		k, err := constraint(string(c.Type), c.Expression)
		if err != nil {
			return nil, fmt.Errorf("placementConstraints[%d]: %w", i, err)
		}
		out = append(out, k)
	}
	return out, nil
}

func constraint(kind string, expression *string) (Constraint, error) {
	switch kind {
	case string(types.PlacementConstraintTypeDistinctInstance):
		if given(expression) {
			return Constraint{}, fmt.Errorf("distinctInstance takes no expression")
		}
		return Constraint{}, nil
	case string(types.PlacementConstraintTypeMemberOf):
		if !given(expression) {
			return Constraint{}, fmt.Errorf("memberOf needs an expression of the cluster query language")
		}
		if n := len(*expression); n > MaxConstraintLength {
			return Constraint{}, fmt.Errorf("expression has %d characters, at most %d are allowed", n, MaxConstraintLength)
		}
		q, err := ParseQuery(*expression)
		if err != nil {
			return Constraint{}, fmt.Errorf("expression: %w", err)
		}
		return Constraint{Query: q}, nil
	}
	return Constraint{}, fmt.Errorf("type %q is neither distinctInstance nor memberOf", kind)
}

// Kind is a placement strategy.
type Kind int

// Kinds of strategies. SpreadInstance is "spread" over instanceId or host.
const (
	SpreadAttribute Kind = iota
	SpreadInstance
	BinpackCPU
	BinpackMemory
	Random
)

// Strategy is one step of ordering the candidates.
type Strategy struct {
	Kind      Kind
	Attribute string // of SpreadAttribute, without the prefix "attribute:"
}

// Strategies compiles those of a request; none gives none, and Place then uses its
// default. The error is fit for an InvalidParameterException.
func Strategies(in []types.PlacementStrategy) ([]Strategy, error) {
	if len(in) > MaxStrategies {
		return nil, fmt.Errorf("%d placement strategies given, at most %d are allowed", len(in), MaxStrategies)
	}
	var out []Strategy
	for i, p := range in {
		s, err := strategy(p)
		if err != nil {
			return nil, fmt.Errorf("placementStrategy[%d]: %w", i, err)
		}
		out = append(out, s)
	}
	return out, nil
}

func strategy(p types.PlacementStrategy) (Strategy, error) {
	field := deref(p.Field)
	switch p.Type {
	case types.PlacementStrategyTypeRandom:
		if field != "" {
			return Strategy{}, fmt.Errorf("random takes no field, %q given", field)
		}
		return Strategy{Kind: Random}, nil
	case types.PlacementStrategyTypeBinpack:
		switch strings.ToLower(field) {
		case "cpu":
			return Strategy{Kind: BinpackCPU}, nil
		case "memory":
			return Strategy{Kind: BinpackMemory}, nil
		}
		return Strategy{}, fmt.Errorf("binpack field %q is neither cpu nor memory", field)
	case types.PlacementStrategyTypeSpread:
		if strings.EqualFold(field, "instanceId") || strings.EqualFold(field, "host") {
			return Strategy{Kind: SpreadInstance}, nil
		}
		name, ok := strings.CutPrefix(field, "attribute:")
		if !ok || name == "" {
			return Strategy{}, fmt.Errorf("spread field %q is none of instanceId, host and attribute:NAME", field)
		}
		return Strategy{Kind: SpreadAttribute, Attribute: name}, nil
	}
	return Strategy{}, fmt.Errorf("type %q is none of spread, binpack and random", p.Type)
}
