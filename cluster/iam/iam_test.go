package iam

import (
	"strings"
	"testing"
	"time"
)

func TestEvaluate(t *testing.T) {
	const run, task = "ecs:RunTask", "arn:aws:ecs:us-east-1:000000000000:task/prod/1"
	for _, tt := range []struct {
		name, policies string // policies are separated by a line
		action         string
		want           Decision
	}{
		{"nothing", `{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}`, run, NotAllowed},
		{"by name", `{"Statement":{"Effect":"Allow","Action":"ecs:RunTask","Resource":"*"}}`, run, Allowed},
		{"by name without case", `{"Statement":{"Effect":"Allow","Action":"ECS:runtask","Resource":"*"}}`, run, Allowed},
		{"by pattern", `{"Statement":[{"Effect":"Allow","Action":["ecs:Run*"],"Resource":["*"]}]}`, run, Allowed},
		{"single character", `{"Statement":{"Effect":"Allow","Action":"ecs:RunTas?","Resource":"*"}}`, run, Allowed},
		{"on the resource", `{"Statement":{"Effect":"Allow","Action":"*","Resource":"arn:aws:ecs:*:*:task/prod/*"}}`, run, Allowed},
		{"on another", `{"Statement":{"Effect":"Allow","Action":"*","Resource":"arn:aws:ecs:*:*:task/test/*"}}`, run, NotAllowed},
		{"resources have a case", `{"Statement":{"Effect":"Allow","Action":"*","Resource":"arn:aws:ecs:*:*:task/PROD/*"}}`, run, NotAllowed},
		{"all but this", `{"Statement":{"Effect":"Allow","NotAction":"ecs:RunTask","Resource":"*"}}`, run, NotAllowed},
		{"all but another", `{"Statement":{"Effect":"Allow","NotAction":"ecs:StopTask","Resource":"*"}}`, run, Allowed},
		{"all resources but another", `{"Statement":{"Effect":"Allow","Action":"ecs:*","NotResource":"arn:*:task/test/*"}}`, run, Allowed},
		{"deny beats allow", `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"ecs:Run*","Resource":"*"}]}`, run, ExplicitlyDenied},
		{"deny of another policy", `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}` + "\n" + `{"Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}`, run, ExplicitlyDenied},
		{"condition met", `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"ArnEquals":{"ecs:cluster":"arn:*:cluster/prod"}}}}`, run, Allowed},
		{"condition not met", `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"ecs:cluster":["x","y"]}}}}`, run, NotAllowed},
		{"condition not understood", `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}}`, run, NotAllowed},
		{"deny with a condition not understood", `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}]}`, run, ExplicitlyDenied},
	} {
		var policies []*Policy
		for doc := range strings.Lines(tt.policies) {
			p, err := ParsePolicy(doc)
			if err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			policies = append(policies, p)
		}
		if got := Evaluate(policies, tt.action, task, map[string]string{"ecs:cluster": "arn:aws:ecs:us-east-1:000000000000:cluster/prod"}); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestPoliciesThatAreRefused(t *testing.T) {
	for name, doc := range map[string]string{
		"nothing":         ``,
		"no statement":    `{"Version":"2012-10-17"}`,
		"effect":          `{"Statement":{"Effect":"allow","Action":"*","Resource":"*"}}`,
		"no action":       `{"Statement":{"Effect":"Allow","Resource":"*"}}`,
		"both actions":    `{"Statement":{"Effect":"Allow","Action":"*","NotAction":"ecs:*","Resource":"*"}}`,
		"no resource":     `{"Statement":{"Effect":"Allow","Action":"*"}}`,
		"principal":       `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Principal":"*"}}`,
		"misspelt member": `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Conditions":{}}}`,
		"version":         `{"Version":"2020-01-01","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`,
		"action":          `{"Statement":{"Effect":"Allow","Action":"RunTask","Resource":"*"}}`,
		"two documents":   `{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}{}`,
		"too long":        `{"Statement":{"Effect":"Allow","Action":"*","Resource":"` + strings.Repeat("x", maxPolicy) + `"}}`,
	} {
		if _, err := ParsePolicy(doc); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestTrust(t *testing.T) {
	for doc, want := range map[string]bool{
		`{"Statement":{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}}`:                                                        true,
		`{"Statement":{"Effect":"Allow","Principal":{"Service":["ec2.amazonaws.com","ecs-tasks.amazonaws.com"]},"Action":["sts:AssumeRole","sts:TagSession"]}}`:               true,
		`{"Statement":{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}}`:                                                              false,
		`{"Statement":{"Effect":"Allow","Principal":{"AWS":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}}`:                                                            false,
		`{"Statement":[{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole"},{"Effect":"Deny","Principal":{"Service":"*"},"Action":"sts:*"}]}`:                         false,
		`{"Statement":{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"aws:SourceAccount":"1"}}}}`: true,
	} {
		p, err := ParseTrust(doc)
		if err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
		if got := p.Trusts("Service", tasksService); got != want {
			t.Errorf("%s: %v", doc, got)
		}
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	k, other := issuer{[]byte("root")}, issuer{[]byte("another")}
	s := Session{Role: "arn:aws:iam::000000000000:role/r", RoleID: "AROA", Name: "x", Expires: now.Add(time.Hour)}
	keys, err := k.issue(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.open(keys.AccessKeyID, keys.SessionToken, now)
	if err != nil || got.Role != s.Role || got.Name != s.Name || !got.Expires.Equal(s.Expires) {
		t.Errorf("%+v, %v", got, err)
	}
	if strings.Contains(keys.String()+keys.GoString(), keys.SecretAccessKey) {
		t.Error("keys print their secret")
	}
	second, err := k.issue(s)
	if err != nil || second.AccessKeyID == keys.AccessKeyID || second.SecretAccessKey == keys.SecretAccessKey {
		t.Errorf("keys twice: %v", err)
	}
	for name, tt := range map[string]struct {
		by        issuer
		id, token string
		at        time.Time
	}{
		"later":              {k, keys.AccessKeyID, keys.SessionToken, now.Add(time.Hour)},
		"another id":         {k, second.AccessKeyID, keys.SessionToken, now},
		"another cluster":    {other, keys.AccessKeyID, keys.SessionToken, now},
		"changed":            {k, keys.AccessKeyID, keys.SessionToken[:len(keys.SessionToken)-2] + "AA", now},
		"cut":                {k, keys.AccessKeyID, keys.SessionToken[:20], now},
		"no base64":          {k, keys.AccessKeyID, "%%%", now},
		"a permanent key id": {k, "AKIA" + keys.AccessKeyID[4:], keys.SessionToken, now},
	} {
		if _, err := tt.by.open(tt.id, tt.token, tt.at); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if k.credentialsID("task", "task") != k.credentialsID("task", "task") || k.credentialsID("task", "task") == k.credentialsID("task", "execution") {
		t.Error("the id of credentials is not stable, or not the role's own")
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add(`{"Version":"2012-10-17","Statement":[{"Sid":"a","Effect":"Allow","Action":["ecs:*"],"Resource":"*","Condition":{"StringLike":{"ecs:cluster":"*"}}}]}`)
	f.Add(`{"Statement":{"Effect":"Deny","NotAction":"ecs:?","NotResource":["a*b*c"]}}`)
	f.Fuzz(func(t *testing.T, doc string) {
		p, err := ParsePolicy(doc)
		if err == nil {
			Evaluate([]*Policy{p}, "ecs:RunTask", "arn:aws:ecs:us-east-1:0:task/a/b", nil)
		}
		if trust, err := ParseTrust(doc); err == nil {
			trust.Trusts("Service", tasksService)
		}
	})
}

func FuzzOpenToken(f *testing.F) {
	k := issuer{[]byte("root")}
	keys, err := k.issue(Session{Role: "r", Expires: time.Unix(2_000_000_000, 0)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(keys.AccessKeyID, keys.SessionToken)
	f.Fuzz(func(t *testing.T, id, token string) {
		s, err := k.open(id, token, time.Unix(1_900_000_000, 0))
		if err == nil && (id != keys.AccessKeyID || s.Role != "r") {
			t.Errorf("%q %q is taken", id, token)
		}
	})
}
