package awsjson

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
)

func TestDocument(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.FixedZone("", 3600))
	in := types.Task{
		TaskArn: aws.String("arn"), CreatedAt: &at, Version: 7,
		Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{
			Name: aws.String("web"), Environment: []types.KeyValuePair{{Name: aws.String("PASSWORD"), Value: aws.String("hunter2")}},
		}}},
	}
	b := AppendDocument(nil, &in, func(member string) bool { return member == "environment" })
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	want := map[string]any{
		"taskArn": "arn", "createdAt": "2026-03-04T04:06:07.089Z", "version": 7.0, "enableExecuteCommand": false,
		"overrides": map[string]any{"containerOverrides": []any{map[string]any{
			"name": "web", "environment": []any{map[string]any{"name": "PASSWORD", "value": Hidden}},
		}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	log := types.LogConfiguration{LogDriver: types.LogDriverSplunk, Options: map[string]string{"splunk-token": "hunter2"}}
	b = AppendDocument(nil, log, func(member string) bool { return member == "options" })
	if strings.Contains(string(b), "hunter2") || !strings.Contains(string(b), `"splunk-token":"`+Hidden) {
		t.Errorf("hidden map: %s", b)
	}
	if b = AppendDocument(nil, (*types.Task)(nil), nil); string(b) != "{}" {
		t.Errorf("nil: %s", b)
	}
}
