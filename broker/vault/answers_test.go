package vault

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/internal/grant"
)

// What Vault answers is an answer, for which no copy may stand in; only where it does not answer there is none.
func TestAnswers(t *testing.T) {
	t.Parallel() // it mostly waits
	d := deploy(t)
	d.write(t, "secret/data/db/x", map[string]any{"data": map[string]any{"value": "x"}})
	entry := broker.CatalogEntry{Key: "db/x", CreateBytes: 32}
	answer := func(t *testing.T, e broker.CatalogEntry, want error) {
		t.Helper()
		s, err := d.fetch(t, broker.Granted{Entry: e})
		if !errors.Is(err, want) || len(s.Value) > 0 {
			t.Errorf("got %q, %v, want %v", s.Value, err, want)
		}
	}
	if _, err := d.fetch(t, broker.Granted{Entry: entry}); err != nil {
		t.Fatal(err)
	}
	t.Run("a path that the policy forbids", func(t *testing.T) {
		answer(t, broker.CatalogEntry{Key: "other/x"}, broker.ErrWithheld)
	})
	t.Run("not there", func(t *testing.T) { answer(t, broker.CatalogEntry{Key: "db/none"}, broker.ErrNoSecret) })
	t.Run("not what the entry says", func(t *testing.T) {
		answer(t, broker.CatalogEntry{Key: "db/x", Options: map[string]string{"encoding": "base64"}}, broker.ErrWithheld)
	})
	t.Run("the operator took the rights away", func(t *testing.T) {
		before, err := d.root.Sys().GetPolicy("claviger-broker-kv")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.root.Sys().PutPolicy("claviger-broker-kv", `path "secret/data/none" { capabilities = ["read"] }`); err != nil {
			t.Fatal(err)
		}
		answer(t, entry, broker.ErrWithheld)
		answer(t, entry, broker.ErrWithheld)
		if err := d.root.Sys().PutPolicy("claviger-broker-kv", before); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("version 1 in place of version 2", func(t *testing.T) {
		if err := d.root.Sys().Unmount("secret"); err != nil {
			t.Fatal(err)
		}
		d.write(t, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]any{"version": "1"}})
		answer(t, entry, broker.ErrWithheld)
		answer(t, broker.CatalogEntry{Key: "disks/new", CreateBytes: 32}, broker.ErrWithheld)
		if got, err := d.root.Logical().List("secret/"); err != nil || got != nil {
			t.Errorf("written to the wrong engine: %v %v", got, err)
		}
	})
	t.Run("no engine any more", func(t *testing.T) {
		if err := d.root.Sys().Unmount("secret"); err != nil {
			t.Fatal(err)
		}
		answer(t, entry, broker.ErrWithheld)
		answer(t, broker.CatalogEntry{Key: "disks/new", CreateBytes: 32}, broker.ErrWithheld)
	})
	t.Run("too many requests", func(t *testing.T) {
		d.write(t, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
		d.write(t, "sys/quotas/rate-limit/secret", map[string]any{"path": "secret/", "rate": 1, "interval": "1h"})
		_, _ = d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Key: "db/x"}})
		answer(t, broker.CatalogEntry{Key: "db/x"}, broker.ErrBusy)
		if _, err := d.root.Logical().Delete("sys/quotas/rate-limit/secret"); err != nil {
			t.Fatal(err)
		}
	})
	none := func(t *testing.T) {
		t.Helper()
		for range 2 * failuresToOpen {
			_, err := d.fetch(t, broker.Granted{Entry: entry})
			if err == nil || errors.Is(err, broker.ErrWithheld) || errors.Is(err, broker.ErrNoSecret) || errors.Is(err, broker.ErrBusy) {
				t.Errorf("got %v, want no answer", err)
			}
		}
	}
	t.Run("the broker's token ended, and it cannot log in just now", func(t *testing.T) {
		if err := d.root.Auth().Token().RevokeTree(*d.src.token.Load()); err != nil {
			t.Fatal(err)
		}
		if err := d.root.Sys().Seal(); err != nil {
			t.Fatal(err)
		}
		none(t)
	})
	t.Run("gone", func(t *testing.T) {
		d.vault.Kill(t)
		none(t)
	})
}

// A key that vanished is not made anew: the source asks before it makes one.
func TestVanishedKeyIsNotMade(t *testing.T) {
	d := deploy(t)
	e := broker.CatalogEntry{Key: "disks/vm-1", CreateBytes: 32, Rekey: true}
	known := 0
	fetch := func(input string) (broker.Secret, error) {
		return d.src.Fetch(t.Context(), grant.Mint(broker.Granted{Entry: e, Input: []byte(input), Absent: func(_ context.Context, version int) error {
			if version <= known {
				return fmt.Errorf("%w: version %d", broker.ErrVanished, version)
			}
			return nil
		}}))
	}
	for known < 3 {
		input := ""
		if known > 0 {
			input = fmt.Sprintf(`{"next_of":"%d"}`, known)
		}
		s, err := fetch(input)
		if known++; err != nil || s.Version != fmt.Sprint(known) {
			t.Fatalf("version %q: %v", s.Version, err)
		}
	}
	for name, change := range map[string]func(){
		"deleted": func() {
			if err := d.root.KVv2("secret").DeleteMetadata(t.Context(), e.Key); err != nil {
				t.Fatal(err)
			}
		},
		"an older snapshot": func() {
			d.write(t, "secret/data/"+e.Key, map[string]any{"data": map[string]any{"value": "base64:AAAA"}})
		},
	} {
		change()
		inputs := []string{`{"version":"3"}`, `{"next_of":"1"}`}
		if name == "deleted" {
			inputs = []string{"", `{"version":"3"}`}
		}
		for _, input := range inputs {
			if s, err := fetch(input); !errors.Is(err, broker.ErrVanished) || !errors.Is(err, broker.ErrNoSecret) {
				t.Errorf("%s, %q: version %q, %v", name, input, s.Version, err)
			}
		}
		if got, err := d.root.Logical().Read("secret/metadata/" + e.Key); err != nil || name == "deleted" && got != nil || got != nil && fmt.Sprint(got.Data["current_version"]) != "1" {
			t.Errorf("%s: made one: %v %v", name, got, err)
		}
		known = 3
	}
	// Made, and written down, between the two questions: the one who asks second gets it.
	e.Key = "disks/vm-2"
	s, err := d.src.Fetch(t.Context(), grant.Mint(broker.Granted{Entry: e, Absent: func(context.Context, int) error {
		d.write(t, "secret/data/"+e.Key, map[string]any{"data": map[string]any{"value": "base64:AAAA"}, "options": map[string]any{"cas": 0}})
		return broker.ErrVanished
	}}))
	if err != nil || s.Version != "1" {
		t.Errorf("version %q, %v", s.Version, err)
	}
}

func TestClassify(t *testing.T) {
	answer := func(code int, texts ...string) error {
		return fmt.Errorf("vault: %w", &api.ResponseError{StatusCode: code, Errors: texts})
	}
	sentinels := []error{broker.ErrWithheld, broker.ErrBusy, errNoAnswer, broker.ErrNoSecret, broker.ErrInput}
	for name, tt := range map[string]struct{ err, want error }{
		"forbidden": {answer(403, "permission denied"), broker.ErrWithheld}, "bad request": {answer(400, "no"), broker.ErrWithheld}, "not found": {answer(404), broker.ErrWithheld},
		"not what it should be": {errors.New("the answer is not base64"), broker.ErrWithheld},
		"quota":                 {answer(429), broker.ErrBusy}, "not yet consistent": {answer(412), broker.ErrBusy}, "race": {fmt.Errorf("x: %w", errBusy), broker.ErrBusy},
		"starting":                       {answer(400, "Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period and will resume service shortly."), broker.ErrBusy},
		"no answer":                      {fmt.Errorf("%w: %w", errNoAnswer, answer(503)), errNoAnswer},
		"not asked":                      {fmt.Errorf("%w: open", errNotAsked), errNoAnswer},
		"forbidden, and cannot log in":   {errors.Join(answer(403), fmt.Errorf("login: %w", errNoAnswer)), errNoAnswer},
		"forbidden, and the login is no": {errors.Join(answer(403), answer(400)), broker.ErrWithheld},
		"no secret":                      {fmt.Errorf("%w: %w", broker.ErrNoSecret, answer(404)), broker.ErrNoSecret}, "input": {fmt.Errorf("%w: %w", broker.ErrInput, answer(400)), broker.ErrInput},
	} {
		for _, s := range sentinels {
			if err := classify(tt.err); errors.Is(err, s) != (s == tt.want) {
				t.Errorf("%s: %v is %v", name, err, s)
			}
		}
	}
	if classify(nil) != nil {
		t.Error("an error of none")
	}
}
