package cluster

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
)

// canary is in every place of the requests below that may hold a secret.
const canary = "canary-7d1f"

func canaryDefinition() *ecs.RegisterTaskDefinitionInput {
	return &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("f"), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Image: aws.String("image"), Memory: aws.Int32(64),
			Environment:      []types.KeyValuePair{{Name: aws.String("SHOWN"), Value: aws.String(canary)}},
			LogConfiguration: &types.LogConfiguration{LogDriver: types.LogDriverSplunk, Options: map[string]string{"splunk-token": canary, "splunk-url": "https://x"}},
		}},
		Volumes: []types.Volume{{Name: aws.String("v"), DockerVolumeConfiguration: &types.DockerVolumeConfiguration{DriverOpts: map[string]string{"o": "password=" + canary}}}},
	}
}

func TestAuditKeepsNoSecrets(t *testing.T) {
	dir := t.TempDir()
	s := start(t, Config{Dir: dir})
	c, ctx := client(s, s.OperatorKey()), t.Context()
	if _, err := c.CreateCluster(ctx, &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RegisterTaskDefinition(ctx, canaryDefinition()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: aws.String("f")}); err != nil {
		t.Fatal(err)
	}
	bad := canaryDefinition()
	bad.Family = aws.String("bad family")
	if _, err := c.RegisterTaskDefinition(ctx, bad); err == nil {
		t.Error("a bad family was taken")
	}
	// No instance: refused or with failures, but told with its overrides.
	c.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("f"), Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{ //nolint:errcheck // recorded either way
		Name: aws.String("web"), Environment: []types.KeyValuePair{{Name: aws.String("E"), Value: aws.String(canary)}},
	}}}})
	instance, err := s.keys.issue(ctx, s.store, "instance")
	if err != nil {
		t.Fatal(err)
	}
	client(s, instance).RegisterContainerInstance(ctx, &ecs.RegisterContainerInstanceInput{ //nolint:errcheck // recorded either way
		InstanceIdentityDocument: aws.String(canary), InstanceIdentityDocumentSignature: aws.String(canary),
	})
	send := func(k Key, path, body, service string, headers ...string) {
		t.Helper()
		do(t, request(t, s, k, http.MethodPost, path, body, service, time.Now(), headers...))
	}
	json11 := []string{"Content-Type", "application/x-amz-json-1.1"}
	target := func(name string) []string {
		return append([]string{"X-Amz-Target", "AmazonEC2ContainerServiceV20141113." + name}, json11...)
	}
	k := s.OperatorKey()
	send(k, "/", `{"containerDefinitions":[{"environment":"`+canary+`"}]}`, "ecs", target("RegisterTaskDefinition")...) // of a wrong type
	send(k, "/", `{"`+canary+`":"`+canary+`"}`, "ecs", target("ListClusters")...)                                       // no member
	send(k, "/", `{`+canary, "ecs", target("ListClusters")...)                                                          // no JSON
	send(Key{AccessKeyID: k.AccessKeyID, SecretAccessKey: "wrong"}, "/", `{"clusterName":"`+canary+`"}`, "ecs", target("CreateCluster")...)
	form := url.Values{"Action": {"GetCallerIdentity"}, "Version": {"2011-06-15"}, "TokenCode": {canary}}
	send(k, "/", form.Encode(), "sts", "Content-Type", "application/x-www-form-urlencoded")
	send(k, "/berth/v1/instance-keys", "{}", "ecs")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "audit", "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{canary, k.SecretAccessKey, instance.SecretAccessKey, "Signature="} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%q is in the record", secret)
		}
	}
	for _, shown := range []string{`"SHOWN"`, `"splunk-url"`, `"image"`, "HIDDEN_DUE_TO_SECURITY_REASONS"} {
		if !bytes.Contains(b, []byte(shown)) {
			t.Errorf("%s is not in the record", shown)
		}
	}
	var got []string
	for line := range strings.Lines(string(b)) {
		var r struct {
			EventName, EventSource, ErrorCode, EventTime, EventID, SourceIPAddress string
			ReadOnly                                                               bool
			UserIdentity                                                           struct{ Type, ARN string }
			ResponseElements                                                       json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if _, err := time.Parse(time.RFC3339, r.EventTime); err != nil || r.EventID == "" || r.SourceIPAddress != "127.0.0.1" {
			t.Errorf("record %s", line)
		}
		if r.ReadOnly && string(r.ResponseElements) != "null" {
			t.Errorf("a call that only reads has an answer: %s", line)
		}
		got = append(got, strings.Join([]string{r.EventSource, r.EventName, r.UserIdentity.ARN[strings.LastIndexByte(r.UserIdentity.ARN, ':')+1:], r.ErrorCode}, " "))
	}
	got = append(got[:4], got[6:]...) // what was not looked at above
	want := []string{
		"ecs.amazonaws.com CreateCluster user/berth-operator ",
		"ecs.amazonaws.com RegisterTaskDefinition user/berth-operator ",
		"ecs.amazonaws.com DescribeTaskDefinition user/berth-operator ",
		"ecs.amazonaws.com RegisterTaskDefinition user/berth-operator ClientException",
		"ecs.amazonaws.com RegisterTaskDefinition user/berth-operator SerializationException",
		"ecs.amazonaws.com ListClusters user/berth-operator ",
		"ecs.amazonaws.com ListClusters user/berth-operator SerializationException",
		"ecs.amazonaws.com CreateCluster  InvalidSignatureException",
		"sts.amazonaws.com GetCallerIdentity user/berth-operator ",
		"ecs.amazonaws.com CreateInstanceKey user/berth-operator ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%s", diff, b)
	}
}

func TestAuditOff(t *testing.T) {
	dir := t.TempDir()
	s := start(t, Config{Dir: dir, AuditFile: "off"})
	if _, err := client(s, s.OperatorKey()).CreateCluster(t.Context(), &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "audit")); !os.IsNotExist(err) {
		t.Errorf("there is a record: %v", err)
	}
}
