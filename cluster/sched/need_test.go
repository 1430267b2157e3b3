package sched

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
)

func container(name string, cpu int32, memory, soft *int32, ports ...types.PortMapping) types.ContainerDefinition {
	return types.ContainerDefinition{Name: aws.String(name), Cpu: cpu, Memory: memory, MemoryReservation: soft, PortMappings: ports}
}

func port(containerPort, hostPort int32, protocol types.TransportProtocol) types.PortMapping {
	return types.PortMapping{ContainerPort: aws.Int32(containerPort), HostPort: aws.Int32(hostPort), Protocol: protocol}
}

func TestNeedOf(t *testing.T) {
	i := aws.Int32
	ports := []types.PortMapping{port(80, 8080, types.TransportProtocolTcp), port(53, 53, types.TransportProtocolUdp), port(90, 0, types.TransportProtocolTcp)}
	gpu := container("g", 0, i(10), nil)
	gpu.ResourceRequirements = []types.ResourceRequirement{{Type: types.ResourceTypeGpu, Value: aws.String("2")}}
	tests := []struct {
		name     string
		def      types.TaskDefinition
		override *types.TaskOverride
		want     Need
	}{
		{"sum of containers", types.TaskDefinition{ContainerDefinitions: []types.ContainerDefinition{
			container("a", 256, i(512), nil), container("b", 128, i(512), i(100)),
		}}, nil, Need{CPU: 384, Memory: 612}},
		{"task sizes win", types.TaskDefinition{Cpu: aws.String("1 vCPU"), Memory: aws.String("2GB"), ContainerDefinitions: []types.ContainerDefinition{
			container("a", 256, i(512), nil),
		}}, nil, Need{CPU: 1024, Memory: 2048}},
		{"bridge ports", types.TaskDefinition{NetworkMode: types.NetworkModeBridge, ContainerDefinitions: []types.ContainerDefinition{
			container("a", 0, i(6), nil, ports...),
		}}, nil, Need{Memory: 6, TCP: []uint16{8080}, UDP: []uint16{53}}},
		{"default mode is bridge", types.TaskDefinition{ContainerDefinitions: []types.ContainerDefinition{
			container("a", 0, i(6), nil, ports...),
		}}, nil, Need{Memory: 6, TCP: []uint16{8080}, UDP: []uint16{53}}},
		{"host ports", types.TaskDefinition{NetworkMode: types.NetworkModeHost, ContainerDefinitions: []types.ContainerDefinition{
			container("a", 0, i(6), nil, ports[2]), container("b", 0, i(6), nil, ports[2]),
		}}, nil, Need{Memory: 12, TCP: []uint16{90}}},
		{"awsvpc takes no host port", types.TaskDefinition{NetworkMode: types.NetworkModeAwsvpc, ContainerDefinitions: []types.ContainerDefinition{
			container("a", 0, i(6), nil, port(80, 80, "")),
		}}, nil, Need{Memory: 6}},
		{"overrides", types.TaskDefinition{ContainerDefinitions: []types.ContainerDefinition{
			container("a", 256, i(512), nil), container("b", 128, i(512), i(100)),
		}}, &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{
			{Name: aws.String("a"), Cpu: i(10), Memory: i(20)}, {Name: aws.String("b"), MemoryReservation: i(1)},
		}}, Need{CPU: 138, Memory: 21}},
		{"task override", types.TaskDefinition{Cpu: aws.String("512"), Memory: aws.String("512"), ContainerDefinitions: []types.ContainerDefinition{
			container("a", 256, i(512), nil),
		}}, &types.TaskOverride{Cpu: aws.String(".25 vcpu"), Memory: aws.String("300")}, Need{CPU: 256, Memory: 300}},
		{"GPUs", types.TaskDefinition{ContainerDefinitions: []types.ContainerDefinition{gpu}}, nil, Need{Memory: 10, GPUs: 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NeedOf(&tt.def, tt.override)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("need (-want +got):\n%s", d)
			}
		})
	}
}

func TestNeedOfErrors(t *testing.T) {
	bad := container("g", 0, aws.Int32(1), nil)
	bad.ResourceRequirements = []types.ResourceRequirement{{Type: types.ResourceTypeGpu, Value: aws.String("-1")}}
	one := []types.ContainerDefinition{container("a", 1, nil, nil)}
	for text, def := range map[string]types.TaskDefinition{
		`cpu "much"`:             {Cpu: aws.String("much"), ContainerDefinitions: one},
		`memory "NaN GB"`:        {Memory: aws.String("NaN GB"), ContainerDefinitions: one},
		"container \"g\"":        {ContainerDefinitions: []types.ContainerDefinition{bad}},
		"cannot be negative":     {ContainerDefinitions: []types.ContainerDefinition{container("n", -5, nil, nil)}},
		"between 1 and 65535":    {ContainerDefinitions: []types.ContainerDefinition{container("p", 0, nil, nil, port(80, 70000, ""))}},
		`memory "-1" is neither`: {Memory: aws.String("-1"), ContainerDefinitions: one},
	} {
		if _, err := NeedOf(&def, nil); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want an error with %q", err, text)
		}
	}
}

func TestRules(t *testing.T) {
	distinct := types.PlacementConstraint{Type: types.PlacementConstraintTypeDistinctInstance}
	member := func(e string) types.PlacementConstraint {
		return types.PlacementConstraint{Type: types.PlacementConstraintTypeMemberOf, Expression: &e}
	}
	var many []types.PlacementConstraint
	for range 11 {
		many = append(many, distinct)
	}
	long := "attribute:x == " + strings.Repeat("y", 2000)
	for _, tt := range []struct {
		in   []types.PlacementConstraint
		want string
	}{
		{[]types.PlacementConstraint{distinct, member("attribute:x exists")}, ""},
		{many, "at most 10"},
		{[]types.PlacementConstraint{member("")}, "needs an expression"},
		{[]types.PlacementConstraint{distinct, member("x == y")}, "placementConstraints[1]: expression: position 1"},
		{[]types.PlacementConstraint{member(long)}, "at most 2000"},
		{[]types.PlacementConstraint{{Type: "near"}}, "neither distinctInstance nor memberOf"},
		{[]types.PlacementConstraint{{Type: distinct.Type, Expression: &long}}, "takes no expression"},
	} {
		got, err := Constraints(nil, tt.in)
		if !saysError(err, tt.want) || err == nil && len(got) != len(tt.in) {
			t.Errorf("Constraints(%v): %v, %v; want error %q", tt.in, got, err, tt.want)
		}
	}
	expr := "attribute:x exists"
	def := []types.TaskDefinitionPlacementConstraint{{Type: types.TaskDefinitionPlacementConstraintTypeMemberOf, Expression: &expr}}
	if got, err := Constraints(def, []types.PlacementConstraint{distinct}); err != nil || len(got) != 2 || got[0].Query == nil || got[1].Query != nil {
		t.Errorf("constraints of definition and request: %v, %v", got, err)
	}

	st := func(kind types.PlacementStrategyType, field string) types.PlacementStrategy {
		return types.PlacementStrategy{Type: kind, Field: &field}
	}
	for _, tt := range []struct {
		in   types.PlacementStrategy
		want Strategy
		err  string
	}{
		{st("random", ""), Strategy{Kind: Random}, ""},
		{st("random", "cpu"), Strategy{}, "takes no field"},
		{st("binpack", "CPU"), Strategy{Kind: BinpackCPU}, ""},
		{st("binpack", "memory"), Strategy{Kind: BinpackMemory}, ""},
		{st("binpack", "disk"), Strategy{}, "neither cpu nor memory"},
		{st("spread", "instanceId"), Strategy{Kind: SpreadInstance}, ""},
		{st("spread", "host"), Strategy{Kind: SpreadInstance}, ""},
		{st("spread", "attribute:rack"), Strategy{Kind: SpreadAttribute, Attribute: "rack"}, ""},
		{st("spread", "rack"), Strategy{}, "attribute:NAME"},
		{st("stack", "rack"), Strategy{}, "none of spread"},
	} {
		got, err := Strategies([]types.PlacementStrategy{tt.in})
		if !saysError(err, tt.err) || err == nil && got[0] != tt.want {
			t.Errorf("Strategies(%v): %v, %v", tt.in, got, err)
		}
	}
	if _, err := Strategies(make([]types.PlacementStrategy, 6)); !saysError(err, "at most 5") {
		t.Errorf("six strategies: %v", err)
	}
}

func saysError(err error, text string) bool {
	if text == "" || err == nil {
		return text == "" && err == nil
	}
	return strings.Contains(err.Error(), text)
}
