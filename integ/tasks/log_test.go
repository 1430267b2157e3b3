package tasks

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/runtime/logfile"
	services "berth.dev/berth/integ/aws"
	"berth.dev/berth/integ/system"
)

// logs are about what becomes of a container's output.
func logs() []scenario {
	driver := func(d types.LogDriver, options map[string]string) func(c *types.ContainerDefinition) {
		return func(c *types.ContainerDefinition) {
			c.LogConfiguration = &types.LogConfiguration{LogDriver: d, Options: options}
		}
	}
	rotated := func(files int, atMost int64) func(t *testing.T, l *lab, tk types.Task) {
		return func(t *testing.T, l *lab, tk types.Task) {
			var lines []string
			system.Until(t, 5*time.Second, "the last line is in the log", func() error {
				lines = l.output(t, tk, "main")
				if n := len(lines); n < 10 || lines[n-1] != "3000" {
					return fmt.Errorf("the log has %d lines, the last are %q", n, lines[max(0, n-3):])
				}
				return nil
			})
			// Once more, now that nothing is written: a reader that does not follow misses
			// what is rotated away while it reads.
			lines = l.output(t, tk, "main")
			first := 3000 - len(lines) + 1
			want := make([]string, 0, len(lines))
			for n := first; n <= 3000; n++ {
				want = append(want, fmt.Sprint(n))
			}
			if !slices.Equal(lines, want) {
				t.Error("lines are missing between the first and the last")
			}
			path := l.Runtime.LogPath(taskID(tk), "main")
			for i := range files + 1 {
				st, err := os.Stat(logfile.Rotated(path, i))
				if packed, perr := os.Stat(logfile.Rotated(path, i) + ".gz"); perr == nil && err != nil {
					st, err = packed, nil
				}
				if exists := err == nil; exists != (i < files) {
					t.Errorf("file %d of the log: %v", i, err)
				} else if exists && st.Size() > atMost {
					t.Errorf("file %d of the log has %d bytes, want at most %d", i, st.Size(), atMost)
				}
			}
		}
	}
	ok := exited(end{"main", 0, ""})
	refused := func(reason string) outcome {
		reason = "CannotCreateContainerError: container main: " + reason
		return outcome{StopCode: types.TaskStopCodeTaskFailedToStart, Reason: reason, Containers: []end{{"main", noExit, reason}}}
	}
	var datagrams net.PacketConn
	var collector net.Listener
	return []scenario{
		{name: "rotated log", want: ok, define: task(nil, container("seq", "1", "3000")), ended: rotated(3, 4096)},
		{
			name: "rotated as the container says", want: ok, ended: rotated(2, 8192),
			define: task(nil, with(container("seq", "1", "3000"), driver(types.LogDriverJsonFile, map[string]string{"max-size": "8k", "max-file": "2"}))),
		},
		{
			name: "rotated and compressed", want: ok, ended: func(t *testing.T, l *lab, tk types.Task) {
				rotated(3, 4096)(t, l, tk)
				path := l.Runtime.LogPath(taskID(tk), "main")
				for i := 1; i < 3; i++ {
					if _, err := os.Stat(logfile.Rotated(path, i) + ".gz"); err != nil {
						t.Error(err)
					}
				}
			},
			define: task(nil, with(container("seq", "1", "3000"), driver(types.LogDriverJsonFile, map[string]string{"max-size": "4k", "max-file": "3", "compress": "true"}))),
		},
		{
			name: "compression of what is not rotated", want: refused("log option compress: it is for rotated files, and max-file 1 leaves none; set max-file to 2 or more"),
			define: task(nil, with(container("true"), driver(types.LogDriverJsonFile, map[string]string{"max-file": "1", "compress": "true"}))),
		},
		{
			name: "both streams", want: ok, output: []string{"out", "err"},
			define: task(nil, shell("echo out; sleep 0.2; echo err >&2")),
		},
		{
			name: "unknown option of a log driver", want: refused(`unknown log opt "color" for json-file log driver; it has compress, env, env-regex, labels, labels-regex, max-file, max-size, tag`),
			define: task(nil, with(container("true"), driver(types.LogDriverJsonFile, map[string]string{"color": "red"}))),
		},
		{
			name: "wrong value of a log option", want: refused(`log option gelf-address: "tls://there" is not an address such as udp://host:port; the protocols are udp, tcp`),
			define: task(nil, with(container("true"), driver(types.LogDriverGelf, map[string]string{"gelf-address": "tls://there"}))),
		},
		{
			name: "log option that is missing", want: refused("log driver splunk requires the option splunk-url"),
			define: task(nil, with(container("true"), driver(types.LogDriverSplunk, map[string]string{"splunk-token": "t"}))),
		},
		{
			name: "output to syslog", want: ok, output: []string{"to the log host"},
			define: func(l *lab) *ecs.RegisterTaskDefinitionInput {
				var err error
				if datagrams, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
					panic(err) // the scenario cannot be defined
				}
				return task(nil, with(container("echo", "to the log host"), driver(types.LogDriverSyslog, map[string]string{
					"syslog-address": "udp://" + datagrams.LocalAddr().String(), "tag": "app", "syslog-facility": "local3",
				})))(l)
			},
			ended: func(t *testing.T, _ *lab, _ types.Task) {
				defer datagrams.Close()
				b := make([]byte, 1000)
				if err := datagrams.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
					t.Fatal(err)
				}
				n, _, err := datagrams.ReadFrom(b)
				if text := string(b[:n]); err != nil || !strings.HasPrefix(text, "<158>") || !strings.Contains(text, " app[") || !strings.HasSuffix(text, "]: to the log host") {
					t.Errorf("got %q: %v", text, err)
				}
			},
		},
		{
			name: "output to CloudWatch Logs", want: ok, output: []string{"to the cloud"},
			define: func(l *lab) *ecs.RegisterTaskDefinitionInput {
				key, err := os.ReadFile(filepath.Join(l.Dir, "agent.key"))
				if err != nil {
					panic(err)
				}
				var k services.Key
				if _, err := fmt.Sscanf(string(key), "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", &k.ID, &k.Secret); err != nil {
					panic(err)
				}
				l.services.Allow(k)
				return task(nil, with(container("echo", "to the cloud"), driver(types.LogDriverAwslogs, map[string]string{
					"awslogs-group": "/ecs/app", "awslogs-region": "us-east-1", "awslogs-create-group": "true", "awslogs-stream-prefix": "p", "awslogs-endpoint": l.services.URL,
				})))(l)
			},
			ended: func(t *testing.T, l *lab, tk types.Task) {
				system.Until(t, 10*time.Second, "the line is there", func() error {
					if e := l.services.LogEvents("us-east-1", "/ecs/app", "p/main/"+taskID(tk)); len(e) != 1 || e[0].Message != "to the cloud" {
						return fmt.Errorf("events %v, calls %d", e, len(l.services.Calls("logs")))
					}
					return nil
				})
			},
		},
		{
			name: "output to CloudWatch Logs in the name of the execution role", want: ok,
			define: func(l *lab) *ecs.RegisterTaskDefinitionInput {
				return task(func(in *ecs.RegisterTaskDefinitionInput) {
					in.ExecutionRoleArn = aws.String("arn:aws:iam::000000000000:role/exec")
				}, with(container("echo", "by the role"), driver(types.LogDriverAwslogs, map[string]string{
					"awslogs-group": "/ecs/role", "awslogs-region": "us-east-1", "awslogs-create-group": "true", "awslogs-stream-prefix": "p", "awslogs-endpoint": l.services.URL,
				})))(l)
			},
			ended: func(t *testing.T, l *lab, tk types.Task) {
				system.Until(t, 10*time.Second, "the line is there", func() error {
					if e := l.services.LogEvents("us-east-1", "/ecs/role", "p/main/"+taskID(tk)); len(e) != 1 || e[0].Message != "by the role" {
						return fmt.Errorf("events %v", e)
					}
					return nil
				})
				if !slices.ContainsFunc(l.services.Calls("logs"), func(c services.Call) bool { return c.KeyID == "ASIAEXECUTION" }) {
					t.Error("the execution role signed nothing")
				}
			},
		},
		{
			name: "log option that is a secret", want: ok,
			define: func(l *lab) *ecs.RegisterTaskDefinitionInput {
				var err error
				if collector, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
					panic(err) // the scenario cannot be defined
				}
				return task(func(in *ecs.RegisterTaskDefinitionInput) {
					in.ExecutionRoleArn = aws.String("arn:aws:iam::000000000000:role/exec")
				}, with(container("echo", "to the collector"), func(c *types.ContainerDefinition) {
					c.LogConfiguration = &types.LogConfiguration{
						LogDriver: types.LogDriverSplunk, Options: map[string]string{"splunk-url": "http://" + collector.Addr().String(), "splunk-verify-connection": "false"},
						SecretOptions: []types.Secret{{Name: aws.String("splunk-token"), ValueFrom: aws.String("/app/db")}},
					}
				}))(l)
			},
			ended: func(t *testing.T, _ *lab, _ types.Task) {
				defer collector.Close()
				got := make(chan string, 1)
				go http.Serve(collector, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:errcheck,gosec // it is closed
					b, err := io.ReadAll(r.Body)
					got <- fmt.Sprint(r.Header.Get("Authorization"), " ", string(b), err)
				}))
				select {
				case s := <-got:
					if !strings.HasPrefix(s, "Splunk parameter-value {") || !strings.Contains(s, `"line":"to the collector"`) {
						t.Errorf("got %s", s)
					}
				case <-time.After(2 * time.Minute):
					t.Error("nothing came")
				}
			},
		},
		{
			name: "output to a log router",
			define: task(nil,
				with(named("router", shell("cat /fluent-bit/etc/fluent-bit.conf; ls -d /var/run; exec sleep 3600")), func(c *types.ContainerDefinition) {
					c.FirelensConfiguration = &types.FirelensConfiguration{Type: types.FirelensConfigurationTypeFluentbit, Options: map[string]string{"config-file-type": "file", "config-file-value": "/extra.conf"}}
				}),
				with(shell("echo to $FLUENT_HOST:$FLUENT_PORT; exec sleep 3600"), driver(types.LogDriverAwsfirelens, map[string]string{"Name": "stdout", "exclude-pattern": "secret"}))),
			running: func(t *testing.T, l *lab, tk types.Task) {
				// Fluent Bit itself is not here: the test listens where it would.
				listener, err := net.Listen("unix", filepath.Join(l.Dir, "run", "firelens", taskID(tk), "socket", "fluent.sock"))
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
				conn, err := listener.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				b := make([]byte, 4096)
				n, err := conn.Read(b)
				address := regexp.MustCompile(`to [0-9.]+:24224`)
				if text := string(b[:n]); err != nil || !strings.Contains(text, "main-firelens-"+taskID(tk)) || !address.MatchString(text) || !strings.Contains(text, "chunk") {
					t.Errorf("got %q: %v", text, err)
				}
				config := strings.Join(l.output(t, tk, "router"), "\n")
				for _, want := range []string{"unix_path /var/run/fluent.sock", "Mem_Buf_Limit 16MB", "Exclude log secret", "@INCLUDE /extra.conf", "Record ecs_task_arn " + aws.ToString(tk.TaskArn), "    Name stdout\n    Match main-firelens*"} {
					if !strings.Contains(config, want) {
						t.Errorf("the configuration lacks %q:\n%s", want, config)
					}
				}
			},
			want: stopped(end{"router", 137, ""}, end{"main", 137, ""}),
		},
		{
			name: "log router without an output", want: outcome{
				StopCode: types.TaskStopCodeTaskFailedToStart, Containers: []end{{"router", noExit, ""}, {"main", noExit, ""}},
				Reason: "ResourceInitializationError: unable to generate firelens config: container main: missing output key @type which is required for firelens configuration of type fluentd",
			},
			define: task(nil,
				with(named("router", shell("exec sleep 3600")), func(c *types.ContainerDefinition) {
					c.FirelensConfiguration = &types.FirelensConfiguration{Type: types.FirelensConfigurationTypeFluentd}
				}),
				with(container("true"), driver(types.LogDriverAwsfirelens, map[string]string{"Name": "stdout"}))),
		},
	}
}
