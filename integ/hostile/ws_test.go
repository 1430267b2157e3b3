package hostile

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/coder/websocket"

	"berth.dev/berth/cluster"
	"berth.dev/berth/integ/await"
	"berth.dev/berth/integ/lab"
	"berth.dev/berth/wire/acs"
)

// intruder is an instance whose key is real and whose agent is not honest.
type intruder struct {
	t   *testing.T
	l   *lab.Lab
	key cluster.Key
	arn string
}

func newIntruder(t *testing.T, l *lab.Lab) *intruder {
	t.Helper()
	i := &intruder{t: t, l: l, key: l.InstanceKey()}
	out, err := l.Client(i.key).RegisterContainerInstance(context.Background(), &ecs.RegisterContainerInstanceInput{
		Cluster: aws.String("treasure"), TotalResources: []types.Resource{{Name: aws.String("CPU"), Type: aws.String("INTEGER"), IntegerValue: 1024}},
	})
	if err != nil {
		t.Fatal(err)
	}
	i.arn = *out.ContainerInstance.ContainerInstanceArn
	return i
}

// dial opens a session for an instance; a refusal is its HTTP status.
func (i *intruder) dial(k cluster.Key, instance, clusterName string) (*websocket.Conn, int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	q := url.Values{"containerInstanceArn": {instance}, "clusterArn": {clusterName}, "agentVersion": {"1.86.0"}, "agentHash": {"x"}, "seqNum": {"1"}, "sendCredentials": {"true"}, "protocolVersion": {"2"}}
	req, err := i.l.Request(http.MethodGet, "/ws?"+q.Encode(), nil)
	if err != nil {
		return nil, 0, err
	}
	if err := lab.Sign(req, nil, k, time.Now()); err != nil {
		return nil, 0, err
	}
	c, resp, err := websocket.Dial(ctx, strings.Replace(req.URL.String(), "http", "ws", 1), &websocket.DialOptions{HTTPHeader: req.Header})
	if err != nil {
		if resp == nil {
			return nil, 0, err
		}
		return nil, resp.StatusCode, err
	}
	c.SetReadLimit(acs.MaxFrame)
	return c, resp.StatusCode, nil
}

// line is an open session whose messages are read and dropped.
type line struct {
	*websocket.Conn
	ended chan struct{} // closed when the server has ended it
}

// session opens a session that is admitted, waiting out the limit on how often.
func (i *intruder) session() line {
	i.t.Helper()
	c := line{ended: make(chan struct{})}
	await.Until(i.t, 30*time.Second, "a session is admitted", func() (err error) {
		c.Conn, _, err = i.dial(i.key, i.arn, "treasure")
		return err
	})
	go func() {
		defer close(c.ended)
		for {
			if _, _, err := c.Read(context.Background()); err != nil {
				return
			}
		}
	}()
	return c
}

// hangUp ends a session and its reader.
func (c line) hangUp() {
	c.CloseNow() //nolint:errcheck // it may have ended already
	<-c.ended
}

// send sends a frame; false means that the server has ended the session.
func (c line) send(kind websocket.MessageType, frame []byte) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	select {
	case <-c.ended:
		return false
	default:
		return c.Write(ctx, kind, frame) == nil
	}
}

func TestSessionsOfOthersAreRefused(t *testing.T) {
	l := lab.Start(t)
	tr := bury(t, l)
	i := newIntruder(t, l)
	wrong := i.key
	wrong.SecretAccessKey = "wrong"
	for name, try := range map[string]func() (*websocket.Conn, int, error){
		"another's instance": func() (*websocket.Conn, int, error) { return i.dial(i.key, tr.a.ARN, "treasure") },
		"a wrong secret":     func() (*websocket.Conn, int, error) { return i.dial(wrong, i.arn, "treasure") },
		"no such instance":   func() (*websocket.Conn, int, error) { return i.dial(i.key, instanceARN, "treasure") },
		"no instance":        func() (*websocket.Conn, int, error) { return i.dial(i.key, "", "treasure") },
		"another cluster":    func() (*websocket.Conn, int, error) { return i.dial(i.key, i.arn, "other") },
		"a monstrous name":   func() (*websocket.Conn, int, error) { return i.dial(i.key, strings.Repeat("x", 20_000), "treasure") },
		"the operator's key": func() (*websocket.Conn, int, error) { return i.dial(l.Key, tr.a.ARN, "treasure") },
	} {
		if c, status, err := try(); err == nil {
			c.CloseNow() //nolint:errcheck // it should not be open
			t.Errorf("%s: a session was opened", name)
		} else if status != http.StatusBadRequest {
			t.Errorf("%s: status %d, %v", name, status, err)
		}
	}
	tr.intact()
	tr.a.WaitConnected(true)
}

// Garbage over a session that was admitted: the session may end, others do not, and the
// instance gets its work when it comes back.
func TestHostileFrames(t *testing.T) {
	l := lab.Start(t)
	tr := bury(t, l)
	i := newIntruder(t, l)
	frames := append(malformed(t, 1200), deceitful(t, 300)...)
	for _, m := range []acs.Message{
		&acs.AckRequest{}, &acs.AckRequest{Cluster: "x", ContainerInstance: tr.a.ARN, MessageID: "never sent"}, &acs.NackRequest{MessageID: strings.Repeat("x", 10_000), Reason: "no"},
		&acs.IAMRoleCredentialsAckRequest{CredentialsID: "x"}, &acs.HeartbeatAckRequest{MessageID: "x"},
		&acs.TaskStopVerificationMessage{MessageID: "x", StopCandidates: []acs.TaskIdentifier{{TaskARN: tr.task, DesiredStatus: "STOPPED"}, {TaskARN: "nonsense"}, {}}},
	} {
		frames = append(frames, encode(t, m))
	}
	c := i.session()
	before := measure(t)
	ended := 0
	for n, frame := range frames {
		kind := websocket.MessageText
		if n%7 == 0 {
			kind = websocket.MessageBinary
		}
		if !c.send(kind, frame) {
			ended++
			c.hangUp()
			c = i.session()
		}
		if n%100 == 0 {
			tr.intact()
		}
	}
	t.Logf("%d frames ended %d sessions", len(frames), ended)
	if ended == 0 {
		t.Error("a session survives any number of bad frames")
	}
	for range 3 { // larger than any session takes
		c.send(websocket.MessageText, []byte(strings.Repeat("x", 3<<20)))
		select {
		case <-c.ended:
		case <-time.After(2 * time.Minute):
			t.Error("a frame of 3 MiB did not end the session")
		}
		c.hangUp()
		c = i.session()
	}
	tr.intact()
	tr.a.WaitConnected(true)

	out, err := l.ECS.StartTask(context.Background(), &ecs.StartTaskInput{Cluster: aws.String("treasure"), TaskDefinition: &tr.def, ContainerInstances: []string{tr.a.ARN}})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatalf("start on the honest instance: %v %+v", err, out)
	}
	await.Until(t, 20*time.Second, "the honest instance runs it", func() error {
		d, err := l.ECS.DescribeTasks(context.Background(), &ecs.DescribeTasksInput{Cluster: aws.String("treasure"), Tasks: []string{*out.Tasks[0].TaskArn}})
		if err != nil {
			return err
		}
		if s := *d.Tasks[0].LastStatus; s != "RUNNING" {
			return fmt.Errorf("it is %s", s)
		}
		return nil
	})
	c.hangUp()
	notGrown(t, before)
}
