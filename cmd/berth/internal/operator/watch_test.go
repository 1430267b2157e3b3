package operator

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEventsAreRead(t *testing.T) {
	const stream = "retry: 2000\n\n:\n\nid: 5-0\ndata: {\"detail-type\":\"ECS Task State Change\",\"detail\":{\"taskArn\":\"a\",\"lastStatus\":\"RUNNING\",\"containers\":[{\"name\":\"c\",\"exitCode\":3}]}}\n\n" +
		"event: gap\ndata: {}\n\nid: 7-1\ndata: {\"detail\":{\"containerInstanceArn\":\"i\",\"agentConnected\":true,\"healthStatus\":{\"overallStatus\":\"OK\"}}}\n\nid: 8-0\ndata: {\"cut\n"
	var got []string
	last, err := readEvents(strings.NewReader(stream), "1-0", func(e Event) {
		switch {
		case e.Gap:
			got = append(got, "gap")
		case e.Detail.TaskARN != "":
			got = append(got, e.Kind+" "+e.Detail.LastStatus)
			if c := e.Detail.Containers[0]; c.ExitCode == nil || *c.ExitCode != 3 {
				t.Errorf("%+v", e.Detail)
			}
		default:
			got = append(got, e.Detail.InstanceARN)
		}
	})
	if err != nil || last != "7-1" {
		t.Errorf("last %s, %v", last, err)
	}
	if diff := cmp.Diff([]string{"ECS Task State Change RUNNING", "gap", "i"}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add("id: 5-0\ndata: {}\n\n")
	f.Fuzz(func(_ *testing.T, text string) {
		_, _ = readEvents(strings.NewReader(text), "", func(Event) {})
	})
}
