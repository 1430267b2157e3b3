package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/coder/websocket"

	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/wire/tcs"
)

const (
	publishers   = 5000
	publishTasks = 10 // of one container, of each agent
	publishEvery = 20 * time.Second
	publishAddr  = "127.0.0.1:17790"
)

// key is the operator's, as the cluster writes it.
type key struct {
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
	Endpoint        string `json:"endpoint"`
}

// BenchmarkFiveThousandAgents is the cluster as a program of its own, to which 5,000
// simulated agents publish what ten containers each use, every 20 s.
func BenchmarkFiveThousandAgents(b *testing.B) {
	dir := b.TempDir()
	host.Program(b, dir, "berth.dev/berth/cmd/berth")
	cmd := exec.Command(filepath.Join(dir, "berth"), "cluster", "--dir", filepath.Join(dir, "cluster"), "--listen", publishAddr)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		cmd.Wait()                          //nolint:errcheck // it was told to end
	})
	var k key
	system.Until(b, 30*time.Second, "the cluster serves", func() error {
		text, err := os.ReadFile(filepath.Join(dir, "cluster", "operator.json"))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &k); err != nil {
			return err
		}
		resp, err := http.Get(k.Endpoint + "/health")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	arns := registerMany(b, k)
	ctx, cancel := context.WithCancel(context.Background())
	var acked, refused atomic.Int64
	var agents sync.WaitGroup
	for i, arn := range arns {
		agents.Go(func() {
			// They begin one after the other, as agents of a fleet have.
			begin := time.NewTimer(publishEvery * time.Duration(i) / publishers)
			defer begin.Stop()
			select {
			case <-begin.C:
			case <-ctx.Done():
				return
			}
			if err := publish(ctx, k, arn, i, &acked); err != nil && ctx.Err() == nil {
				refused.Add(1)
				b.Logf("%s: %v", arn, err)
			}
		})
	}
	// A round to get going, and then three that are measured.
	pause(2 * publishEvery)
	used, got, begin := cpuTime(b, cmd.Process.Pid), acked.Load(), time.Now()
	peak := 0
	for range 3 {
		pause(publishEvery)
		peak = max(peak, rss(b, cmd.Process.Pid))
	}
	took := time.Since(begin)
	used, got = cpuTime(b, cmd.Process.Pid)-used, acked.Load()-got
	cancel()
	agents.Wait()
	if refused.Load() > 0 {
		b.Errorf("%d agents were refused or cut off", refused.Load())
	}
	b.ReportMetric(100*used.Seconds()/took.Seconds()/float64(runtime.NumCPU()), "%-of-machine")
	b.ReportMetric(float64(got)/took.Seconds(), "requests/s")
	b.ReportMetric(float64(peak)/(1<<20), "MiB-RSS")
	b.ReportMetric(0, "ns/op")
}

// pause waits while others work.
func pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	<-t.C
}

// registerMany registers the instances.
func registerMany(b *testing.B, k key) []string {
	client := ecs.New(ecs.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(k.Endpoint), HTTPClient: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
		Credentials: credentials.NewStaticCredentialsProvider(k.AccessKeyID, k.SecretAccessKey, ""),
	})
	ctx := context.Background()
	if _, err := client.CreateCluster(ctx, &ecs.CreateClusterInput{}); err != nil {
		b.Fatal(err)
	}
	arns := make([]string, publishers)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < publishers; i = next.Add(1) - 1 {
				out, err := client.RegisterContainerInstance(ctx, &ecs.RegisterContainerInstanceInput{TotalResources: []types.Resource{
					{Name: aws.String("CPU"), Type: aws.String("INTEGER"), IntegerValue: 4096}, {Name: aws.String("MEMORY"), Type: aws.String("INTEGER"), IntegerValue: 8192},
				}})
				if err != nil {
					b.Errorf("register: %v", err)
					return
				}
				arns[i] = *out.ContainerInstance.ContainerInstanceArn
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return arns
}

// publish is one agent until ctx ends.
func publish(ctx context.Context, k key, arn string, n int, acked *atomic.Int64) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.Endpoint+"/tcs/ws?"+url.Values{"cluster": {"default"}, "containerInstance": {arn}}.Encode(), nil)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(nil)
	if err := v4.NewSigner().SignHTTP(ctx, aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey}, r, hex.EncodeToString(sum[:]), "ecs", "us-east-1", time.Now()); err != nil {
		return err
	}
	conn, _, err := websocket.Dial(ctx, r.URL.String(), &websocket.DialOptions{HTTPHeader: r.Header})
	if err != nil {
		return err
	}
	defer conn.CloseNow() //nolint:errcheck // the bench is over
	go func() {
		for {
			_, data, err := conn.Read(ctx)
			if err != nil {
				return
			}
			if m, err := tcs.Decode(data); err == nil && m.TypeName() == tcs.AckMetric {
				acked.Add(1)
			}
		}
	}()
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for round := int64(1); ; round++ {
		frame, err := tcs.Encode(use(arn, n, round))
		if err != nil {
			return err
		}
		if err := conn.Write(ctx, websocket.MessageText, tcs.WithHeaders(http.Header{"X-Amz-Date": {"d"}, "Authorization": {"a"}}, "h", frame)); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// use is what the containers of an agent used in a round.
func use(arn string, n int, round int64) *tcs.PublishMetricsRequest {
	m := &tcs.PublishMetricsRequest{
		Metadata:  tcs.MetricsMetadata{Cluster: "default", ContainerInstance: arn, MessageID: fmt.Sprint(n, round), Fin: true},
		Timestamp: tcs.Time{Time: time.Now()},
	}
	counter := func(v int64) *tcs.LongSet { return tcs.NewLongSet(uint64(v), uint64(v+9), uint64(20*v), 20) }
	for i := range publishTasks {
		v := float64((int64(n*publishTasks+i)*7919+round*104729)%1000) / 13
		m.TaskMetrics = append(m.TaskMetrics, tcs.TaskMetric{
			TaskARN: fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:task/default/%032x", n*publishTasks+i), TaskDefinitionFamily: "web", TaskDefinitionVersion: "1",
			ContainerMetrics: []tcs.ContainerMetric{{
				ContainerName: "web", CPU: &tcs.Set{Min: v / 2, Max: 2 * v, Sum: 20 * v, SampleCount: 20}, Memory: &tcs.Set{Min: v, Max: v + 9, Sum: 20 * v, SampleCount: 20},
				Storage: &tcs.Storage{ReadSizeBytes: counter(round), WriteSizeBytes: counter(round)},
				Network: &tcs.Network{
					RxBytes: counter(round), RxDropped: counter(0), RxErrors: counter(0), RxPackets: counter(round), TxBytes: counter(round),
					TxDropped: counter(0), TxErrors: counter(0), TxPackets: counter(round),
					RxBytesPerSecond: &tcs.Set{Max: v, Sum: v, SampleCount: 19}, TxBytesPerSecond: &tcs.Set{Max: v, Sum: v, SampleCount: 19},
				},
			}},
		})
	}
	return m
}
