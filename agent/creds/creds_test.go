package creds

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth.dev/berth/agent/task"
)

const canary = "canary-5d1f"

func set(id, arn string, r Role, ends time.Time) Credentials {
	return Credentials{
		ID: id, TaskARN: arn, Role: r, RoleARN: "arn:role", Expiration: ends.Format(time.RFC3339),
		AccessKeyID: task.NewSecret("A" + canary), SecretAccessKey: task.NewSecret("S" + canary), SessionToken: task.NewSecret("T" + canary),
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestGetIsBoundToTheTask(t *testing.T) {
	var s Store
	must(t, s.Set(set("id", "a", Application, time.Now().Add(time.Hour))))
	if c, err := s.Get("id", "a"); err != nil || c.SecretAccessKey.Reveal() != "S"+canary {
		t.Errorf("own credentials: %v", err)
	}
	_, other := s.Get("id", "b")
	_, none := s.Get("no", "b")
	if task.ClassOf(other) != task.NotFound || other.Error() != none.Error() {
		t.Errorf("another task learns %q, and %q where there is nothing", other, none)
	}
}

func TestExpiredCredentialsAreNeverServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Store
		must(t, s.Set(set("id", "a", Execution, time.Now().Add(time.Hour))))
		<-time.After(time.Hour - time.Second)
		if _, err := s.Of("a", Execution); err != nil {
			t.Errorf("a second before the end: %v", err)
		}
		<-time.After(time.Second)
		if _, err := s.Get("id", "a"); task.ClassOf(err) != task.Unavailable {
			t.Errorf("at the end: %v", err)
		}
		must(t, s.Set(set("id", "a", Execution, time.Now().Add(time.Hour))))
		if _, err := s.Get("id", "a"); err != nil {
			t.Errorf("after new ones: %v", err)
		}
	})
}

func TestRotation(t *testing.T) {
	var s Store
	now := time.Now()
	early, late := now.Add(time.Hour).Format(time.RFC3339), now.Add(2*time.Hour).Format(time.RFC3339)
	must(t, s.Set(set("id", "a", Application, now.Add(2*time.Hour))))
	must(t, s.Set(set("id", "a", Application, now.Add(time.Hour)))) // late delivery of older ones
	if c, err := s.Get("id", "a"); err != nil || c.Expiration != late {
		t.Errorf("older credentials replaced newer ones: %s, %v", c.Expiration, err)
	}
	must(t, s.Set(set("id2", "a", Application, now.Add(3*time.Hour))))
	if c, err := s.Of("a", Application); err != nil || c.ID != "id2" {
		t.Errorf("the newest are %q, %v", c.ID, err)
	}
	must(t, s.Set(set("id0", "a", Application, now.Add(time.Hour))))
	if c, err := s.Of("a", Application); err != nil || c.ID != "id2" {
		t.Errorf("the newest are %q after %s came, %v", c.ID, early, err)
	}
	if _, err := s.Get("id", "a"); err != nil {
		t.Errorf("the ones in use went away: %v", err)
	}
	if err := s.Set(set("id", "b", Application, now.Add(9*time.Hour))); task.ClassOf(err) != task.Invalid {
		t.Errorf("an id was given to another task: %v", err)
	}
}

func TestDropForgetsOneTask(t *testing.T) {
	var s Store
	ends := time.Now().Add(time.Hour)
	must(t, s.Set(set("1", "a", Application, ends)))
	must(t, s.Set(set("2", "a", Execution, ends)))
	must(t, s.Set(set("3", "b", Execution, ends)))
	s.Drop("a")
	s.Drop("a")
	if _, err := s.Of("a", Execution); task.ClassOf(err) != task.NotFound || s.Len() != 1 {
		t.Errorf("%v, %d left", err, s.Len())
	}
	if _, err := s.Get("3", "b"); err != nil {
		t.Error(err)
	}
}

func TestSetRefuses(t *testing.T) {
	ends := time.Now().Add(time.Hour)
	for name, change := range map[string]func(*Credentials){
		"no id":     func(c *Credentials) { c.ID = "" },
		"no task":   func(c *Credentials) { c.TaskARN = "" },
		"bad role":  func(c *Credentials) { c.Role = "Admin" },
		"no key":    func(c *Credentials) { c.AccessKeyID = task.Secret{} },
		"no secret": func(c *Credentials) { c.SecretAccessKey = task.Secret{} },
		"too long":  func(c *Credentials) { c.SessionToken = task.NewSecret(canary + strings.Repeat("x", maxString)) },
	} {
		var s Store
		c := set("id", "a", Application, ends)
		change(&c)
		err := s.Set(c)
		if task.ClassOf(err) != task.Invalid || s.Len() != 0 || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStoreIsBoundedAndMakesRoomFromTheExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Store
		for i := range maxSets {
			must(t, s.Set(set(fmt.Sprint(i), fmt.Sprint("t", i/2), Application, time.Now().Add(time.Minute))))
		}
		if err := s.Set(set("more", "t", Application, time.Now().Add(time.Hour))); task.ClassOf(err) != task.Exhausted {
			t.Errorf("one too many: %v", err)
		}
		<-time.After(time.Minute)
		must(t, s.Set(set("more", "t", Application, time.Now().Add(time.Hour))))
		if s.Len() != 1 || len(s.byTask) != 1 {
			t.Errorf("%d sets of %d tasks", s.Len(), len(s.byTask))
		}
	})
}

func TestNothingPrintsASecret(t *testing.T) {
	c := set("id", "a", Application, time.Now())
	var out strings.Builder
	fmt.Fprintf(&out, "%v %+v %#v %s", c, c, c, c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "credentials", c)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "credentials", &c)
	b, err := json.Marshal(c)
	must(t, err)
	out.Write(b)
	var s Store
	must(t, s.Set(c))
	fmt.Fprintf(&out, "%v %+v %#v", s.byID, s.byID, s.byID)
	if strings.Contains(out.String(), canary) {
		t.Errorf("a secret was printed: %s", out.String())
	}
}
