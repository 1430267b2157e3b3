package image

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/task"
)

// hubKey is the key of Docker Hub's credentials in configuration files.
const hubKey = "index.docker.io/v1/"

// StaticAuth reads ECS_ENGINE_AUTH_TYPE and ECS_ENGINE_AUTH_DATA: for "dockercfg" an
// object of {"auth": base64(user:password), "email"} by registry, for "docker" one of
// {"username", "password", "email"}. An empty kind means no credentials. Errors never
// contain the data.
func StaticAuth(kind string, data task.Secret) (runtime.Auth, error) {
	type entry struct {
		Auth, Username, Password, IdentityToken string
	}
	if kind == "" {
		return nil, nil
	}
	if kind != "docker" && kind != "dockercfg" {
		return nil, fmt.Errorf("ECS_ENGINE_AUTH_TYPE: %q is neither dockercfg nor docker", kind)
	}
	var raw map[string]entry
	if err := json.Unmarshal([]byte(data.Reveal()), &raw); err != nil {
		return nil, fmt.Errorf("ECS_ENGINE_AUTH_DATA: not a JSON object of the form of type %s", kind)
	}
	type credential struct {
		user   string
		secret task.Secret
	}
	byHost := map[string]credential{}
	for registry, e := range raw {
		c := credential{e.Username, task.NewSecret(e.Password)}
		if kind == "dockercfg" {
			plain, err := base64.StdEncoding.DecodeString(e.Auth)
			user, password, ok := strings.Cut(string(plain), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("ECS_ENGINE_AUTH_DATA: auth of registry %q is not base64 of user:password", registry)
			}
			c = credential{user, task.NewSecret(strings.TrimRight(password, "\x00"))}
		}
		byHost[authKey(registry)] = c
	}
	return func(host string) (string, task.Secret, error) {
		want, best := authKey(host), ""
		for k := range byHost {
			if (k == want || strings.HasPrefix(want, strings.TrimSuffix(k, "/")+"/")) && len(k) > len(best) {
				best = k
			}
		}
		if best == "" {
			return "", task.Secret{}, nil
		}
		return byHost[best].user, byHost[best].secret, nil
	}, nil
}

// authKey is the form in which registries are compared.
func authKey(registry string) string {
	s := strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://")
	switch strings.TrimSuffix(s, "/") {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "index.docker.io/v1", "":
		return hubKey
	}
	return strings.TrimSuffix(s, "/")
}
