package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cw "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"berth.dev/berth/cluster/series"
	"berth.dev/berth/integ/lab"
)

// measured is a lab whose series have, for the last ten whole minutes, a service with two
// tasks, and its cluster; it returns the first of the minutes.
func measured(t *testing.T) (*lab.Lab, time.Time) {
	t.Helper()
	l := lab.Start(t)
	if err := l.Server.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := series.Open(series.Config{Path: filepath.Join(l.Dir, "series.db")})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now().UTC().Truncate(time.Minute).Add(-10 * time.Minute)
	for i := range 10 {
		var rows series.Rows
		service, task, whole := series.Row{Name: "default/web"}, series.Row{Name: "default/4f2c"}, series.Row{Name: "default"}
		service.Set(series.CPUUtilization, series.Set{Min: 10, Max: 30 + float64(i), Sum: 40 + float64(i), Count: 2})
		task.Set(series.CPUUtilized, series.One(128.5))
		whole.Set(series.MemoryReservation, series.One(25))
		rows[series.Service], rows[series.Task], rows[series.Cluster] = []series.Row{service}, []series.Row{task}, []series.Row{whole}
		at := begin.Add(time.Duration(i) * time.Minute)
		if err := s.Put(at, at.Add(time.Minute), &rows); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	return l, begin
}

func (c cli) cloudwatch(args ...string) map[string]any {
	c.t.Helper()
	text, err := command(c.t, c.env, "/usr/bin/aws", append([]string{"cloudwatch", "--endpoint-url", c.l.URL, "--output", "json"}, args...)...)
	if err != nil {
		c.t.Fatalf("aws cloudwatch %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	var out map[string]any
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		c.t.Fatalf("aws cloudwatch %s printed no JSON: %v\n%s", args[0], err, text)
	}
	return out
}

// TestCloudWatchByTheCLI is what people type, and boto3 under it: the query protocol.
func TestCloudWatchByTheCLI(t *testing.T) {
	t.Parallel()
	l, begin := measured(t)
	c := cli{t, l, cliEnv(l, l.Key)}
	iso := func(minutes int) string {
		return begin.Add(time.Duration(minutes) * time.Minute).Format(time.RFC3339)
	}
	service := []string{"--namespace", "AWS/ECS", "--metric-name", "CPUUtilization", "--dimensions", "Name=ClusterName,Value=default", "Name=ServiceName,Value=web"}
	got := c.cloudwatch(append([]string{"get-metric-statistics", "--start-time", iso(0), "--end-time", iso(10), "--period", "300",
		"--statistics", "Average", "SampleCount", "Maximum"}, service...)...)
	points, _ := at(t, got, "Datapoints").([]any)
	if len(points) != 2 || got["Label"] != "CPUUtilization" {
		t.Fatalf("statistics: %v", got)
	}
	if p := at(t, got, "Datapoints", 1); at(t, p, "SampleCount") != 10.0 || at(t, p, "Average") != 23.5 || at(t, p, "Maximum") != 39.0 || at(t, p, "Unit") != "Percent" {
		t.Errorf("second point: %v", p)
	}
	queries := `[{"Id":"m","MetricStat":{"Metric":{"Namespace":"AWS/ECS","MetricName":"MemoryReservation","Dimensions":[{"Name":"ClusterName","Value":"default"}]},"Period":60,"Stat":"Average"}},
		{"Id":"none","Label":"l","MetricStat":{"Metric":{"Namespace":"AWS/ECS","MetricName":"MemoryReservation"},"Period":60,"Stat":"Average"}}]`
	data := c.cloudwatch("get-metric-data", "--start-time", iso(0), "--end-time", iso(10), "--metric-data-queries", queries)
	values, _ := at(t, data, "MetricDataResults", 0, "Values").([]any)
	if len(values) != 10 || values[0] != 25.0 || at(t, data, "MetricDataResults", 0, "Label") != "MemoryReservation" {
		t.Errorf("data: %v", data)
	}
	if first := at(t, data, "MetricDataResults", 0, "Timestamps", 0).(string); !strings.HasPrefix(first, begin.Add(9*time.Minute).Format("2006-01-02T15:04:05")) {
		t.Errorf("the newest is not the first: %s", first)
	}
	list := c.cloudwatch("list-metrics", "--namespace", "AWS/ECS", "--dimensions", "Name=ServiceName,Value=web")
	if m, _ := list["Metrics"].([]any); len(m) != 1 || at(t, list, "Metrics", 0, "MetricName") != "CPUUtilization" {
		t.Errorf("metrics of a service that only had one: %v", list)
	}
	for what, args := range map[string][]string{
		"(InvalidParameterCombination)": append([]string{"get-metric-statistics", "--start-time", "2020-01-01", "--end-time", "2026-01-01", "--period", "60", "--statistics", "Sum"}, service...),
		"(InvalidParameterValue)":       append([]string{"get-metric-statistics", "--start-time", iso(9), "--end-time", iso(0), "--period", "60", "--statistics", "Sum"}, service...),
		"(MissingParameter)":            append([]string{"get-metric-statistics", "--start-time", iso(0), "--end-time", iso(9), "--period", "60"}, service...),
		"(InvalidAction)":               {"describe-alarms"},
		"(MissingAuthenticationToken)":  {"list-metrics", "--no-sign-request"},
	} {
		text, err := command(t, c.env, "/usr/bin/aws", append([]string{"cloudwatch", "--endpoint-url", l.URL}, args...)...)
		if err == nil || !strings.Contains(text, what) {
			t.Errorf("aws cloudwatch %s: got %v, want %s\n%s", args[0], err, what, text)
		}
	}
}

// TestCloudWatchByTheSDK is the present Go SDK, which speaks CBOR.
func TestCloudWatchByTheSDK(t *testing.T) {
	t.Parallel()
	l, begin := measured(t)
	client := cloudwatch.New(cloudwatch.Options{
		Region: lab.Region, BaseEndpoint: aws.String(l.URL), HTTPClient: l.HTTP, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(l.Key.AccessKeyID, l.Key.SecretAccessKey, ""),
	})
	out := must[*cloudwatch.GetMetricStatisticsOutput](t, "statistics")(client.GetMetricStatistics(ctx, &cloudwatch.GetMetricStatisticsInput{
		Namespace: s("ECS/ContainerInsights"), MetricName: s("CpuUtilized"), Period: aws.Int32(60), Statistics: []cw.Statistic{cw.StatisticAverage},
		StartTime: &begin, EndTime: aws.Time(begin.Add(10 * time.Minute)),
		Dimensions: []cw.Dimension{{Name: s("TaskId"), Value: s("4f2c")}, {Name: s("ClusterName"), Value: s("default")}},
	}))
	if len(out.Datapoints) != 10 || *out.Datapoints[3].Average != 128.5 || !out.Datapoints[3].Timestamp.Equal(begin.Add(3*time.Minute)) || out.Datapoints[3].Sum != nil {
		t.Errorf("statistics: %+v", out.Datapoints)
	}
	metrics := must[*cloudwatch.ListMetricsOutput](t, "list")(client.ListMetrics(ctx, &cloudwatch.ListMetricsInput{RecentlyActive: cw.RecentlyActivePt3h}))
	var names []string
	for _, m := range metrics.Metrics {
		names = append(names, *m.MetricName)
	}
	// A service and a task that had one each, and of the cluster also what the records say.
	for _, want := range []string{"CPUUtilization", "CpuUtilized", "MemoryReservation"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among the metrics %v", want, names)
		}
	}
	if slices.Contains(names, "MemoryUtilization") || slices.Contains(names, "RestartCount") {
		t.Errorf("metrics without a point are listed: %v", names)
	}
	_, err := client.GetMetricData(ctx, &cloudwatch.GetMetricDataInput{StartTime: &begin, EndTime: aws.Time(begin.Add(time.Hour)),
		MetricDataQueries: []cw.MetricDataQuery{{Id: s("e"), Expression: s("1+1")}}})
	wantCode(t, "an expression", err, "InvalidParameterValue")
	_, err = client.DescribeAlarms(ctx, &cloudwatch.DescribeAlarmsInput{})
	wantCode(t, "another operation", err, "InvalidAction")
}

// TestCloudWatchInJSON is the protocol of the clients between the two.
func TestCloudWatchInJSON(t *testing.T) {
	t.Parallel()
	l, begin := measured(t)
	call := func(key, operation string, in any) lab.Answer {
		t.Helper()
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.URL, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-amz-json-1.0")
		req.Header.Set("X-Amz-Target", "GraniteServiceVersion20100801."+operation)
		sum := sha256.Sum256(body)
		creds := aws.Credentials{AccessKeyID: l.Key.AccessKeyID, SecretAccessKey: key}
		if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "monitoring", lab.Region, time.Now()); err != nil {
			t.Fatal(err)
		}
		return must[lab.Answer](t, operation)(l.Do(req))
	}
	in := map[string]any{
		"Namespace": "AWS/ECS", "MetricName": "MemoryReservation", "Period": 60, "Statistics": []string{"Sum"},
		"StartTime": begin.Unix(), "EndTime": begin.Add(2 * time.Minute).Unix(), "Dimensions": []any{map[string]any{"Name": "ClusterName", "Value": "default"}},
	}
	a := call(l.Key.SecretAccessKey, "GetMetricStatistics", in)
	var out struct {
		Datapoints []struct{ Timestamp, Sum float64 }
	}
	if err := json.Unmarshal(a.Body, &out); err != nil || len(out.Datapoints) != 2 || out.Datapoints[1].Timestamp != float64(begin.Unix()+60) || out.Datapoints[1].Sum != 25 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	delete(in, "Period")
	if a := call(l.Key.SecretAccessKey, "GetMetricStatistics", in); a.Code() != "com.amazonaws.cloudwatch#MissingRequiredParameterException" || a.Header.Get("X-Amzn-Query-Error") != "MissingParameter;Sender" {
		t.Errorf("%d %s %v", a.Status, a.Body, a.Header)
	}
	if a := call("wrong", "ListMetrics", in); a.Status != http.StatusForbidden {
		t.Errorf("a wrong signature: %d %s", a.Status, a.Body)
	}
}
