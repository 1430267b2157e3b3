package tasks

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	services "berth.dev/berth/integ/aws"
	"berth.dev/berth/integ/testimage"
)

// Registries that are no more than names for the one of the test, by containerd's own
// host configuration.
const (
	ecrRegistry = services.Account + ".dkr.ecr." + region + ".amazonaws.com"
	aliased     = "registry.example.com"
	known       = "known.example.com" // its password is in the agent's settings
)

// settings are those that depend on what was started before the agent.
func (l *lab) settings(t *testing.T) []string {
	hosts := t.TempDir()
	for _, name := range []string{ecrRegistry, aliased, known} {
		err := os.Mkdir(filepath.Join(hosts, name), 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(hosts, name, "hosts.toml"), fmt.Appendf(nil, "server = \"http://%s\"\n", l.registry.Host), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l.services.SetToken(services.Account, services.Token{Password: "ecr-token", Expires: time.Now().Add(12 * time.Hour)})
	l.services.SetSecret(region, "registry", `{"username":"team","password":"secret-password"}`)
	l.services.SetSecret(region, "wrong", `{"username":"team","password":"other-password"}`)
	l.services.SetSecret(region, "odd", `{"username":"team"}`)
	l.registry.SetBefore(guard)
	return append(l.services.Environ(), "BERTH_REGISTRY_HOSTS_DIR="+hosts, "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"ECS_ENGINE_AUTH_TYPE=docker", `ECS_ENGINE_AUTH_DATA={"`+known+`":{"username":"known","password":"known-password"}}`)
}

// guard makes the registry ask for a password for repositories named by it, and fail in
// the ways that others are named after.
func guard(w http.ResponseWriter, q *http.Request) bool {
	repository := strings.TrimPrefix(q.URL.Path, "/v2/")
	// The test itself pushes without a password; all that an agent does is read.
	if q.Method != http.MethodGet && q.Method != http.MethodHead || q.Header.Get("X-Berth-Test") != "" {
		return false
	}
	for prefix, password := range map[string]string{"ecr/": "ecr-token", "private/": "secret-password", "known/": "known-password"} {
		if !strings.HasPrefix(repository, prefix) {
			continue
		}
		if _, given, _ := q.BasicAuth(); given == password || strings.HasPrefix(q.UserAgent(), "go-containerregistry") {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	if strings.HasPrefix(q.UserAgent(), "go-containerregistry") {
		return false
	}
	switch {
	case strings.HasPrefix(repository, "busy/"):
		w.WriteHeader(http.StatusTooManyRequests)
	case strings.HasPrefix(repository, "broken/"):
		w.WriteHeader(http.StatusBadGateway)
	default:
		return false
	}
	return true
}

// from is a definition of a container whose image is pushed under a name of the
// registry, and is named with a host that may be another.
func from(host, repository string, edits ...func(c *types.ContainerDefinition)) func(l *lab) *ecs.RegisterTaskDefinitionInput {
	return func(l *lab) *ecs.RegisterTaskDefinitionInput {
		img, err := testimage.Busybox()
		if err == nil {
			_, err = l.registry.Push(repository, img)
		}
		if err != nil {
			panic(err) // the scenario cannot be defined
		}
		return image(host, repository, edits...)(l)
	}
}

// image is a definition of a container with an image that is there or not.
func image(host, repository string, edits ...func(c *types.ContainerDefinition)) func(l *lab) *ecs.RegisterTaskDefinitionInput {
	return func(l *lab) *ecs.RegisterTaskDefinitionInput {
		name := host + "/" + repository
		if host == "" {
			name = l.registry.Host + "/" + repository
		}
		c := edited(container("echo", "pulled"), edits...)
		c.Image = &name
		return task(withRole, c)(l)
	}
}

// foreign is a definition of an image for another architecture.
func foreign(repository string) func(l *lab) *ecs.RegisterTaskDefinitionInput {
	return func(l *lab) *ecs.RegisterTaskDefinitionInput {
		img, err := testimage.Busybox()
		if err != nil {
			panic(err)
		}
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}},
		})
		if _, err := l.registry.PushIndex(repository, index); err != nil {
			panic(err)
		}
		return image("", repository)(l)
	}
}

func credentials(secret string) func(c *types.ContainerDefinition) {
	return func(c *types.ContainerDefinition) {
		c.RepositoryCredentials = &types.RepositoryCredentials{CredentialsParameter: aws.String(secretARN(secret, ""))}
	}
}

// registries are about who may read which image, and about registries in trouble.
func registries() []scenario {
	pulled := func(name string, define func(*lab) *ecs.RegisterTaskDefinitionInput) scenario {
		return scenario{name: name, want: exited(end{"main", 0, ""}), output: []string{"pulled"}, define: define}
	}
	fails := func(name, reason string, define func(*lab) *ecs.RegisterTaskDefinitionInput) scenario {
		return scenario{name: name, want: neverStarted(reason, end{"main", noExit, reason}), define: define}
	}
	const (
		absent   = "CannotPullImageManifestError: The task can’t pull the image. Check whether the image exists. pull access denied for registry.example.com/private/denied:1, repository does not exist or may require authorization: denied: requested access to the resource is denied: "
		login    = "CannotPullContainerAuthError: engine docker private registry credentials: secret "
		response = "CannotPullImageManifestError: unexpected status from HEAD request to http://REGISTRY/v2/"
	)
	// What fails is named differently from what does not: an image that another row has
	// pulled would be used.
	return []scenario{
		pulled("image of ECR", from(ecrRegistry, "ecr/app:1")),
		pulled("password of Secrets Manager", from(aliased, "private/app:1", credentials("registry"))),
		pulled("password of the settings", from(known, "known/app:1")),
		pulled("registry under another name", from(aliased, "team/alias:1")),
		fails(denied+" log in to ECR", "CannotPullECRContainerError: engine ecr credentials: AccessDeniedException: User: arn:aws:sts::123456789012:assumed-role/weak/berth is not authorized to perform: ecr:GetAuthorizationToken because no identity-based policy allows the ecr:GetAuthorizationToken action; check the policies of the execution role", image(ecrRegistry, "ecr/denied:1")),
		fails("no password", absent+"pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials", image(aliased, "private/denied:1")),
		fails("wrong password", absent+"unexpected status from HEAD request to http://REGISTRY/v2/private/denied/manifests/1?ns=registry.example.com: 401 Unauthorized", image(aliased, "private/denied:1", credentials("wrong"))),
		fails("secret without a password", login+secretARN("odd", "")+`: its value must be {"username": ..., "password": ...} with both not empty`, image(aliased, "private/denied:1", credentials("odd"))),
		fails("missing secret of a registry", login+secretARN("none", "")+": ResourceNotFoundException: Secrets Manager can't find the specified secret.", image(aliased, "private/denied:1", credentials("none"))),
		fails("registry that is too busy", response+"busy/app/manifests/1: 429 Too Many Requests; the registry limits how often it is asked: wait, give the task repositoryCredentials, or use a mirror", image("", "busy/app:1")),
		fails("registry that is broken", response+"broken/app/manifests/1: 502 Bad Gateway", image("", "broken/app:1")),
		fails("image for another architecture", "CannotPullContainerError: image REGISTRY/team/foreign:1 is for other platforms than this machine's, linux/"+runtime.GOARCH+": build it for this one, or place the task on an instance of its own: no match for platform in manifest: not found", foreign("team/foreign:1")),
		fails("no name of an image", `CannotPullContainerError: image "REGISTRY/Team/APP:1": invalid reference format: repository name (Team/APP) must be lowercase`, image("", "Team/APP:1")),
		{name: "one download for twenty tasks", want: exited(end{"main", 0, ""}), define: from("", "team/shared:0"), ended: twenty},
	}
}

// twenty runs twenty tasks of one image that the host has not seen and counts what is
// asked of the registry.
func twenty(t *testing.T, l *lab, _ types.Task) {
	layer, err := testimage.Layer(map[string]testimage.File{"only-here": {Data: []byte("one download")}})
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Busybox()
	if err == nil {
		img, err = mutate.AppendLayers(img, layer)
	}
	if err == nil {
		_, err = l.registry.Push("team/shared:1", img)
	}
	if err != nil {
		t.Fatal(err)
	}
	in := image("", "team/shared:1")(l)
	in.Family, in.ContainerDefinitions[0].Memory = aws.String("twenty"), aws.Int32(8)
	d := l.On(t)
	arns := d.Run(d.Register(in), 20)
	for _, tk := range d.Wait("STOPPED", 40*time.Second, arns...) {
		if c := tk.Containers[0]; aws.ToInt32(c.ExitCode) != 0 || c.ExitCode == nil {
			t.Errorf("%s", aws.ToString(c.Reason))
		}
	}
	for what, n := range l.registry.Hits() {
		if strings.HasPrefix(what, "GET /v2/team/shared/") && n > 2 { // a manifest may be asked for by tag and by digest
			t.Errorf("%s: %d times", what, n)
		}
	}
}
