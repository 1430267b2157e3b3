package api

import (
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/integ/lab"
)

// Each script in testdata/boto3 is a test: it finds the cluster in its environment and
// ends with 0 if boto3 saw what it expects. Debian's boto3 is of 2022; the scripts whose
// names begin with "today" get the present service model.
func TestBoto3(t *testing.T) {
	scripts, err := filepath.Glob("testdata/boto3/*.py")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".py"), func(t *testing.T) {
			l := lab.Start(t)
			a := l.Agent(lab.Shape{Attributes: map[string]string{"stack": "prod"}, ExitCode: 3})
			env := append(cliEnv(l, l.Key), "BERTH_URL="+l.URL, "BERTH_INSTANCE="+a.ARN,
				"BERTH_INSTANCE_KEY="+a.Key.AccessKeyID, "BERTH_INSTANCE_SECRET="+a.Key.SecretAccessKey)
			if strings.HasPrefix(filepath.Base(script), "today") {
				env = append(env, newModel(t))
			}
			if out, err := command(t, env, "/usr/bin/python3", script); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
