package update

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/wire/acs"
)

func TestProgress(t *testing.T) {
	info := func(signature string) *acs.UpdateInfo {
		return &acs.UpdateInfo{Location: "https://cluster.test/x", Signature: signature}
	}
	p := progress{}
	var got []any
	stage := func(id string, i *acs.UpdateInfo) {
		next, answers, fetch := p.stage(id, i)
		p = next
		got = append(got, answers, fetch)
	}
	perform := func(id string, i *acs.UpdateInfo) {
		next, answers, install := p.perform(id, i)
		p = next
		got = append(got, answers, install)
	}
	fetched := func(signature string, err error) {
		next, answers := p.fetched(signature, err)
		p = next
		got = append(got, answers)
	}
	for _, c := range []struct {
		name string
		do   func()
		want []any
	}{
		{"nothing to perform", func() { perform("1", info("a")) }, []any{[]answer{{"1", "Cannot perform update; update not downloaded"}}, false}},
		{"no info", func() { stage("2", nil) }, []any{[]answer{{"2", "Invalid update: no update info given"}}, false}},
		{"no location", func() { stage("2", &acs.UpdateInfo{Signature: "a"}) }, []any{[]answer{{"2", "Invalid update: no location given"}}, false}},
		{"no signature", func() { stage("2", &acs.UpdateInfo{Location: "x"}) }, []any{[]answer{{"2", "Invalid update: no signature given"}}, false}},
		{"begins", func() { stage("3", info("a")) }, []any{[]answer(nil), true}},
		{"not there yet", func() { perform("4", nil) }, []any{[]answer{{"4", "Cannot perform update; update not downloaded"}}, false}},
		{"the same again", func() { stage("5", info("a")) }, []any{[]answer(nil), false}},
		{"another", func() { stage("6", info("b")) }, []any{[]answer{{"5", "New update arrived: 6"}}, true}},
		{"the one before is passed over", func() { fetched("a", nil) }, []any{[]answer(nil)}},
		{"fails", func() { fetched("b", errors.New("no room")) }, []any{[]answer{{"6", "Unable to download: no room"}}}},
		{"begins again", func() { stage("7", info("b")) }, []any{[]answer(nil), true}},
		{"is there", func() { fetched("b", nil) }, []any{[]answer{{"7", ""}}}},
		{"is there already", func() { stage("8", info("b")) }, []any{[]answer{{"8", ""}}, false}},
		{"another is not there", func() { perform("9", info("a")) }, []any{[]answer{{"9", "Cannot perform update; update not downloaded"}}, false}},
		{"performs", func() { perform("10", info("b")) }, []any{[]answer(nil), true}},
		{"performs already", func() { perform("11", info("b")) }, []any{[]answer{{"11", ""}}, false}},
		{"no other meanwhile", func() { stage("12", info("c")) }, []any{[]answer{{"12", "Cannot perform update; another is being installed"}}, false}},
		{"cannot", func() {
			next, answers := p.performed("10", errors.New("no systemd"))
			p = next
			got = append(got, answers, p.phase == staged)
		}, []any{[]answer{{"10", "Cannot perform update; no systemd"}}, true}},
	} {
		got = nil
		c.do()
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(answer{})); d != "" {
			t.Fatalf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
