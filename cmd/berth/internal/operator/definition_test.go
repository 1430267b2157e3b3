package operator

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

const sample = `{"family":"my-task","containerDefinitions":[{"name":"web","image":"my-image",
"portMappings":[{"containerPort":80,"hostPort":80}],"memory":512,"cpu":256,"environment":[{"name":"A","value":"1"}]}]}`

// registered is what a cluster answers for in, with its defaults filled in.
func registered(t *testing.T, in *ecs.RegisterTaskDefinitionInput) *types.TaskDefinition {
	t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var d types.TaskDefinition
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	d.Revision, d.Status = 3, types.TaskDefinitionStatusActive
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		c.Essential = aws.Bool(true)
		c.MountPoints = []types.MountPoint{}
		for j := range c.PortMappings {
			c.PortMappings[j].Protocol = types.TransportProtocolTcp
		}
	}
	return &d
}

func TestADefinitionIsRegisteredAgainOnlyWhenItSaysSomethingElse(t *testing.T) {
	base, err := decodeDefinition([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	have := registered(t, base)
	for name, tt := range map[string]struct {
		change func(*ecs.RegisterTaskDefinitionInput)
		want   bool
	}{
		"unchanged":           {func(*ecs.RegisterTaskDefinitionInput) {}, true},
		"default spelled out": {func(in *ecs.RegisterTaskDefinitionInput) { in.ContainerDefinitions[0].Essential = aws.Bool(true) }, true},
		"essential false":     {func(in *ecs.RegisterTaskDefinitionInput) { in.ContainerDefinitions[0].Essential = aws.Bool(false) }, false},
		"other image":         {func(in *ecs.RegisterTaskDefinitionInput) { in.ContainerDefinitions[0].Image = aws.String("x") }, false},
		"member removed":      {func(in *ecs.RegisterTaskDefinitionInput) { in.ContainerDefinitions[0].Memory = nil }, false},
		"list emptied":        {func(in *ecs.RegisterTaskDefinitionInput) { in.ContainerDefinitions[0].Environment = nil }, false},
		"container added": {func(in *ecs.RegisterTaskDefinitionInput) {
			in.ContainerDefinitions = append(in.ContainerDefinitions, types.ContainerDefinition{Name: aws.String("b")})
		}, false},
		"task size added": {func(in *ecs.RegisterTaskDefinitionInput) { in.Cpu = aws.String("512") }, false},
		"other port": {func(in *ecs.RegisterTaskDefinitionInput) {
			in.ContainerDefinitions[0].PortMappings[0].HostPort = aws.Int32(81)
		}, false},
	} {
		in, err := decodeDefinition([]byte(sample))
		if err != nil {
			t.Fatal(err)
		}
		tt.change(in)
		if got := Says(have, in); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	if Says(nil, base) {
		t.Error("no definition was taken for one")
	}
}

func TestDefinitionErrorsSayWhere(t *testing.T) {
	for text, want := range map[string]string{
		"{\n\"family\": \"a\",\n}": "line 3",
		`{"famly":"a"}`:            `unknown field "famly"`,
		"{\"containerDefinitions\":[{\n\"memory\":\"x\"}]}": "line 2: member",
		`{"family":"a"} {"family":"b"}`:                     "something follows",
		``:                                                  "EOF",
	} {
		_, err := decodeDefinition([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

func FuzzDecodeDefinition(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"containerDefinitions":[null,{"environment":[{}]}],"volumes":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := decodeDefinition(b)
		if err != nil {
			return
		}
		enc, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var d types.TaskDefinition
		if err := json.Unmarshal(enc, &d); err != nil {
			t.Fatal(err)
		}
		if !Says(&d, in) {
			t.Errorf("a definition does not say what it says: %s", enc)
		}
	})
}
