package update

import "testing"

func TestStep(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"0.8.0", "0.9.0", true}, {"0.8.0", "1.0.0", true}, {"0.8.0", "0.8.1", true}, {"0.8.0", "0.20.0", true},
		{"0.9.0", "0.8.0", true}, {"0.9.3", "0.8.7", true}, {"0.9.3", "0.9.0", true},
		{"0.9.0", "0.9.0", false}, {"0.9.0", "0.7.9", false}, {"1.0.0", "0.9.0", false}, {"0.10.0", "0.8.0", false},
	} {
		from, err := Parse(c.from)
		if err != nil {
			t.Fatal(err)
		}
		to, err := Parse(c.to)
		if err != nil {
			t.Fatal(err)
		}
		if err := Step(from, to); (err == nil) != c.ok {
			t.Errorf("from %s to %s: %v", from, to, err)
		}
		if from.String() != c.from {
			t.Errorf("%s becomes %s", c.from, from)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"0.1.0", "1.2", "1.2.3.4", "v1.2.3", "01.2.3", "1.2.3-rc1", "9999999.0.0", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(v.String())
		if err != nil || again != v {
			t.Errorf("%q: %v, then %v, %v", s, v, again, err)
		}
	})
}
