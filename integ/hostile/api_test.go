package hostile

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/await"
	"berth.dev/berth/integ/lab"
)

// treasure is what hostile requests must leave alone: a cluster with an instance that
// runs a task.
type treasure struct {
	t    *testing.T
	l    *lab.Lab
	a    *lab.Agent
	task string
	def  string
}

func bury(t *testing.T, l *lab.Lab) *treasure {
	t.Helper()
	ctx := context.Background()
	tr := &treasure{t: t, l: l, a: l.Agent(lab.Shape{Cluster: "treasure"})}
	def, err := l.ECS.RegisterTaskDefinition(ctx, &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("treasure"), ContainerDefinitions: []types.ContainerDefinition{{Name: aws.String("c"), Image: aws.String("i"), Memory: aws.Int32(64)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.def = *def.TaskDefinition.TaskDefinitionArn
	out, err := l.ECS.RunTask(ctx, &ecs.RunTaskInput{Cluster: aws.String("treasure"), TaskDefinition: &tr.def})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatalf("run: %v %+v", err, out)
	}
	tr.task = *out.Tasks[0].TaskArn
	await.Until(t, 20*time.Second, "the task runs", tr.check)
	return tr
}

// check asks whether the task still runs and others can be served.
func (tr *treasure) check() error {
	out, err := tr.l.ECS.DescribeTasks(context.Background(), &ecs.DescribeTasksInput{Cluster: aws.String("treasure"), Tasks: []string{tr.task}})
	if err != nil {
		return err
	}
	if len(out.Tasks) != 1 || *out.Tasks[0].LastStatus != "RUNNING" || *out.Tasks[0].DesiredStatus != "RUNNING" {
		return fmt.Errorf("task: %+v", out.Tasks)
	}
	return nil
}

func (tr *treasure) intact() {
	tr.t.Helper()
	if err := tr.check(); err != nil {
		tr.t.Fatalf("after a hostile request: %v", err)
	}
	d, err := tr.l.ECS.DescribeTaskDefinition(context.Background(), &ecs.DescribeTaskDefinitionInput{TaskDefinition: &tr.def})
	if err != nil || d.TaskDefinition.Status != types.TaskDefinitionStatusActive {
		tr.t.Fatalf("the definition: %v", err)
	}
}

// operations are all operations of the API with the members of their inputs, as the
// client library has them.
func operations() map[string][]string {
	out := map[string][]string{}
	client := reflect.TypeFor[*ecs.Client]()
	for i := range client.NumMethod() {
		m := client.Method(i)
		if m.Type.NumIn() != 4 || m.Type.In(2).Kind() != reflect.Pointer {
			continue
		}
		in := m.Type.In(2).Elem()
		if !strings.HasSuffix(in.Name(), "Input") {
			continue
		}
		members := []string{}
		for f := range in.NumField() {
			if field := in.Field(f); field.IsExported() {
				members = append(members, string(unicode.ToLower(rune(field.Name[0])))+field.Name[1:])
			}
		}
		out[m.Name] = members
	}
	return out
}

// bodies are inputs that no client sends.
func bodies(members []string) [][]byte {
	out := [][]byte{
		nil, []byte(" "), []byte("null"), []byte("[]"), []byte("1"), []byte(`"x"`), []byte("{"), []byte("{}x"), []byte("{}{}"), {0}, {0xff, 0xfe}, []byte("\xef\xbb\xbf{}"),
		[]byte(strings.Repeat("[", 100_000)), []byte(strings.Repeat(`{"a":`, 50_000)), []byte(`{"` + strings.Repeat("k", 100_000) + `":1}`),
		[]byte("{" + strings.Repeat(`"a":1,`, 50_000) + `"a":1}`), []byte(`{"unknownMember":{"x":[1,2,{"y":null}]}}`),
	}
	values := []string{
		"null", "0", "-1", "1.5", "1e400", "99999999999999999999", "true", `""`, `"` + "\x00" + `"`, `"\u0000"`, `"\ud800"`, "\"\xff\xfe\"", "[]", "[null]", "[[]]", "{}", `[{}]`,
		`"` + strings.Repeat("x", 70_000) + `"`, "[" + strings.Repeat(`"x",`, 5_000) + `"x"]`, `"arn:aws:ecs:us-east-1:123456789012:cluster/../treasure"`, `"'; DROP TABLE tasks; --"`,
		`"../../etc/passwd"`, strings.Repeat("[", 5_000) + strings.Repeat("]", 5_000), `["` + strings.Repeat("x", 70_000) + `"]`, `{"a":{"b":{"c":[]}}}`,
	}
	for _, m := range members {
		for _, v := range values {
			out = append(out, []byte(`{"`+m+`":`+v+`}`))
		}
	}
	return out
}

// Signed requests of every operation with every member wrong in every way: each is
// answered with success or a clear error of the caller's, never with a fault of ours.
func TestHostileInputs(t *testing.T) {
	l := lab.Start(t)
	tr := bury(t, l)
	sent, codes := 0, map[string]int{}
	var before usage
	ops := operations()
	if len(ops) < 60 {
		t.Fatalf("only %d operations found", len(ops))
	}
	n := 0
	for _, op := range slices.Sorted(maps.Keys(ops)) {
		members := ops[op]
		if op == "CreateService" || op == "UpdateService" {
			members = members[:4] // not offered; one refusal is like the next
		}
		for i, body := range bodies(members) {
			a, err := l.Call(op, body)
			if err != nil {
				t.Fatalf("%s %.100q: %v", op, body, err)
			}
			checkAnswer(t, op, body, a)
			codes[a.Code()]++
			if sent++; i%100 == 99 {
				tr.intact()
			}
			if a.Code() == "UnknownOperationException" && i > 20 {
				break
			}
		}
		tr.intact()
		if n++; n == len(ops)/2 {
			before = measure(t)
		}
	}
	t.Logf("%d requests: %v", sent, codes)
	if sent < 1000 {
		t.Errorf("only %d requests", sent)
	}
	if codes["ServerException"] > 0 || codes["SerializationException"] == 0 || codes["InvalidParameterException"] == 0 {
		t.Errorf("answers: %v", codes)
	}
	notGrown(t, before)
}

func checkAnswer(t *testing.T, op string, body []byte, a lab.Answer) {
	t.Helper()
	if a.Status != http.StatusOK && a.Status != http.StatusBadRequest && a.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("%s %.100q: status %d: %.300s", op, body, a.Status, a.Body)
	}
	if !json.Valid(a.Body) {
		t.Errorf("%s %.100q: the answer is no JSON: %.100q", op, body, a.Body)
	}
	if a.Status != http.StatusOK {
		var e struct {
			Type    string `json:"__type"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal(a.Body, &e); err != nil || e.Type == "" || e.Message == "" || len(a.Body) > 4096 {
			t.Errorf("%s %.100q: not a clear error (%d bytes): %.300s", op, body, len(a.Body), a.Body)
		}
	}
}

// Requests that are no ECS calls, or are broken below HTTP.
func TestHostileConnections(t *testing.T) {
	l := lab.Start(t)
	tr := bury(t, l)
	address := strings.TrimPrefix(l.URL, "http://")
	head := func(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }
	raw := []string{
		"\r\n", "\x00\x00\x00\x00", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "SSH-2.0-OpenSSH_9\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET", "GET / HTTP/9.9\r\n\r\n", "POST / HTTP/1.1\r\n\r\n", "POST\x00/ HTTP/1.1\r\n\r\n", strings.Repeat("A", 2<<20),
		head("GET /../../etc/passwd HTTP/1.1", "Host: x"), head("GET //evil HTTP/1.1", "Host: x"),
		head("CONNECT example.com:443 HTTP/1.1", "Host: x"), head("TRACE / HTTP/1.1", "Host: x"),
		head("POST / HTTP/1.1", "Host: a", "Host: b"), head("POST / HTTP/1.1", "Host: x", "Content-Length: -5"),
		head("POST / HTTP/1.1", "Host: x", "Content-Length: 99999999999999999999"), head("POST / HTTP/1.1", "Host: x", "Content-Length: 5", "Content-Length: 6") + "hello",
		head("POST / HTTP/1.1", "Host: x", "Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n",
		head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked") + "FFFFFFFFFFFFFFFF\r\n", head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked, gzip") + "0\r\n\r\n",
		head("POST / HTTP/1.1", "Host: x", "Expect: nonsense", "Content-Length: 2") + "{}", head("POST / HTTP/1.1", "Host: x", "X: "+strings.Repeat("y", 2<<20)),
		"POST / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 20_000) + "\r\n",
		head("POST / HTTP/1.1", "Host: x", "X-Amz-Target: "+strings.Repeat("x", 20_000), "Content-Length: 2") + "{}",
		head("POST / HTTP/1.1", "Host: x", "Authorization: AWS4-HMAC-SHA256 Credential="+strings.Repeat("/", 10_000), "Content-Length: 0"),
		head("POST / HTTP/1.1", "Host: x", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 3") + "%zz",
		head("POST / HTTP/1.1", "Host: x", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 40000") + strings.Repeat("a=b&", 10_000),
		head("GET /ws HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"), head("GET /ws HTTP/1.1", "Host: x"),
		head("GET /ws?containerInstanceArn="+strings.Repeat("a", 5_000)+" HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
		head("POST /berth/v1/instance-keys HTTP/1.1", "Host: x", "Content-Length: 0"), head("DELETE /berth/v1/instance-keys HTTP/1.1", "Host: x"),
		head("POST /berth/v1/instance-keys HTTP/1.1", "Host: x", "Content-Length: 6000000") + strings.Repeat("x", 100_000),
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"half\":", // and then nothing
	}
	before := measure(t)
	for round := range 10 {
		for i, request := range raw {
			if err := throw(address, request); err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
		}
		if round%5 == 0 {
			tr.intact()
		}
	}
	l.HTTP.CloseIdleConnections()
	tr.intact()
	notGrown(t, before)
}

// throw sends raw bytes and reads whatever comes back for a moment. An answer that is
// HTTP must not be a success or a fault of the server.
func throw(address, request string) error {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return fmt.Errorf("the server takes no connection: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(150 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, request); err != nil {
		return nil // it hung up already, as it may
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil // no answer, as it may
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTemporaryRedirect && strings.HasPrefix(resp.Header.Get("Location"), "/") {
		return nil // to the same path without the dots
	}
	if resp.StatusCode < 400 || resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented && resp.StatusCode != http.StatusHTTPVersionNotSupported {
		return fmt.Errorf("%.60q was answered with %s", request, resp.Status)
	}
	return nil
}

// Clients that send a byte now and then do not keep others from being served.
func TestSlowClients(t *testing.T) {
	l := lab.Start(t)
	tr := bury(t, l)
	before := measure(t)
	var conns []net.Conn
	for range 300 {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(l.URL, "http://"), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 {
		tr.intact()
	}
	for _, c := range conns {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	notGrown(t, before)
}
