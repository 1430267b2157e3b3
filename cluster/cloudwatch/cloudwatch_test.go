package cloudwatch

import (
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster/series"
)

func TestForms(t *testing.T) {
	form := url.Values{
		"Namespace": {"AWS/ECS"}, "Statistics.member.2": {"Sum"}, "Statistics.member.1": {"Average"}, "Empty": {""},
		"Queries.member.1.Id": {"a"}, "Queries.member.1.Stat.Dimensions.member.1.Name": {"n"}, "Queries.member.10.Id": {"c"}, "Queries.member.2.Id": {"b"},
	}
	got, err := fromForm(form)
	if err != nil {
		t.Fatal(err)
	}
	want := tree{
		"Namespace": "AWS/ECS", "Statistics": []any{"Average", "Sum"}, "Empty": "",
		"Queries": []any{tree{"Id": "a", "Stat": tree{"Dimensions": []any{tree{"Name": "n"}}}}, tree{"Id": "b"}, tree{"Id": "c"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDimensionsAreMatchedAsAWhole(t *testing.T) {
	s := New(Config{InstanceID: func(cluster, id string) string { return "i-" + cluster + id }})
	dims := func(pairs ...string) (out []dimension) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, dimension{pairs[i], pairs[i+1]})
		}
		return out
	}
	for _, c := range []struct {
		namespace, name string
		dims            []dimension
		row             string
		kind            series.Kind
	}{
		{"AWS/ECS", "CPUUtilization", dims("ClusterName", "c"), "c", series.Cluster},
		{"AWS/ECS", "CPUUtilization", dims("ServiceName", "s", "ClusterName", "c"), "c/s", series.Service},
		{"AWS/ECS", "CPUReservation", dims("ServiceName", "s", "ClusterName", "c"), "", 0},
		{"AWS/ECS", "CPUUtilization", nil, "", 0},
		{"AWS/Other", "CPUUtilization", dims("ClusterName", "c"), "", 0},
		{"ECS/ContainerInsights", "instance_cpu_utilization", dims("ClusterName", "c", "ContainerInstanceId", "1"), "c/1", series.Instance},
		{"ECS/ContainerInsights", "instance_cpu_utilization", dims("ClusterName", "c", "ContainerInstanceId", "1", "InstanceId", "i-c1"), "c/1", series.Instance},
		{"ECS/ContainerInsights", "instance_cpu_utilization", dims("ClusterName", "c", "ContainerInstanceId", "1", "InstanceId", "i-other"), "", 0},
		{"ECS/ContainerInsights", "RestartCount", dims("ClusterName", "c", "TaskId", "t", "ContainerName", "x"), "c/t/x", series.Container},
	} {
		m, row, ok := s.find(c.namespace, c.name, c.dims)
		if row != c.row || ok != (c.row != "") || m.kind != c.kind {
			t.Errorf("%s %s %v: %s %q %t", c.namespace, c.name, c.dims, m.kind, row, ok)
		}
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"Namespace":"AWS/ECS","MetricName":"CPUUtilization","StartTime":1,"EndTime":"2026-01-01T00:00:00Z","Period":60,"Statistics":["Sum"]}`), "Statistics.member.1=Sum&Dimensions.member.1.Name=a&Period=60")
	f.Add([]byte("\xa1\x66Period\x18\x3c"), "A.member=1&A=2")
	f.Fuzz(func(_ *testing.T, body []byte, text string) {
		s := New(Config{Now: func() time.Time { return time.Unix(1e9, 0) }})
		form, err := url.ParseQuery(text)
		if err != nil {
			form = nil
		}
		for _, read := range []func() (tree, error){
			func() (tree, error) { return fromJSON(body) }, func() (tree, error) { return fromCBOR(body) }, func() (tree, error) { return fromForm(form) },
		} {
			t, err := read()
			if err != nil {
				continue
			}
			// All that reads a request, without the series themselves.
			_, _ = spanOf(t)
			_, _ = periodOf(t)
			_, _ = statisticsOf(t)
			_, _ = s.listingOf(t)
			_, _ = s.dataQueryOf(t)
			toJSON(t)
		}
	})
}
