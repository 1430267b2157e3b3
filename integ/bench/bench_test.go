package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	wire "berth.dev/berth/wire/acs"
)

func TestMain(m *testing.M) { host.Main(m) }

const (
	samples = 20
	// trapSet is how long the shell in a container is given to set its trap: the first
	// process of a PID namespace ignores signals that it has no handler for
	// (pid_namespaces(7)).
	trapSet = 100 * time.Millisecond
	// sleeper does nothing until SIGTERM, which it obeys at once: a child that sleeps
	// would hold a shell's trap back until it ends.
	sleeper = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"
)

// clock is what the cluster saw: when it sent a task, had its ack, and had taken each
// status of it.
type clock struct {
	mu       sync.Mutex
	sent     map[string]time.Time // task ARN and desired status
	acked    map[string]time.Time // message id
	messages map[string]time.Time // message id: when it was sent
	tasks    map[string]int       // message id: how many tasks it carried
	begun    time.Time
	reached  map[string]time.Time // task ARN and status
}

func newClock() *clock {
	return &clock{begun: time.Now(), tasks: map[string]int{}, sent: map[string]time.Time{}, acked: map[string]time.Time{}, messages: map[string]time.Time{}, reached: map[string]time.Time{}}
}

func (c *clock) ledger(e acs.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case e.Kind == acs.EntrySent && e.Type == "PayloadMessage":
		c.messages[e.MessageID], c.tasks[e.MessageID] = e.At, len(e.Tasks)
		for _, t := range e.Tasks {
			if _, again := c.sent[t.ARN+t.Desired]; !again {
				c.sent[t.ARN+t.Desired] = e.At
			}
		}
	case e.Kind == acs.EntryReceived && e.Type == "AckRequest":
		c.acked[e.MessageID] = e.At
	}
}

func (c *clock) watch(ctx context.Context, b *testing.B, s *store.Store) {
	err := s.Watch(ctx, func(ch store.Change) {
		now := time.Now()
		t, ok := ch.New.(*store.Task)
		if !ok {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		key := aws.ToString(t.Task.TaskArn) + aws.ToString(t.Task.LastStatus)
		if _, again := c.reached[key]; !again {
			c.reached[key] = now
		}
	})
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, store.ErrClosed) {
		b.Error(err)
	}
}

// took is the time from sending a task to having taken its status.
func (c *clock) took(b *testing.B, arn, desired, status string) time.Duration {
	b.Helper()
	var took time.Duration
	system.Until(b, 5*time.Second, "the clock has "+status+" of "+arn, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		from, ok1 := c.sent[arn+desired]
		to, ok2 := c.reached[arn+status]
		if !ok1 || !ok2 {
			return errors.New("not yet")
		}
		took = to.Sub(from)
		return nil
	})
	return took
}

// await waits until the cluster has taken a status of tasks. It asks the clock and not
// the API, whose answers would take processor time from what is measured.
func (x *bed) await(b *testing.B, status string, limit time.Duration, arns ...string) {
	b.Helper()
	system.Until(b, limit, "all tasks are "+status, func() error {
		x.clock.mu.Lock()
		defer x.clock.mu.Unlock()
		for _, arn := range arns {
			if x.clock.reached[arn+status].IsZero() {
				return fmt.Errorf("%s is not", arn)
			}
		}
		return nil
	})
}

type bed struct {
	*system.System
	clock *clock
	bare  *bare
	meter *meter

	holding atomic.Bool // payloads do not reach the agent
}

func newBed(b *testing.B) *bed {
	b.Helper()
	kind := system.Containerd2
	if k := os.Getenv("BERTH_BENCH_CONTAINERD"); k != "" {
		kind = k
	}
	x := &bed{clock: newClock(), meter: newMeter(b)}
	x.System = system.Start(b, system.Options{
		Containerd: kind, InMemory: true, ACS: func(c *acs.Config) {
			c.Ledger = x.clock.ledger
			c.Faults = &acs.Faults{Drop: func(m wire.Message) bool {
				_, payload := m.(*wire.PayloadMessage)
				return payload && x.holding.Load()
			}}
		},
		AgentEnv: []string{"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=1s", "ECS_LOGLEVEL=warn"},
	})
	x.bare = newBare(b, x.System)
	x.meter.put(groupContainerd, x.Containerd.PID())
	x.meter.put(groupAgent, x.Agent.PID())
	model := x.Run(x.definition("model", "host", 1), 1)[0]
	x.bare.learn(aws.ToString(x.Wait("RUNNING", 10*time.Second, model)[0].Containers[0].RuntimeId))
	x.System.Stop(model)
	x.Wait("STOPPED", 20*time.Second, model)
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	go x.clock.watch(ctx, b, x.Cluster.Store)
	return x
}

func (x *bed) definition(family, mode string, containers int) string {
	in := &ecs.RegisterTaskDefinitionInput{Family: aws.String(family), NetworkMode: types.NetworkMode(mode)}
	for i := range containers {
		c := types.ContainerDefinition{
			Name: aws.String(fmt.Sprintf("c%d", i)), Image: aws.String("busybox"), Memory: aws.Int32(32), Cpu: 2,
			Command: []string{"sh", "-c", sleeper},
		}
		if mode == "bridge" {
			c.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(int32(80 + i))}}
		}
		in.ContainerDefinitions = append(in.ContainerDefinitions, c)
	}
	return x.Register(in)
}

// wayNames are the ways of the bare client in the names of figures.
var wayNames = [ways]string{plain: "bare", same: "same-spec"}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// startAndStop runs one task at a time and measures both ways.
func startAndStop(b *testing.B, mode string) {
	x := newBed(b)
	def := x.definition("one", mode, 1)
	var started, stopped []time.Duration
	var floor [ways][]time.Duration
	for b.Loop() {
		for i := range samples + 2 {
			var bareTook [ways]time.Duration
			for way := range ways {
				var err error
				if bareTook[way], err = x.bare.start(way); err != nil {
					b.Fatal(err)
				}
				x.bare.clear()
			}
			arn := x.Run(def, 1)[0]
			x.await(b, "RUNNING", 10*time.Second, arn)
			<-time.After(trapSet)
			x.System.Stop(arn)
			x.await(b, "STOPPED", 10*time.Second, arn)
			if i < 2 {
				continue // warm-up
			}
			for way, took := range bareTook {
				floor[way] = append(floor[way], took)
			}
			started = append(started, x.clock.took(b, arn, "RUNNING", "RUNNING"))
			stopped = append(stopped, x.clock.took(b, arn, "STOPPED", "STOPPED"))
		}
	}
	b.ReportMetric(ms(median(started)), "ms-to-RUNNING")
	for way, name := range wayNames {
		b.ReportMetric(ms(median(floor[way])), "ms-"+name)
		b.ReportMetric(float64(median(started))/float64(median(floor[way])), "x-"+name)
	}
	b.ReportMetric(ms(median(stopped)), "ms-to-STOPPED")
}

func BenchmarkStartHost(b *testing.B)   { startAndStop(b, "host") }
func BenchmarkStartBridge(b *testing.B) { startAndStop(b, "bridge") }

// BenchmarkFiveContainers compares a task of five containers with a task of one.
func BenchmarkFiveContainers(b *testing.B) {
	x := newBed(b)
	defs := []string{x.definition("one", "host", 1), x.definition("five", "host", 5)}
	var took [2][]time.Duration
	for b.Loop() {
		for range samples / 2 {
			for i, def := range defs {
				arn := x.Run(def, 1)[0]
				x.await(b, "RUNNING", 20*time.Second, arn)
				took[i] = append(took[i], x.clock.took(b, arn, "RUNNING", "RUNNING"))
				<-time.After(trapSet)
				x.System.Stop(arn)
				x.await(b, "STOPPED", 20*time.Second, arn)
			}
		}
	}
	b.ReportMetric(ms(median(took[0])), "ms-one")
	b.ReportMetric(ms(median(took[1])), "ms-five")
	b.ReportMetric(float64(median(took[1]))/float64(median(took[0])), "x-one")
}

// BenchmarkHundredTasks runs 100 tasks at once, then looks at the agent while they
// idle, then kills it and starts it again. The bare client and Berth take turns, each
// three times, and the best time of each counts: the bare client starts so many at once
// that one of the numbers is its best, and on a virtual machine memory that is used for
// the first time costs whoever comes first.
func BenchmarkHundredTasks(b *testing.B) {
	x := newBed(b)
	def := x.definition("one", "host", 1)
	for b.Loop() {
		var floor [ways]cost
		var ours cost
		var arns []string
		for _, atOnce := range []int{4, 8, 16} {
			for way := range ways {
				c := x.measure(func() time.Duration { return x.bare.many(way, hundred, atOnce) })
				c.cpu += c.cluster // the client is this process
				floor[way].best(c)
				x.bare.clear()
			}
			if len(arns) > 0 {
				x.System.Stop(arns...)
				x.await(b, "STOPPED", 2*time.Minute, arns...)
			}
			x.profiled(b, func() {
				ours.best(x.measure(func() time.Duration {
					arns = x.Run(def, hundred)
					return x.span(b, arns)
				}))
			})
		}
		ours.report(b, "ms-cpu/task", "s-100-RUNNING")
		b.ReportMetric(ms(ours.agent)/hundred, "ms-cpu-agent/task")
		b.ReportMetric(ms(ours.cluster)/hundred, "ms-cpu-cluster/task")
		for way, name := range wayNames {
			floor[way].report(b, "ms-cpu-"+name+"/task", "s-"+name)
			b.ReportMetric(float64(ours.took)/float64(floor[way].took), "x-"+name)
			b.ReportMetric(float64(ours.cpu)/float64(floor[way].cpu), "x-cpu-"+name)
		}
		x.idle(b)
		x.restart(b)
		x.System.Stop(arns...)
		x.await(b, "STOPPED", 2*time.Minute, arns...)
	}
}

// hundred is how many tasks are started at once.
const hundred = 100

// cost is what starting them took: on the clock, and of the processors.
type cost struct {
	took, cpu, agent, cluster time.Duration
}

// best keeps the less of each of two costs.
func (c *cost) best(d cost) {
	if c.took == 0 {
		*c = d
		return
	}
	c.took, c.cpu = min(c.took, d.took), min(c.cpu, d.cpu)
	c.agent, c.cluster = min(c.agent, d.agent), min(c.cluster, d.cluster)
}

func (c *cost) report(b *testing.B, cpu, took string) {
	b.ReportMetric(c.took.Seconds(), took)
	b.ReportMetric(ms(c.cpu)/hundred, cpu)
}

// measure runs work, which returns how long it took. The processor time is that of
// containerd, shims, OCI runtime and containers, and of the agent. That of the cluster is
// told by itself: it is on another host, as a rule, and the client that is compared with
// runs in the same process here.
func (x *bed) measure(work func() time.Duration) cost {
	groups := []string{groupContainerd, groupAgent, groupBare, x.Cgroup()}
	cpu, agent, own := x.meter.read(groups...), x.meter.read(groupAgent), cpuTime(x.meter.b, os.Getpid())
	var c cost
	c.took = work()
	c.cpu, c.agent = x.meter.read(groups...)-cpu, x.meter.read(groupAgent)-agent
	c.cluster = cpuTime(x.meter.b, os.Getpid()) - own
	return c
}

// span waits until all tasks are RUNNING and returns how long after the first was sent
// the last was there.
func (x *bed) span(b *testing.B, arns []string) time.Duration {
	b.Helper()
	x.await(b, "RUNNING", 2*time.Minute, arns...)
	x.clock.mu.Lock()
	defer x.clock.mu.Unlock()
	var first, last time.Time
	for _, arn := range arns {
		sent, at := x.clock.sent[arn+"RUNNING"], x.clock.reached[arn+"RUNNING"]
		if first.IsZero() || sent.Before(first) {
			first = sent
		}
		if at.After(last) {
			last = at
		}
	}
	return last.Sub(first)
}

// idle measures the agent's memory and processor time while nothing happens.
func (x *bed) idle(b *testing.B) {
	const window = 20 * time.Second
	before := x.meter.read(groupAgent) // to the nanosecond, where /proc counts ticks that a short sample falls on or not
	<-time.After(window)
	b.ReportMetric(100*(x.meter.read(groupAgent)-before).Seconds()/window.Seconds(), "%core-idle")
	b.ReportMetric(float64(rss(b, x.Agent.PID()))/(1<<20), "MiB-RSS")
}

// restart kills the agent and waits until it is connected and ready again.
func (x *bed) restart(b *testing.B) {
	var took []time.Duration
	for range 5 {
		x.Agent.Kill()
		begin := time.Now()
		x.StartAgent()
		x.WaitConnected(20 * time.Second)
		took = append(took, time.Since(begin))
	}
	b.ReportMetric(ms(median(took)), "ms-restart")
}

// BenchmarkColdStart is the time from starting the agent with no state to its session.
func BenchmarkColdStart(b *testing.B) {
	x := newBed(b)
	var took []time.Duration
	for b.Loop() {
		for i := range 10 {
			x.Agent.Kill()
			dir := filepath.Join(x.Dir, "cold"+strconv.Itoa(i))
			begin := time.Now()
			x.StartAgent("BERTH_STATE_DIR=" + dir)
			x.WaitConnected(20 * time.Second)
			took = append(took, time.Since(begin))
		}
	}
	b.ReportMetric(ms(median(took)), "ms-to-connected")
}

// BenchmarkAck is the time from sending a payload to its ack, for one task and for as
// many as one message carries.
func BenchmarkAck(b *testing.B) {
	x := newBed(b)
	def := x.definition("one", "none", 1)
	var one []time.Duration
	for b.Loop() {
		for range samples {
			before := x.messages()
			arn := x.Run(def, 1)[0]
			x.await(b, "RUNNING", 10*time.Second, arn)
			one = append(one, x.acks(b, before)...)
			x.System.Stop(arn)
			x.Wait("STOPPED", 10*time.Second, arn)
		}
	}
	b.ReportMetric(ms(median(one)), "ms-ack")

	// What was placed and not delivered comes in one payload with the next session.
	var many []time.Duration
	for range 3 {
		x.holding.Store(true)
		arns := x.Run(def, 100)
		x.holding.Store(false)
		x.Agent.Kill()
		x.StartAgent()
		x.Wait("RUNNING", time.Minute, arns...)
		many = append(many, x.ackOf(b, len(arns)))
		x.System.Stop(arns...)
		x.Wait("STOPPED", 2*time.Minute, arns...)
	}
	b.ReportMetric(ms(median(many)), "ms-ack-100")
}

// ackOf is the time to the ack of the last payload with so many tasks.
func (x *bed) ackOf(b *testing.B, tasks int) time.Duration {
	x.clock.mu.Lock()
	defer x.clock.mu.Unlock()
	var last, took time.Duration
	for id, at := range x.clock.messages {
		acked, ok := x.clock.acked[id]
		if since := at.Sub(x.clock.begun); ok && x.clock.tasks[id] == tasks && since > last {
			last, took = since, acked.Sub(at)
		}
	}
	if took == 0 {
		b.Fatalf("no payload carried %d tasks", tasks)
	}
	return took
}

func (x *bed) messages() map[string]bool {
	x.clock.mu.Lock()
	defer x.clock.mu.Unlock()
	known := map[string]bool{}
	for id := range x.clock.messages {
		known[id] = true
	}
	return known
}

func (x *bed) acks(b *testing.B, before map[string]bool) []time.Duration {
	x.clock.mu.Lock()
	defer x.clock.mu.Unlock()
	var out []time.Duration
	for id, at := range x.clock.messages {
		if acked, ok := x.clock.acked[id]; ok && !before[id] {
			out = append(out, acked.Sub(at))
		}
	}
	if len(out) == 0 {
		b.Fatal("no payload was acknowledged")
	}
	return out
}

// BenchmarkSize is the size of the agent's program as it is shipped.
func BenchmarkSize(b *testing.B) {
	for b.Loop() {
		path := filepath.Join(b.TempDir(), "berth-agent")
		host.Shipped(b, path, "berth.dev/berth/cmd/berth-agent")
		st, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(st.Size())/1e6, "MB")
	}
	b.ReportMetric(float64(runtime.NumCPU()), "cpus")
}

// cpuTime is the user and system time of a process (proc(5), /proc/pid/stat, fields 14
// and 15, in clock ticks of 10 ms).
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(raw)[strings.LastIndexByte(string(raw), ')')+1:])
	user, err1 := strconv.Atoi(fields[11])
	sys, err2 := strconv.Atoi(fields[12])
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+sys) * 10 * time.Millisecond
}

// rss is the resident memory of a process in bytes (proc(5), /proc/pid/statm).
func rss(b *testing.B, pid int) int {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(raw))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * syscall.Getpagesize()
}
