package join

import (
	"fmt"
	"strings"
	"testing"
)

var sound = Token{Endpoint: "https://cluster.example.com:7700", Fingerprint: strings.Repeat("ab", 32), ID: "id", Secret: "hidden-value"}

func TestToken(t *testing.T) {
	got, err := Parse(" " + sound.Encode() + "\n")
	if err != nil || got != sound {
		t.Fatalf("%v, %v", got, err)
	}
	for _, text := range []string{fmt.Sprint(sound), fmt.Sprintf("%+v", sound), fmt.Sprintf("%#v", sound), fmt.Sprintf("%#v %v", Answer{SecretAccessKey: sound.Secret}, Answer{SecretAccessKey: sound.Secret})} {
		if strings.Contains(text, sound.Secret) {
			t.Errorf("prints its secret: %s", text)
		}
	}
	with := func(change func(*Token)) string {
		c := sound
		change(&c)
		return c.Encode()
	}
	plain := func(c *Token) { c.Endpoint, c.Fingerprint = "http://127.0.0.1:7700", "" }
	if _, err := Parse(with(plain)); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"empty": "", "other": "AKIDEXAMPLE", "cut": sound.Encode()[:40], "long": sound.Encode() + strings.Repeat("A", MaxToken),
		"no secret":              with(func(c *Token) { c.Secret = "" }),
		"no fingerprint":         with(func(c *Token) { c.Fingerprint = "" }),
		"short fingerprint":      with(func(c *Token) { c.Fingerprint = "abcd" }),
		"fingerprint of nothing": with(func(c *Token) { c.Endpoint = "http://10.0.0.1:7700" }),
		"path":                   with(func(c *Token) { c.Endpoint += "/x" }),
		"user":                   with(func(c *Token) { c.Endpoint = "https://a:b@c" }),
		"other scheme":           with(func(c *Token) { c.Endpoint = "ftp://c" }),
	} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%s: no error but %v", name, got)
		} else if strings.Contains(err.Error(), sound.Secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sound.Encode())
	f.Add(prefix + "e30")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(got.Encode()); err != nil || again != got {
			t.Errorf("%v became %v, %v", got, again, err)
		}
	})
}
