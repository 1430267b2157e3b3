package api

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/awsjson"
)

// definition decodes a definition whose text may leave out the family.
func definition(t testing.TB, text string) *types.TaskDefinition {
	t.Helper()
	d := new(types.TaskDefinition)
	if err := awsjson.Unmarshal([]byte(text), d); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if d.Family == nil {
		f := "f"
		d.Family = &f
	}
	return d
}

// one is a definition of one container with more members, and more members
// of the definition itself.
func one(container, rest string) string {
	if container != "" {
		container = "," + container
	}
	if rest != "" {
		rest = "," + rest
	}
	return `{"containerDefinitions":[{"name":"a","image":"i","memory":64` + container + `}]` + rest + `}`
}

// two is a definition of the containers a and b, which is not essential.
func two(a, b, rest string) string {
	return `{"containerDefinitions":[{"name":"a","image":"i","memory":64,` + a + `},{"name":"b","image":"i","memory":64,"essential":false` + b + `}]` + rest + `}`
}

const fargate = `"requiresCompatibilities":["FARGATE"],"networkMode":"awsvpc","cpu":"256","memory":"512"`

func TestDefinitionRules(t *testing.T) {
	long := strings.Repeat("a", 256)
	digest := "@sha256:" + strings.Repeat("0", 64)
	tests := []struct{ name, text, want string }{
		{"minimal", one("", ""), ""},
		{"family characters", `{"family":"a b","containerDefinitions":[{"name":"a","image":"i","memory":64}]}`, "Family contains invalid characters"},
		{"family length", `{"family":"` + long + `","containerDefinitions":[{"name":"a","image":"i","memory":64}]}`, "Family"},
		{"size", one(`"environment":[{"name":"A","value":"`+strings.Repeat("x", 70000)+`"}]`, ""), "exceeds the limit of 65536 bytes"},
		{"no containers", `{"containerDefinitions":[]}`, "Container list cannot be empty."},
		{"eleven containers", `{"containerDefinitions":[` + strings.Repeat(`{},`, 10) + `{}]}`, "more than 10"},
		{"no name", `{"containerDefinitions":[{"image":"i"}]}`, "Container.name should not be null or empty."},
		{"no image", `{"containerDefinitions":[{"name":"a"}]}`, "Container.image should not be null or empty."},
		{"name characters", `{"containerDefinitions":[{"name":"a.b","image":"i"}]}`, "Container name a.b is invalid"},
		{"same name", `{"containerDefinitions":[{"name":"a","image":"i","memory":64},{"name":"a","image":"i","memory":64}]}`, "must be unique"},
		{"none essential", one(`"essential":false`, ""), "marked as essential"},
		{"image length", `{"containerDefinitions":[{"name":"a","image":"` + long + `","memory":64}]}`, "at most 255"},
		{"image with digest", `{"containerDefinitions":[{"name":"a","image":"` + long[:255] + digest + `","memory":64}]}`, ""},
		{"image with other digest", `{"containerDefinitions":[{"name":"a","image":"i@sha512:00","memory":64}]}`, "only sha256"},
		{"image with a space", `{"containerDefinitions":[{"name":"a","image":"a b","memory":64}]}`, "invalid characters"},

		{"no memory", `{"containerDefinitions":[{"name":"X","image":"i"}]}`, "Invalid setting for container 'X'. At least one of 'memory' or 'memoryReservation' must be specified."},
		{"memory of the task", `{"containerDefinitions":[{"name":"X","image":"i"}],"memory":"128"}`, ""},
		{"little memory", `{"containerDefinitions":[{"name":"X","image":"i","memory":5}]}`, "at least 6 MiB"},
		{"reservation above memory", one(`"memoryReservation":64`, ""), "greater than 'memoryReservation'"},
		{"negative cpu", one(`"cpu":-1`, ""), "must not be negative"},
		{"sum of cpu", one(`"cpu":300`, `"cpu":"256"`), "exceeds the 'cpu' of the task"},
		{"sum of memory", one("", `"memory":"32"`), "exceeds the 'memory' of the task"},
		{"memory above the task's", one(`"memoryReservation":8`, `"memory":"32"`), "Its 'memory' exceeds"},
		{"cpu in words", one("", `"cpu":"1 vCPU","memory":"1GB"`), ""},
		{"cpu garbled", one("", `"cpu":"many"`), "Invalid 'cpu' setting for task."},
		{"little cpu", one("", `"cpu":"127"`), "Invalid 'cpu' setting for task."},
		{"memory garbled", one("", `"memory":"1 XB"`), "Invalid 'memory' setting for task."},
		{"fargate", one("", fargate), ""},
		{"fargate without cpu", one("", `"requiresCompatibilities":["FARGATE"],"networkMode":"awsvpc","memory":"512"`), "Fargate requires that 'cpu' be defined at the task level."},
		{"fargate without memory", one("", `"requiresCompatibilities":["FARGATE"],"networkMode":"awsvpc","cpu":"256"`), "Fargate requires that 'memory' be defined"},
		{"fargate size", one("", `"requiresCompatibilities":["FARGATE"],"networkMode":"awsvpc","cpu":"256","memory":"4096"`), "No Fargate configuration exists for given values."},
		{"fargate network", one("", `"requiresCompatibilities":["FARGATE"],"cpu":"256","memory":"512"`), "awsvpc"},

		{"external awsvpc", one("", `"requiresCompatibilities":["EXTERNAL"],"networkMode":"awsvpc"`), "EXTERNAL"},
		{"no container port", one(`"portMappings":[{}]`, ""), "containerPort"},
		{"large port", one(`"portMappings":[{"containerPort":65536}]`, ""), "containerPort"},
		{"large host port", one(`"portMappings":[{"containerPort":1,"hostPort":65536}]`, ""), "hostPort"},
		{"ports without a network", one(`"portMappings":[{"containerPort":80}]`, `"networkMode":"none"`), "networkMode=none"},
		{"other host port", one(`"portMappings":[{"containerPort":80,"hostPort":81}]`, `"networkMode":"host"`), "must match"},
		{"other host port in awsvpc", one(`"portMappings":[{"containerPort":80,"hostPort":81}]`, `"networkMode":"awsvpc"`), "must match"},
		{"same port twice", one(`"portMappings":[{"containerPort":80},{"containerPort":80}]`, ""), "more than once"},
		{"two protocols", one(`"portMappings":[{"containerPort":80},{"containerPort":80,"protocol":"udp"}]`, ""), "two protocols"},
		{"same host port", two(`"portMappings":[{"containerPort":80,"hostPort":8}]`, `,"portMappings":[{"containerPort":81,"hostPort":8}]`, ""), "used by container 'a' too"},
		{"dynamic ports", two(`"portMappings":[{"containerPort":80}]`, `,"portMappings":[{"containerPort":80,"hostPort":0}]`, ""), ""},
		{"same port of one address", two(`"portMappings":[{"containerPort":80}]`, `,"portMappings":[{"containerPort":80}]`, `,"networkMode":"host"`), "used by container 'a' too"},
		{"range", one(`"portMappings":[{"containerPortRange":"80-90"}]`, ""), ""},
		{"range backwards", one(`"portMappings":[{"containerPortRange":"90-80"}]`, ""), "containerPortRange"},
		{"range and host port", one(`"portMappings":[{"containerPortRange":"80-90","hostPort":1}]`, ""), "cannot be given with"},
		{"ranges overlap", one(`"portMappings":[{"containerPortRange":"80-90"},{"containerPortRange":"90-95"}]`, ""), "overlap"},
		{"range in host mode", one(`"portMappings":[{"containerPortRange":"80-90"}]`, `"networkMode":"host"`), "bridge"},
		{"port name", one(`"portMappings":[{"containerPort":80,"name":"-x"}]`, ""), "port name"},
		{"links in host mode", two(`"links":["b"]`, "", `,"networkMode":"host"`), "Links are not supported"},
		{"links", two(`"links":["b:alias"]`, "", ""), ""},
		{"link to nobody", one(`"links":["x"]`, ""), "does not exist"},
		{"hostname in awsvpc", one(`"hostname":"h"`, `"networkMode":"awsvpc"`), "Hostname"},
		{"dns in awsvpc", one(`"dnsServers":["1.1.1.1"]`, `"networkMode":"awsvpc"`), "DNS"},
		{"extra hosts in awsvpc", one(`"extraHosts":[{"hostname":"h","ipAddress":"1.1.1.1"}]`, `"networkMode":"awsvpc"`), "Extra hosts"},

		{"fargate pid", one("", fargate+`,"pidMode":"host"`), "Tasks using the Fargate launch type do not support pidMode 'host'. The supported value for pidMode is 'task'."},
		{"fargate ipc", one("", fargate+`,"ipcMode":"task"`), "ipcMode"},
		{"sysctl in host mode", one(`"systemControls":[{"namespace":"net.core.somaxconn","value":"1"}]`, `"networkMode":"host"`), "networkMode 'host'"},
		{"sysctl in host ipc", one(`"systemControls":[{"namespace":"kernel.sem","value":"1"}]`, `"ipcMode":"host"`), "ipcMode 'host'"},
		{"sysctl of the host", one(`"systemControls":[{"namespace":"kernel.panic","value":"1"}]`, ""), "not supported"},
		{"sysctl", one(`"systemControls":[{"namespace":"net.core.somaxconn","value":"1"}]`, ""), ""},

		{"depends on nobody", one(`"dependsOn":[{"containerName":"x","condition":"START"}]`, ""), "Cannot depend on container + 'x' because it does not exist"},
		{"depends on itself", one(`"dependsOn":[{"containerName":"a","condition":"START"}]`, ""), "cycle"},
		{"depends in a cycle", two(`"dependsOn":[{"containerName":"b","condition":"START"}]`, `,"dependsOn":[{"containerName":"a","condition":"START"}]`, ""), "cycle"},
		{"completion of an essential", two(`"cpu":1`, `,"dependsOn":[{"containerName":"a","condition":"COMPLETE"}]`, ""), "essential container 'a'"},
		{"completion", two(`"dependsOn":[{"containerName":"b","condition":"SUCCESS"}]`, "", ""), ""},
		{"health without a check", two(`"dependsOn":[{"containerName":"b","condition":"HEALTHY"}]`, "", ""), "no health check"},
		{"health", two(`"dependsOn":[{"containerName":"b","condition":"HEALTHY"}]`, `,"healthCheck":{"command":["CMD-SHELL","true"]}`, ""), ""},
		{"volumes from nobody", one(`"volumesFrom":[{"sourceContainer":"x"}]`, ""), "volumesFrom"},

		{"health command", one(`"healthCheck":{"command":["true"]}`, ""), "CMD or CMD-SHELL"},
		{"health interval", one(`"healthCheck":{"command":["CMD","true"],"interval":4}`, ""), "interval of container 'a' must be between 5 and 300"},
		{"health timeout", one(`"healthCheck":{"command":["CMD","true"],"timeout":61}`, ""), "timeout"},
		{"health retries", one(`"healthCheck":{"command":["CMD","true"],"retries":0}`, ""), "retries"},
		{"health start period", one(`"healthCheck":{"command":["CMD","true"],"startPeriod":301}`, ""), "startPeriod"},
		{"stop timeout", one(`"stopTimeout":121`, ""), ""},
		{"stop timeout on fargate", one(`"stopTimeout":121`, fargate), "stopTimeout"},
		{"start timeout on fargate", one(`"startTimeout":1`, fargate), "startTimeout"},
		{"negative timeout", one(`"stopTimeout":-1`, ""), "negative"},
		{"restart period", one(`"restartPolicy":{"enabled":true,"restartAttemptPeriod":59}`, ""), "between 60 and 1800"},
		{"environment file", one(`"environmentFiles":[{"type":"s3","value":"x.txt"}]`, ""), ".env"},
		{"variable name", one(`"environment":[{"name":"","value":"x"}]`, ""), "environment variable"},
		{"secret and variable", one(`"environment":[{"name":"A","value":"x"}],"secrets":[{"name":"A","valueFrom":"b"}]`, ""), "secret name must be unique"},
		{"awslogs", one(`"logConfiguration":{"logDriver":"awslogs"}`, ""), "awslogs-group"},
		{"log driver on fargate", one(`"logConfiguration":{"logDriver":"json-file"}`, fargate), "not supported on Fargate"},
		{"log router is missing", one(`"logConfiguration":{"logDriver":"awsfirelens"}`, ""), "firelensConfiguration"},
		{"privileged on fargate", one(`"privileged":true`, fargate), "privileged"},
		{"capability on fargate", one(`"linuxParameters":{"capabilities":{"add":["NET_ADMIN"]}}`, fargate), "SYS_PTRACE"},
		{"tmpfs", one(`"linuxParameters":{"tmpfs":[{"containerPath":"/t"}]}`, ""), "tmpfs"},
		{"swappiness", one(`"linuxParameters":{"swappiness":101}`, ""), "swappiness"},
		{"tmpfs option", one(`"linuxParameters":{"tmpfs":[{"containerPath":"/t","size":1,"mountOptions":["bind"]}]}`, ""), "mount option 'bind'"},
		{"tmpfs options", one(`"linuxParameters":{"tmpfs":[{"containerPath":"/t","size":1,"mountOptions":["exec","mode=700"]}]}`, ""), ""},
		{"unknown capability", one(`"linuxParameters":{"capabilities":{"add":["FLY"]}}`, ""), "capability 'FLY'"},
		{"capability", one(`"linuxParameters":{"capabilities":{"add":["ALL"],"drop":["CAP_NET_RAW"]}}`, ""), ""},
		{"relative device", one(`"linuxParameters":{"devices":[{"hostPath":"dev/x"}]}`, ""), "not absolute"},
		{"security option", one(`"dockerSecurityOptions":["open-sesame"]`, ""), "security option 'open-sesame'"},
		{"security options", one(`"dockerSecurityOptions":["no-new-privileges","seccomp:unconfined","apparmor=mine","label:type:x"]`, ""), ""},
		{"runtime label", one(`"dockerLabels":{"berth.runtime":"/bin/sh"}`, ""), "name of a runtime"},
		{"networks label", one(`"dockerLabels":{"berth.networks":"lan,../x"}`, ""), "names of networks"},
		{"ulimit", one(`"ulimits":[{"name":"nofile","softLimit":2,"hardLimit":1}]`, ""), "ulimit nofile"},

		{"volume", one(`"mountPoints":[{"sourceVolume":"v","containerPath":"/x"}]`, `"volumes":[{"name":"v"}]`), ""},
		{"unknown volume", one(`"mountPoints":[{"sourceVolume":"v","containerPath":"/x"}]`, ""), "Unknown volume 'v'."},
		{"relative path", one(`"mountPoints":[{"sourceVolume":"v","containerPath":"x"}]`, `"volumes":[{"name":"v"}]`), "not absolute"},
		{"same volume", one("", `"volumes":[{"name":"v"},{"name":"v"}]`), "must be unique"},
		{"volume name", one("", `"volumes":[{"name":"a/b"}]`), "Volume name"},
		{"two kinds", one("", `"volumes":[{"name":"v","host":{"sourcePath":"/x"},"dockerVolumeConfiguration":{"scope":"task"}}]`), "only one configuration"},
		{"relative source", one("", `"volumes":[{"name":"v","host":{"sourcePath":"x"}}]`), "must be absolute"},
		{"source on fargate", one("", fargate+`,"volumes":[{"name":"v","host":{"sourcePath":"/x"}}]`), "not supported on Fargate"},
		{"autoprovision", one("", `"volumes":[{"name":"v","dockerVolumeConfiguration":{"scope":"task","autoprovision":true}}]`), "autoprovision"},
		{"efs iam", one("", `"volumes":[{"name":"v","efsVolumeConfiguration":{"fileSystemId":"fs-1","authorizationConfig":{"iam":"ENABLED"}}}]`), "transit encryption"},
		{"two at launch", one("", `"volumes":[{"name":"v","configuredAtLaunch":true},{"name":"w","configuredAtLaunch":true}]`), "configured at launch"},
		{"storage", one("", `"ephemeralStorage":{"sizeInGiB":20}`), "between 21 and 200"},
		{"constraint", one("", `"placementConstraints":[{"type":"memberOf","expression":"attribute:a == b"}]`), ""},
		{"bad constraint", one("", `"placementConstraints":[{"type":"memberOf","expression":"((("}]`), "Invalid expression"},
		{"constraint type", one("", `"placementConstraints":[{"type":"distinctInstance"}]`), "memberOf only"},
		{"proxy", one("", `"proxyConfiguration":{"containerName":"x"}`), "proxy configuration"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			err := checkDefinition(definition(t, tc.text))
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || e.Code != "ClientException" || !strings.Contains(e.Message, tc.want) {
				t.Fatalf("got %v, want ClientException with %q", err, tc.want)
			}
		})
	}
}

func TestRequiredAttributes(t *testing.T) {
	for text, want := range map[string]string{
		one("", ""): "[]",
		one(`"dockerLabels":{"berth.runtime":"crun"}`, ""):                                                                          "[berth.capability.runtime.crun]",
		one(`"dockerLabels":{"berth.networks":"lan, storage"}`, ""):                                                                 "[berth.capability.network.lan berth.capability.network.storage]",
		one(`"dockerSecurityOptions":["label:type:x","apparmor=y"]`, ""):                                                            "[com.amazonaws.ecs.capability.apparmor com.amazonaws.ecs.capability.selinux]",
		one(`"privileged":true`, ""):                                                                                                "[com.amazonaws.ecs.capability.privileged-container]",
		one(`"logConfiguration":{"logDriver":"json-file"}`, ""):                                                                     "[com.amazonaws.ecs.capability.logging-driver.json-file]",
		one("", `"volumes":[{"name":"v","dockerVolumeConfiguration":{}}]`):                                                          "[ecs.capability.docker-plugin.local]",
		one(`"restartPolicy":{"enabled":true}`, `"cpu":"1024"`):                                                                     "[ecs.capability.container-restart-policy ecs.capability.task-cpu-mem-limit]",
		one(`"secrets":[{"name":"A","valueFrom":"arn:aws:secretsmanager:us-east-1:0:secret:x"},{"name":"B","valueFrom":"/p"}]`, ""): "[ecs.capability.secrets.asm.environment-variables ecs.capability.secrets.ssm.environment-variables]",
		one(`"user":"1000","firelensConfiguration":{"type":"fluentbit","options":{"config-file-type":"file","config-file-value":"/x"}},"logConfiguration":{"logDriver":"awsfirelens","options":{"log-driver-buffer-limit":"1"}}`, ""): "[com.amazonaws.ecs.capability.logging-driver.awsfirelens ecs.capability.firelens.fluentbit ecs.capability.firelens.non-root-user ecs.capability.firelens.options.config.file ecs.capability.logging-driver.awsfirelens.log-driver-buffer-limit]",
		one(`"logConfiguration":{"logDriver":"splunk","secretOptions":[{"name":"splunk-token","valueFrom":"arn:aws:secretsmanager:us-east-1:0:secret:x"},{"name":"tag","valueFrom":"/p"}]}`, ""):                                      "[com.amazonaws.ecs.capability.logging-driver.splunk ecs.capability.secrets.asm.bootstrap.log-driver ecs.capability.secrets.ssm.bootstrap.log-driver]",
		one("", `"taskRoleArn":"r","networkMode":"host"`): "[com.amazonaws.ecs.capability.task-iam-role com.amazonaws.ecs.capability.task-iam-role-network-host]",
	} {
		var names []string
		for _, a := range requiredAttributes(definition(t, text)) {
			names = append(names, *a.Name)
		}
		if got := fmt.Sprint(names); got != want {
			t.Errorf("%s requires %s, want %s", text, got, want)
		}
	}
}

// TestSuppliedOperationsHaveChecks makes the whole table, so that an
// operation the model does not know is found.
func TestSuppliedOperationsHaveChecks(t *testing.T) {
	ops, err := new(API).table()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range ops {
		if o.check == nil || o.call == nil {
			t.Errorf("%s is not complete", name)
		}
		// Unions of features that the cluster does not offer.
		for _, skipped := range awsjson.Skipped(o.input) {
			if skipped != "ResourceRequirement.SharingStrategy" {
				t.Errorf("%s: member %s is not decoded", name, skipped)
			}
		}
	}
}

// FuzzRegister feeds request bodies to everything that happens before a
// definition is stored.
func FuzzRegister(f *testing.F) {
	f.Add([]byte(one("", fargate)))
	f.Add([]byte(two(`"dependsOn":[{"containerName":"b","condition":"START"}]`, `,"links":["a"]`, "")))
	f.Add([]byte(one(`"portMappings":[{"containerPortRange":"80-90"}],"healthCheck":{"command":["CMD","a"]}`, `"volumes":[{"name":"v"}]`)))
	a := new(API)
	ops, err := a.table()
	if err != nil {
		f.Fatal(err)
	}
	check := ops["RegisterTaskDefinition"].check
	f.Fuzz(func(t *testing.T, body []byte) {
		in := new(ecs.RegisterTaskDefinitionInput)
		if awsjson.Unmarshal(body, in) != nil || check.Check(in) != nil {
			return
		}
		d := &types.TaskDefinition{
			Family: in.Family, ContainerDefinitions: in.ContainerDefinitions, Cpu: in.Cpu, Memory: in.Memory,
			NetworkMode: in.NetworkMode, Volumes: in.Volumes, RequiresCompatibilities: in.RequiresCompatibilities,
			PlacementConstraints: in.PlacementConstraints, PidMode: in.PidMode, IpcMode: in.IpcMode,
			ProxyConfiguration: in.ProxyConfiguration, EphemeralStorage: in.EphemeralStorage,
		}
		if checkDefinition(d) != nil {
			return
		}
		completeDefinition(d)
		compatibilities(d)
		requiredAttributes(d)
		if err := checkDefinition(d); err != nil {
			t.Fatalf("completed, it is refused: %v", err)
		}
	})
}
