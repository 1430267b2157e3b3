package api_test

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/cluster/acs/acstest"
)

// BenchmarkRunTask measures whole calls: SDK client, signature, HTTP, placement on 1,000
// instances and the commit to etcd on disk, with client and cluster in one process. The
// figure that counts is tasks/s.
func BenchmarkRunTask(b *testing.B) {
	for _, c := range []struct {
		name           string
		count, callers int
	}{
		{"count=1/callers=1", 1, 1}, {"count=1/callers=64", 1, 64}, {"count=10/callers=1", 10, 1}, {"count=10/callers=32", 10, 32},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLab(b, nil)
			instances(b, l, 1000, 1<<22, 1<<22)
			define(b, l, small("s"))
			client := ecs.New(ecs.Options{
				Region: acstest.LabRegion, BaseEndpoint: aws.String(l.URL), Credentials: l.Credentials(),
				HTTPClient: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: c.callers}},
			})
			ctx := context.Background()
			run := func() {
				out, err := client.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("s"), Count: aws.Int32(int32(c.count))})
				if err != nil || len(out.Tasks) != c.count {
					b.Errorf("placed %v, %v", out, err)
				}
			}
			run()
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range c.callers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						run()
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N*c.count)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
