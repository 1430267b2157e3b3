package operator

import (
	"encoding/json"
	"os"
	"path/filepath"

	"berth.dev/berth/cmd/berth/internal/layout"
)

// Variable is one environment variable.
type Variable struct{ Name, Value string }

// ruleFiles are the services that the cluster answers, with the versions of their
// APIs, as botocore names the folders of its data.
var ruleFiles = []string{"ecs/2014-11-13", "sts/2011-06-15"}

// Environment returns the variables that point AWS tools at the cluster with the
// operator's key. It writes endpoint rules for tools that are older than
// AWS_ENDPOINT_URL (mid 2023).
func (c *Client) Environment(l layout.Layout) ([]Variable, error) {
	dir := l.Lib("cluster", "aws-data")
	rules, err := endpointRules(c.URL)
	if err != nil {
		return nil, err
	}
	for _, service := range ruleFiles {
		path := filepath.Join(dir, service, "endpoint-rule-set-1.json")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		if err := layout.WriteFile(path, rules); err != nil {
			return nil, err
		}
	}
	vars := []Variable{
		{"AWS_ENDPOINT_URL", c.URL},
		{"AWS_DATA_PATH", dir},
		{"AWS_DEFAULT_REGION", c.Region},
		{"AWS_REGION", c.Region},
		{"AWS_ACCESS_KEY_ID", c.Key.AccessKeyID},
		{"AWS_SECRET_ACCESS_KEY", c.Key.Secret.Reveal()},
		{"AWS_EC2_METADATA_DISABLED", "true"},
		{"AWS_PAGER", ""},
	}
	if c.CA != "" {
		vars = append(vars, Variable{"AWS_CA_BUNDLE", c.CA})
	}
	return vars, nil
}

// endpointRules is an endpoint rule set (smithy.io, "Rules engine specification") with
// one answer: url, unless the caller names another endpoint.
func endpointRules(url string) ([]byte, error) {
	type object = map[string]any
	parameter := func(builtIn, kind string) object { return object{"builtIn": builtIn, "type": kind, "required": false} }
	flag := func(builtIn string) object {
		return object{"builtIn": builtIn, "type": "Boolean", "required": true, "default": false}
	}
	endpoint := func(url any) object { return object{"url": url, "properties": object{}, "headers": object{}} }
	return json.Marshal(object{
		"version": "1.0",
		"parameters": object{
			"Region": parameter("AWS::Region", "String"), "Endpoint": parameter("SDK::Endpoint", "String"),
			"UseDualStack": flag("AWS::UseDualStack"), "UseFIPS": flag("AWS::UseFIPS"), "UseGlobalEndpoint": flag("AWS::STS::UseGlobalEndpoint"),
		},
		"rules": []object{
			{
				"type": "endpoint", "endpoint": endpoint(object{"ref": "Endpoint"}),
				"conditions": []object{{"fn": "isSet", "argv": []object{{"ref": "Endpoint"}}}},
			},
			{"type": "endpoint", "endpoint": endpoint(url), "conditions": []object{}},
		},
	})
}
