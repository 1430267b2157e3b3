package api

import (
	"encoding/xml"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/cluster"
	"berth.dev/berth/integ/lab"
)

func TestSignatures(t *testing.T) {
	l := lab.Start(t)
	list := func(k cluster.Key) error {
		_, err := l.Client(k).ListClusters(ctx, &ecs.ListClustersInput{})
		return err
	}
	if err := list(l.Key); err != nil {
		t.Fatalf("the operator's key: %v", err)
	}
	wrong := l.Key
	wrong.SecretAccessKey = strings.Repeat("x", 40)
	wantCode(t, "a wrong secret", list(wrong), "InvalidSignatureException")
	unknown := l.Key
	unknown.AccessKeyID = "AKIAXXXXXXXXXXXXXXXX"
	wantCode(t, "an unknown key", list(unknown), "UnrecognizedClientException")

	body := []byte("{}")
	call := func(at time.Time, change func(*http.Request)) string {
		t.Helper()
		req, err := l.Request(http.MethodPost, "/", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-amz-json-1.1")
		req.Header.Set("X-Amz-Target", "AmazonEC2ContainerServiceV20141113.ListClusters")
		if err := lab.Sign(req, body, l.Key, at); err != nil {
			t.Fatal(err)
		}
		change(req)
		a, err := l.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if id := a.Header.Get("X-Amzn-Requestid"); id == "" {
			t.Error("an answer without a request id")
		}
		if a.Code() != "" && a.Status != http.StatusBadRequest {
			t.Errorf("%s has HTTP status %d", a.Code(), a.Status)
		}
		return a.Code()
	}
	none := func(*http.Request) {}
	for name, tt := range map[string]struct {
		at     time.Time
		change func(*http.Request)
		want   string
	}{
		"now":              {time.Now(), none, ""},
		"four minutes ago": {time.Now().Add(-4 * time.Minute), none, ""},
		"an hour ago":      {time.Now().Add(-time.Hour), none, "InvalidSignatureException"},
		"an hour ahead":    {time.Now().Add(time.Hour), none, "InvalidSignatureException"},
		"not signed":       {time.Now(), func(r *http.Request) { r.Header.Del("Authorization") }, "MissingAuthenticationTokenException"},
		"another target": {time.Now(), func(r *http.Request) {
			r.Header.Set("X-Amz-Target", "AmazonEC2ContainerServiceV20141113.DeleteCluster")
		}, "InvalidSignatureException"},
		"another host":      {time.Now(), func(r *http.Request) { r.Host = "example.com" }, "InvalidSignatureException"},
		"a nonsense header": {time.Now(), func(r *http.Request) { r.Header.Set("Authorization", "AWS4-HMAC-SHA256 nonsense") }, "IncompleteSignatureException"},
	} {
		if got := call(tt.at, tt.change); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

func TestUnknownOperation(t *testing.T) {
	l := lab.Start(t)
	for _, op := range []string{"CreateSpaceship", "", "listclusters", strings.Repeat("x", 5000)} {
		a, err := l.Call(op, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if a.Code() != "UnknownOperationException" {
			t.Errorf("%.20q: got %q", op, a.Code())
		}
		if len(a.Body) > 1000 {
			t.Errorf("%.20q: an answer of %d bytes", op, len(a.Body))
		}
	}
	_, err := l.ECS.CreateService(ctx, &ecs.CreateServiceInput{ServiceName: s("x")})
	wantCode(t, "CreateService", err, "UnknownOperationException")
}

// An instance's key opens the agent's operations and nothing else.
func TestInstanceKeys(t *testing.T) {
	l := lab.Start(t)
	a, b := l.Agent(lab.Shape{}), l.Agent(lab.Shape{})
	_, err := a.ECS.ListTasks(ctx, &ecs.ListTasksInput{})
	wantCode(t, "ListTasks", err, "AccessDeniedException")
	_, err = a.ECS.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: s("x")})
	wantCode(t, "RunTask", err, "AccessDeniedException")
	_, err = a.ECS.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: s("default")})
	wantCode(t, "DeleteCluster", err, "AccessDeniedException")
	_, err = a.ECS.RegisterContainerInstance(ctx, &ecs.RegisterContainerInstanceInput{ContainerInstanceArn: &b.ARN})
	wantCode(t, "register as another", err, "AccessDeniedException")
	_, err = a.ECS.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{ContainerInstance: &b.ARN, Force: aws.Bool(true)})
	wantCode(t, "deregister another", err, "AccessDeniedException")

	req, err := l.Request(http.MethodPost, "/berth/v1/instance-keys", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Sign(req, nil, a.Key, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got, err := l.Do(req); err != nil || got.Status == http.StatusOK {
		t.Errorf("an instance made a key: %v %d", err, got.Status)
	}
}

func TestGetCallerIdentity(t *testing.T) {
	l := lab.Start(t)
	env := cliEnv(l, l.Key)
	out, err := command(t, env, "/usr/bin/aws", "sts", "get-caller-identity", "--endpoint-url", l.URL, "--query", "Account", "--output", "text")
	if err != nil || strings.TrimSpace(out) != lab.Account {
		t.Errorf("aws sts get-caller-identity: %v\n%s", err, out)
	}
	wrong := l.Key
	wrong.SecretAccessKey = "wrong"
	out, err = command(t, cliEnv(l, wrong), "/usr/bin/aws", "sts", "get-caller-identity", "--endpoint-url", l.URL)
	if err == nil || !strings.Contains(out, "SignatureDoesNotMatch") {
		t.Errorf("with a wrong secret: %v\n%s", err, out)
	}
	req, err := l.Request(http.MethodPost, "/", []byte("Action=AssumeRole&Version=2011-06-15"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	a, err := l.Do(req)
	var e struct {
		Code string `xml:"Error>Code"`
	}
	if err != nil || xml.Unmarshal(a.Body, &e) != nil || e.Code == "" || a.Status < 400 {
		t.Errorf("unsigned STS call: %v %d %s", err, a.Status, a.Body)
	}
}
