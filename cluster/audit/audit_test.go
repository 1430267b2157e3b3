package audit

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"berth.dev/berth/cluster/api"
)

func open(t *testing.T, c Config) *Log {
	t.Helper()
	c.Path = filepath.Join(t.TempDir(), "log")
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestStrangersArePacedAndClipped(t *testing.T) {
	l := open(t, Config{})
	at := time.Unix(1e9, 0)
	for range 3 * maxStrangers {
		l.Record(&api.Call{At: at, Operation: "CreateCluster", Service: "ecs", Code: "X", UserAgent: strings.Repeat("u", 1<<16)})
	}
	known := &api.Call{At: at, Operation: "CreateCluster", Service: "ecs", Caller: api.Caller{AccessKeyID: "id"}}
	l.Record(known)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(l.config.Path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n != maxStrangers+1 || len(b) > (maxStrangers+1)*2*maxText {
		t.Errorf("%d records of %d bytes", n, len(b))
	}
	if n := testutil.ToFloat64(l.lost); n != 2*maxStrangers {
		t.Errorf("%v lost", n)
	}
	l.Record(known) // after the end: returns
}

func TestLargeElementsAreLeftOut(t *testing.T) {
	name := strings.Repeat("x", maxElements)
	if got := string(elements(&ecs.CreateClusterInput{ClusterName: &name})); !strings.HasPrefix(got, `{"omitted":true`) {
		t.Errorf("%.100s", got)
	}
	if elements(nil) != nil || elements(&ecs.CreateClusterInput{}) != nil {
		t.Error("nothing is something")
	}
}

// TestMembersThatMayBeSecret looks for members of the API's model whose names sound like
// secrets and that nobody has thought about.
func TestMembersThatMayBeSecret(t *testing.T) {
	known := map[string]bool{ // names of places, or marks without worth to others
		"nextToken": true, "clientToken": true, "secrets": true, "secretOptions": true,
		"privateIpv4Address": true, "credentialsParameter": true, "repositoryCredentials": true, "credentialSpecs": true,
	}
	sounds := regexp.MustCompile(`(?i)secret|password|passphrase|token|credential|private|identityDocument`)
	seen := map[reflect.Type]bool{}
	var walk func(t reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || seen[typ] || typ == reflect.TypeFor[time.Time]() {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			if !f.IsExported() || f.Name == "ResultMetadata" {
				continue
			}
			member := strings.ToLower(f.Name[:1]) + f.Name[1:]
			if sounds.MatchString(member) && !Hides(member) && !known[member] && f.Type.Kind() != reflect.Bool {
				t.Errorf("%s.%s: is it a secret?", path, member)
			}
			walk(f.Type, path+"."+member)
		}
	}
	c := reflect.TypeFor[*ecs.Client]()
	for i := range c.NumMethod() {
		m := c.Method(i)
		for j := range m.Type.NumIn() {
			if in := m.Type.In(j); strings.HasSuffix(in.String(), "Input") {
				walk(in, m.Name)
			}
		}
		for j := range m.Type.NumOut() {
			if out := m.Type.Out(j); strings.HasSuffix(out.String(), "Output") {
				walk(out, m.Name)
			}
		}
	}
	if len(seen) < 100 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}
