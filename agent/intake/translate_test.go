package intake

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

const (
	cluster  = "arn:aws:ecs:eu-west-1:111122223333:cluster/lab"
	instance = "arn:aws:ecs:eu-west-1:111122223333:container-instance/lab/0a1b2c"
	taskOne  = "arn:aws:ecs:eu-west-1:111122223333:task/lab/9f8e7d"
)

// example is the payload of the protocol reference.
func example(t testing.TB) *acs.PayloadMessage {
	t.Helper()
	frame, err := os.ReadFile("testdata/payload.json")
	if err != nil {
		t.Fatal(err)
	}
	m, err := acs.Decode(frame)
	if err != nil {
		t.Fatal(err)
	}
	return m.(*acs.PayloadMessage)
}

func TestTranslateExample(t *testing.T) {
	m := example(t)
	got, err := Translate(&m.Tasks[0], m.ClusterARN)
	if err != nil {
		t.Fatal(err)
	}
	want := &task.Task{
		ARN: taskOne, ClusterARN: cluster, Family: "web", Version: "3", LaunchType: "EXTERNAL", NetworkMode: "bridge",
		CPU: 0.5, Memory: 256, CredentialsID: "c-1",
		Volumes: []task.Volume{{Name: "scratch", Type: "host"}},
		Containers: []task.Container{{
			Name: "app", Image: "registry.lab.example/web:1", CPU: 256, Memory: 128, Essential: true,
			Command: []string{"serve"}, Environment: map[string]string{"STAGE": "lab"},
			Ports:           []task.Port{{ContainerPort: 8080, Protocol: "tcp"}},
			Mounts:          []task.Mount{{Volume: "scratch", Path: "/scratch"}},
			HealthCheckType: "docker",
			Config: task.Config{User: "1000", Healthcheck: &task.Healthcheck{
				Test: []string{"CMD-SHELL", "true"}, Interval: 5 * time.Second, Timeout: 2 * time.Second, Retries: 3,
			}},
			HostConfig: task.HostConfig{
				CapDrop: []string{"NET_RAW"}, Ulimits: []task.Ulimit{{Name: "nofile", Soft: 1024, Hard: 4096}},
				LogConfig: task.LogConfig{Type: "json-file", Config: map[string]string{}},
			},
		}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"AKID", `"s"`, "sessionToken"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the task holds %s of its credentials", secret)
		}
	}
}

// simple is the smallest task that runs, changed by fn.
func simple(fn func(*acs.Task)) *acs.Task {
	w := &acs.Task{
		ARN: taskOne, Family: "f", Version: "1", DesiredStatus: "RUNNING",
		Containers: []acs.Container{{Name: "a", Image: "i", Essential: true}},
	}
	if fn != nil {
		fn(w)
	}
	return w
}

func TestTranslateTakes(t *testing.T) {
	host := func(text string) func(*acs.Task) {
		return func(w *acs.Task) { w.Containers[0].DockerConfig = &acs.DockerConfig{HostConfig: text} }
	}
	config := func(text string) func(*acs.Task) {
		return func(w *acs.Task) { w.Containers[0].DockerConfig = &acs.DockerConfig{Config: text} }
	}
	for name, c := range map[string]struct {
		change func(*acs.Task)
		ok     func(*task.Task) bool
	}{
		"bridge by default":        {nil, func(t *task.Task) bool { return t.NetworkMode == "bridge" }},
		"mode of the task":         {func(w *acs.Task) { w.NetworkMode = "host" }, func(t *task.Task) bool { return t.NetworkMode == "host" }},
		"mode of the host config":  {host(`{"NetworkMode":"none"}`), func(t *task.Task) bool { return t.NetworkMode == "none" }},
		"keys in any case":         {host(`{"networkmode":"host"}`), func(t *task.Task) bool { return t.NetworkMode == "host" }},
		"default is bridge":        {host(`{"NetworkMode":"default"}`), func(t *task.Task) bool { return t.NetworkMode == "bridge" }},
		"unknown keys are ignored": {host(`{"NewKey":{"a":[1]}}`), func(*task.Task) bool { return true }},
		"cluster of the task":      {func(w *acs.Task) { w.TaskClusterARN = "c" }, func(t *task.Task) bool { return t.ClusterARN == "c" }},
		"overrides of command":     {func(w *acs.Task) { w.Containers[0].Overrides = `{"command":["x","y"],"cpu":1}` }, func(t *task.Task) bool { return cmp.Equal(t.Containers[0].Command, []string{"x", "y"}) }},
		"no overrides":             {func(w *acs.Task) { w.Containers[0].Overrides = `{}`; w.Containers[0].Command = []string{"z"} }, func(t *task.Task) bool { return cmp.Equal(t.Containers[0].Command, []string{"z"}) }},
		"cmd of the docker config": {config(`{"Cmd":"one","Entrypoint":["e"],"Image":"other"}`), func(t *task.Task) bool {
			c := t.Containers[0]
			return cmp.Equal(c.Command, []string{"one"}) && cmp.Equal(*c.EntryPoint, []string{"e"}) && c.Image == "other"
		}},
		"empty entry point": {func(w *acs.Task) { w.Containers[0].EntryPoint = &[]string{} }, func(t *task.Task) bool { return t.Containers[0].EntryPoint != nil }},
		"no entry point":    {nil, func(t *task.Task) bool { return t.Containers[0].EntryPoint == nil }},
		"stop timeout":      {func(w *acs.Task) { w.Containers[0].StopTimeout = 7 }, func(t *task.Task) bool { return t.Containers[0].StopTimeout == 7*time.Second }},
		"restart policy": {func(w *acs.Task) {
			w.Containers[0].RestartPolicy = &acs.RestartPolicy{Enabled: true, IgnoredExitCodes: []int64{3}, RestartAttemptPeriod: 60}
		}, func(t *task.Task) bool {
			r := t.Containers[0].Restart
			return r.AttemptPeriod == time.Minute && r.IgnoredExitCodes[0] == 3
		}},
		"restart policy that is off": {func(w *acs.Task) { w.Containers[0].RestartPolicy = &acs.RestartPolicy{RestartAttemptPeriod: 60} }, func(t *task.Task) bool { return t.Containers[0].Restart == nil }},
		"port range": {func(w *acs.Task) {
			w.Containers[0].PortMappings = []acs.PortMapping{{ContainerPortRange: "80-90", Protocol: "udp"}}
		}, func(t *task.Task) bool {
			return cmp.Equal(t.Containers[0].Ports, []task.Port{{ContainerRange: "80-90", Protocol: "udp"}})
		}},
		"old ARN without a cluster": {func(w *acs.Task) { w.ARN = "arn:aws:ecs:eu-west-1:111122223333:task/9f8e7d" }, func(t *task.Task) bool { return t.ID() == "9f8e7d" }},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Translate(simple(c.change), cluster)
			if err != nil {
				t.Fatal(err)
			}
			if !c.ok(got) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestTranslateRefuses(t *testing.T) {
	second := func(fn func(a, b *acs.Container)) func(*acs.Task) {
		return func(w *acs.Task) {
			w.Containers = append(w.Containers, acs.Container{Name: "b", Image: "i"})
			fn(&w.Containers[0], &w.Containers[1])
		}
	}
	first := func(fn func(*acs.Container)) func(*acs.Task) {
		return func(w *acs.Task) { fn(&w.Containers[0]) }
	}
	const unloadable = "UnrecogniedTaskError: Error loading task - "
	for name, c := range map[string]struct {
		change func(*acs.Task)
		want   string
	}{
		"no ARN":            {func(w *acs.Task) { w.ARN = "" }, unloadable},
		"ARN with a path":   {func(w *acs.Task) { w.ARN = "arn:aws:ecs:eu-west-1:1:task/lab/../../etc" }, unloadable},
		"no containers":     {func(w *acs.Task) { w.Containers = nil }, unloadable + "0 containers"},
		"two of a name":     {second(func(_, b *acs.Container) { b.Name = "a" }), unloadable + `two containers are named "a"`},
		"name with a slash": {first(func(c *acs.Container) { c.Name = "../a" }), unloadable + "a container's name"},
		"no image":          {first(func(c *acs.Container) { c.Image = "" }), unloadable + "container a: image is empty"},
		"negative memory":   {first(func(c *acs.Container) { c.Memory = -1 }), unloadable + "container a: cpu"},
		"timeout overflow":  {first(func(c *acs.Container) { c.StopTimeout = 1 << 62 }), unloadable + "container a: stopTimeout"},
		"port 0":            {first(func(c *acs.Container) { c.PortMappings = []acs.PortMapping{{HostPort: 1}} }), unloadable + "container a: portMappings"},
		"port 65536":        {first(func(c *acs.Container) { c.PortMappings = []acs.PortMapping{{ContainerPort: 65536}} }), unloadable + "container a: portMappings"},
		"bad range":         {first(func(c *acs.Container) { c.PortMappings = []acs.PortMapping{{ContainerPortRange: "9-8"}} }), unloadable + "container a: portMappings"},
		"bad protocol":      {first(func(c *acs.Container) { c.PortMappings = []acs.PortMapping{{ContainerPort: 1, Protocol: "sctp"}} }), unloadable + "container a: portMappings"},
		"bad overrides":     {first(func(c *acs.Container) { c.Overrides = "{" }), unloadable + "container a: overrides"},
		"unknown volume":    {first(func(c *acs.Container) { c.MountPoints = []acs.MountPoint{{SourceVolume: "v", ContainerPath: "/p"}} }), unloadable + "container a: mountPoints"},
		"volume type":       {func(w *acs.Task) { w.Volumes = []acs.Volume{{Name: "v", Type: "ebs"}} }, unloadable + `unrecognized volume type: "ebs"`},
		"volume name":       {func(w *acs.Task) { w.Volumes = []acs.Volume{{Name: "../v"}} }, unloadable + "a volume's name"},
		"volume driver": {func(w *acs.Task) {
			w.Volumes = []acs.Volume{{Name: "v", Type: "docker", DockerVolumeConfiguration: &acs.DockerVolume{Driver: "../../bin/sh"}}}
		}, unloadable + `volume "v": a driver's name`},
		"volume scope": {func(w *acs.Task) {
			w.Volumes = []acs.Volume{{Name: "v", Type: "docker", DockerVolumeConfiguration: &acs.DockerVolume{Scope: "cluster"}}}
		}, unloadable + `volume "v": unknown scope`},
		"windows volume":    {func(w *acs.Task) { w.Volumes = []acs.Volume{{Name: "v", Type: "fsxWindowsFileServer"}} }, "ResourceInitializationError: volume v: fsxWindowsFileServer"},
		"s3files volume":    {func(w *acs.Task) { w.Volumes = []acs.Volume{{Name: "v", Type: "s3files"}} }, "ResourceInitializationError: volume v: s3files"},
		"half a secret":     {first(func(c *acs.Container) { c.Secrets = []acs.Secret{{Name: "S"}} }), unloadable + "container a: secrets: name and valueFrom"},
		"secret's provider": {first(func(c *acs.Container) { c.Secrets = []acs.Secret{{Name: "S", ValueFrom: "s", Provider: "vault"}} }), unloadable + "container a: secrets: provider"},
		"secret files": {first(func(c *acs.Container) {
			c.Secrets = []acs.Secret{{Name: "S", ValueFrom: "s", Provider: "ssm"}}
			c.DockerConfig = &acs.DockerConfig{Config: `{"Labels":{"berth.secret-files":"/run:S,T"}}`}
		}), unloadable + "container a: label berth.secret-files: name 2 of the list"},
		"networks": {first(func(c *acs.Container) {
			c.DockerConfig = &acs.DockerConfig{Config: `{"Labels":{"berth.networks":"lan,/etc"}}`}
		}), unloadable + "container a: label berth.networks: must be names"},
		"network twice": {first(func(c *acs.Container) {
			c.DockerConfig = &acs.DockerConfig{Config: `{"Labels":{"berth.networks":"lan, lan"}}`}
		}), unloadable + "container a: label berth.networks: network lan is named twice"},
		"networks without a network": {first(func(c *acs.Container) {
			c.DockerConfig = &acs.DockerConfig{Config: `{"NetworkDisabled":true,"Labels":{"berth.networks":"lan"}}`}
		}), unloadable + "container a: label berth.networks: disableNetworking"},
		"networks in host mode": {first(func(c *acs.Container) {
			c.DockerConfig = &acs.DockerConfig{Config: `{"Labels":{"berth.networks":"lan"}}`, HostConfig: `{"NetworkMode":"host"}`}
		}), unloadable + "label berth.networks: containers of network mode host"},
		"env file's type": {first(func(c *acs.Container) { c.EnvironmentFiles = []acs.EnvironmentFile{{Value: "v", Type: "nfs"}} }), unloadable + "container a: environmentFiles: type"},
		"registry auth":   {first(func(c *acs.Container) { c.RegistryAuthentication = &acs.RegistryAuthentication{Type: "ecr"} }), unloadable + "container a: registryAuthentication"},
		"awsvpc":          {func(w *acs.Task) { w.NetworkMode = "awsvpc" }, unloadable + "a task has network interfaces if"},
		"network mode":    {func(w *acs.Task) { w.NetworkMode = "mesh" }, unloadable + "networkMode"},
		"dependency": {second(func(a, _ *acs.Container) {
			a.DependsOn = []acs.ContainerDependency{{ContainerName: "b", Condition: "SOON"}}
		}), unloadable + "container a: dependsOn"},
		"unknown dependency": {second(func(a, _ *acs.Container) {
			a.DependsOn = []acs.ContainerDependency{{ContainerName: "c", Condition: "START"}}
		}), "Task dependencies cannot be resolved, taskArn: " + taskOne},
		"cycle": {second(func(a, b *acs.Container) {
			a.DependsOn = []acs.ContainerDependency{{ContainerName: "b", Condition: "START"}}
			b.Links = []string{"a:alias"}
		}), "Task dependencies cannot be resolved, taskArn: " + taskOne},
		"self":           {first(func(c *acs.Container) { c.VolumesFrom = []acs.VolumeFrom{{SourceContainer: "a"}} }), "Task dependencies cannot be resolved"},
		"bad config":     {first(func(c *acs.Container) { c.DockerConfig = &acs.DockerConfig{Config: `{"User":1}`} }), "container a: DockerClientConfigError: "},
		"bad hostConfig": {first(func(c *acs.Container) { c.DockerConfig = &acs.DockerConfig{HostConfig: `{`} }), "container a: HostConfigError: "},
		"two modes": {second(func(a, b *acs.Container) {
			a.DockerConfig = &acs.DockerConfig{HostConfig: `{"NetworkMode":"host"}`}
		}), unloadable + "the containers ask for different network modes"},
		"other's network": {first(func(c *acs.Container) {
			c.DockerConfig = &acs.DockerConfig{HostConfig: `{"NetworkMode":"container:x"}`}
		}), "container a: HostConfigError: NetworkMode"},
		"no health check": {first(func(c *acs.Container) { c.HealthCheckType = "docker" }), "container a: DockerClientConfigError: "},
		"deep hostConfig": {first(func(c *acs.Container) { c.DockerConfig = &acs.DockerConfig{HostConfig: strings.Repeat("[", 100000)} }), "container a: HostConfigError: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Translate(simple(c.change), cluster)
			if _, ok := errors.AsType[*Rejection](err); !ok || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzTranslate(f *testing.F) {
	m := example(f)
	seed, err := json.Marshal(&m.Tasks[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var w acs.Task
		if acs.DecodeText(string(data), &w) != nil {
			return
		}
		got, err := Translate(&w, cluster)
		if err != nil {
			if _, ok := errors.AsType[*Rejection](err); !ok {
				t.Fatalf("%T is not a Rejection", err)
			}
			return
		}
		if strings.ContainsAny(got.ID(), "/.") || got.ID() == "" || got.NetworkMode == "" {
			t.Fatalf("unusable task %+v", got)
		}
		for _, c := range got.Containers {
			if c.Name == "" || strings.ContainsAny(c.Name, "/.") || c.StopTimeout < 0 || got.Container(c.Name) == nil {
				t.Fatalf("unusable container %+v", c)
			}
		}
	})
}

func TestTranslateReferences(t *testing.T) {
	w := simple(func(w *acs.Task) {
		c := &w.Containers[0]
		c.Secrets = []acs.Secret{
			{Name: "A", ValueFrom: "a", Region: "r", Provider: "ssm", Type: "ENVIRONMENT_VARIABLE", Target: "CONTAINER"},
			{Name: "B", ValueFrom: "b", Region: "r", Provider: "asm", Type: "MOUNT_POINT"},
			{Name: "token", ValueFrom: "c", Region: "r", Provider: "ssm", Type: "BOOTSTRAP", Target: "LOG_DRIVER"},
			{Name: "routed", ValueFrom: "d", Region: "r", Provider: "ssm", Type: "ENVIRONMENT_VARIABLE", Target: "LOG_DRIVER"},
			{Name: "F", ValueFrom: "f", Region: "r", Provider: "ssm", Type: "ENVIRONMENT_VARIABLE"},
		}
		c.EnvironmentFiles = []acs.EnvironmentFile{{Value: "arn:aws:s3:::b/k.env", Type: "s3"}}
		c.RegistryAuthentication = &acs.RegistryAuthentication{Type: "asm", ASMAuthData: &acs.ASMAuthData{CredentialsParameter: "s", Region: "r"}}
		c.DockerConfig = &acs.DockerConfig{Config: `{"Labels":{"berth.secret-files":"/etc/app: F"}}`}
	})
	got, err := Translate(w, cluster)
	if err != nil {
		t.Fatal(err)
	}
	want := []task.SecretRef{
		{Name: "A", From: "a", Region: "r", Provider: "ssm", Use: task.UseEnvironment},
		{Name: "B", From: "b", Region: "r", Provider: "asm", Use: task.UseFile, Dir: "/run/secrets"},
		{Name: "token", From: "c", Region: "r", Provider: "ssm", Use: task.UseLogOption},
		{Name: "routed", From: "d", Region: "r", Provider: "ssm", Use: task.UseLogRouter},
		{Name: "F", From: "f", Region: "r", Provider: "ssm", Use: task.UseFile, Dir: "/etc/app"},
	}
	c := got.Containers[0]
	if d := cmp.Diff(want, c.Secrets); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(&task.RegistryAuth{Secret: "s", Region: "r", UseExecutionRole: true}, c.Registry); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"arn:aws:s3:::b/k.env"}, c.EnvFiles); d != "" {
		t.Error(d)
	}
}

func TestNetworksOfContainers(t *testing.T) {
	w := simple(func(*acs.Task) {})
	w.Containers[0].DockerConfig = &acs.DockerConfig{Config: `{"Labels":{"berth.networks":" lan ,storage"}}`}
	got, err := Translate(w, cluster)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"lan", "storage"}, got.NetworksOf(got.Containers[0].Name)); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
}
