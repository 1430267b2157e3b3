package ec2

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func volumeNodes(n int) []node {
	var out []node
	for i := range n {
		out = append(out, item(text("volumeId", fmt.Sprintf("vol-%03d", i))))
	}
	return out
}

func TestPages(t *testing.T) {
	var got []int
	token := ""
	for {
		values := map[string][]string{"MaxResults": {"5"}}
		if token != "" {
			values["NextToken"] = []string{token}
		}
		items, next, err := form{values}.page(volumeNodes(12), "VolumeId", "volumeId")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, len(items))
		if len(next) == 0 {
			break
		}
		token = next[0].text
	}
	if diff := cmp.Diff([]int{5, 5, 2}, got); diff != "" {
		t.Errorf("pages: %s", diff)
	}
	for name, c := range map[string]struct {
		values map[string][]string
		code   string
		n      int
	}{
		"all":               {nil, "", 12},
		"more than all":     {map[string][]string{"MaxResults": {"2000"}}, "", 12},
		"too few":           {map[string][]string{"MaxResults": {"4"}}, "InvalidParameterValue", 0},
		"no number":         {map[string][]string{"MaxResults": {"x"}}, "InvalidParameterValue", 0},
		"no token":          {map[string][]string{"NextToken": {"*"}}, "InvalidParameterValue", 0},
		"with ids":          {map[string][]string{"MaxResults": {"5"}, "VolumeId.1": {"vol-000"}}, "InvalidParameterCombination", 0},
		"after the last":    {map[string][]string{"NextToken": {"dm9sLTAxMQ"}}, "", 0},
		"after one deleted": {map[string][]string{"NextToken": {"dm9sLTAwOXg"}}, "", 2},
	} {
		items, _, err := form{c.values}.page(volumeNodes(12), "VolumeId", "volumeId")
		code := ""
		if e, ok := err.(*Error); ok {
			code = e.Code
		}
		if code != c.code || len(items) != c.n {
			t.Errorf("%s: %d items, %v", name, len(items), err)
		}
	}
}
