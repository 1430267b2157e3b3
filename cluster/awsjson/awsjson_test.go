package awsjson

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMarshal(t *testing.T) {
	at := time.UnixMilli(1700000000042)
	tests := map[string]struct {
		in   any
		want string
	}{
		"absent members are left out": {&ecs.CreateClusterInput{ClusterName: aws.String("a")}, `{"clusterName":"a"}`},
		"empty list stays":            {&ecs.ListClustersOutput{ClusterArns: []string{}}, `{"clusterArns":[]}`},
		"numbers without absence":     {&types.Resource{Name: aws.String("CPU"), IntegerValue: 5}, `{"doubleValue":0.0,"integerValue":5,"longValue":0,"name":"CPU"}`},
		"pointer to zero":             {&types.PortMapping{HostPort: aws.Int32(0)}, `{"hostPort":0}`},
		"timestamp":                   {&types.Deployment{CreatedAt: &at}, `{"createdAt":1700000000.042,"desiredCount":0,"failedTasks":0,"pendingCount":0,"runningCount":0}`},
		"map in key order":            {&types.LogConfiguration{Options: map[string]string{"b": "2", "a": "1"}}, `{"options":{"a":"1","b":"2"}}`},
		"escapes":                     {&types.KeyValuePair{Value: aws.String("a\"b\\\n\t\x01é\xff")}, `{"value":"a\"b\\\n\t\u0001é` + "\uFFFD" + `"}`},
		"first letter only":           {&types.ContainerInstance{Ec2InstanceId: aws.String("i")}, `{"agentConnected":false,"ec2InstanceId":"i","pendingTasksCount":0,"runningTasksCount":0,"version":0}`},
		"nil":                         {(*ecs.TagResourceOutput)(nil), `{}`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var want, got any
			b := Marshal(tc.in)
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatalf("%s: %v", b, err)
			}
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s\n%s", b, d)
			}
		})
	}
}

func TestUnmarshal(t *testing.T) {
	var got ecs.RegisterTaskDefinitionInput
	doc := ` { "family" : "f\u00e9\ud83d\ude00", "unknown": {"a":[1,-2.5e3,true,null,"x"]}, "cpu": null,
	"containerDefinitions":[{"name":"web","cpu":256,"memory":5.12e2,"essential":false,"environment":[],
	"dockerLabels":{"k":"v"},"portMappings":[{"containerPort":80,"hostPort":0}]}], "networkMode":"bridge"} `
	if err := Unmarshal([]byte(doc), &got); err != nil {
		t.Fatal(err)
	}
	want := ecs.RegisterTaskDefinitionInput{
		Family:      aws.String("fé😀"),
		NetworkMode: types.NetworkModeBridge,
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Cpu: 256, Memory: aws.Int32(512), Essential: aws.Bool(false),
			Environment:  []types.KeyValuePair{},
			DockerLabels: map[string]string{"k": "v"},
			PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), HostPort: aws.Int32(0)}},
		}},
	}
	opt := cmpopts.IgnoreUnexported(ecs.RegisterTaskDefinitionInput{}, types.ContainerDefinition{}, types.PortMapping{}, types.KeyValuePair{})
	if d := cmp.Diff(want, got, opt); d != "" {
		t.Error(d)
	}
	var again ecs.RegisterTaskDefinitionInput
	if err := Unmarshal(Marshal(&got), &again); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(got, again, opt); d != "" {
		t.Error("round trip", d)
	}
}

func TestTimestamps(t *testing.T) {
	for doc, want := range map[string]int64{
		`1700000000`: 1700000000000, `1700000000.5`: 1700000000500, `1.7e9`: 1700000000000,
		`"2023-11-14T22:13:20Z"`: 1700000000000, `0`: 0, `-1.5`: -1500,
	} {
		var d types.Deployment
		if err := Unmarshal([]byte(`{"createdAt":`+doc+`}`), &d); err != nil {
			t.Errorf("%s: %v", doc, err)
		} else if d.CreatedAt.UnixMilli() != want {
			t.Errorf("%s is %d ms", doc, d.CreatedAt.UnixMilli())
		}
	}
}

func TestTypeErrors(t *testing.T) {
	tests := map[string]string{
		`{"family":5}`:                                           "family: NUMBER_VALUE can not be converted to a String",
		`{"family":{}}`:                                          "family: START_OBJECT can not be converted to a String",
		`{"containerDefinitions":{}}`:                            "containerDefinitions: START_OBJECT can not be converted to a List",
		`{"containerDefinitions":["a"]}`:                         "containerDefinitions[0]: STRING_VALUE can not be converted to a Structure",
		`{"containerDefinitions":[{"memory":"1"}]}`:              "containerDefinitions[0].memory: STRING_VALUE can not be converted to an Integer",
		`{"containerDefinitions":[{"memory":1.5}]}`:              "containerDefinitions[0].memory: NUMBER_VALUE can not be converted to an Integer",
		`{"containerDefinitions":[{"memory":2147483648}]}`:       "containerDefinitions[0].memory: NUMBER_VALUE can not be converted to an Integer",
		`{"containerDefinitions":[{"memory":1e999}]}`:            "containerDefinitions[0].memory: NUMBER_VALUE can not be converted to an Integer",
		`{"containerDefinitions":[{},{"essential":"true"}]}`:     "containerDefinitions[1].essential: STRING_VALUE can not be converted to a Boolean",
		`{"containerDefinitions":[{"dockerLabels":{"a":true}}]}`: "containerDefinitions[0].dockerLabels.a: TRUE_VALUE can not be converted to a String",
		`{"containerDefinitions":[null]}`:                        "containerDefinitions[0]: NULL_VALUE can not be converted to a Structure",
		`[]`:                                                     "request: START_ARRAY can not be converted to a Structure",
		`"abc"`:                                                  "request: STRING_VALUE can not be converted to a Structure",
	}
	for doc, want := range tests {
		err := Unmarshal([]byte(doc), new(ecs.RegisterTaskDefinitionInput))
		var te *TypeError
		if !errors.As(err, &te) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", doc, err, want)
		}
	}
}

func TestSyntaxErrors(t *testing.T) {
	for _, doc := range []string{
		``, ` `, `{`, `{"family"`, `{"family":`, `{"family":"a`, `{"family":"a"`, `{"family":"a",}`, `{"family":"a"}x`,
		`{family:"a"}`, `{"x":01}`, `{"x":1.}`, `{"x":1e}`, `{"x":-}`, `{"x":tru}`, `{"x":"\q"}`, `{"x":"\u12"}`, `{"x":[1,]}`,
		`{"containerDefinitions":[` + strings.Repeat("{},", 100000) + `{}]}`,
		"{\"family\":\"a\nb\"}", `{"family":"a\`, `{"x":` + strings.Repeat("[", 100000), `{"x":` + strings.Repeat(`{"a":`, 1000),
	} {
		err := Unmarshal([]byte(doc), new(ecs.RegisterTaskDefinitionInput))
		var se *SyntaxError
		if !errors.As(err, &se) {
			t.Errorf("%.40q: got %v", doc, err)
		}
	}
}

func FuzzECSDecode(f *testing.F) {
	f.Add([]byte(`{"family":"f","containerDefinitions":[{"name":"a","image":"b","memory":5,"environment":[{"name":"x","value":"\u00e9"}]}],"tags":[{"key":"k"}]}`))
	f.Add([]byte(`{"a":{"b":[1,2,{"c":null}]},"ephemeralStorage":{"sizeInGiB":21}}`))
	f.Add([]byte(`{"family":"\ud83d\ude00\ud83d"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var in ecs.RegisterTaskDefinitionInput
		if err := Unmarshal(data, &in); err != nil {
			return
		}
		if !json.Valid(data) {
			t.Fatalf("accepted invalid JSON %q", data)
		}
		var again ecs.RegisterTaskDefinitionInput
		out := Marshal(&in)
		if err := Unmarshal(out, &again); err != nil {
			t.Fatalf("own output %q: %v", out, err)
		}
		if string(Marshal(&again)) != string(out) {
			t.Fatalf("round trip changed %q to %q", out, Marshal(&again))
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	doc := []byte(`{"family":"my-task","containerDefinitions":[{"name":"web","image":"my-image","portMappings":[{"containerPort":80,"hostPort":80}],"memory":512,"cpu":256}]}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := Unmarshal(doc, new(ecs.RegisterTaskDefinitionInput)); err != nil {
			b.Fatal(err)
		}
	}
}
