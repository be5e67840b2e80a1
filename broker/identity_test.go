package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// fakeIdentities is a book in memory.
type fakeIdentities struct {
	mu    sync.Mutex
	sets  [][]string // guarded by mu
	fault error      // guarded by mu
}

func (f *fakeIdentities) SameMachine(ids []string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := slices.Clone(ids)
	for _, set := range f.sets {
		if slices.ContainsFunc(set, func(id string) bool { return slices.Contains(ids, id) }) {
			out = append(out, set...)
		}
	}
	return out
}

func (f *fakeIdentities) Bind(_ context.Context, ids []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets = append(f.sets, ids)
	return f.fault
}

// TestKnownIdentity: what is revoked under a name that only the book knows for the machine is revoked, and recorded under it.
func TestKnownIdentity(t *testing.T) {
	book := &fakeIdentities{}
	w := newWorld(t, func(c *broker.Config) { c.Identities = book })
	if _, err := w.send(t, w.attempt(t)); err != nil {
		t.Fatal(err)
	}
	if len(book.sets) != 0 {
		t.Errorf("one name alone was bound: %v", book.sets)
	}
	chip := fmt.Sprintf("%x", w.device.ChipID())
	book.sets = [][]string{{chip, "earlier-name"}}
	if _, err := w.send(t, w.attempt(t)); err != nil {
		t.Fatal(err)
	}
	subject := broker.Subject{Kind: broker.RevokeChip, Value: "Earlier-Name"}
	if rec := w.log.records[len(w.log.records)-1]; !slices.Equal(rec.Identities, []string{"earlier-name"}) || !slices.Contains(rec.Subjects(), subject.Canonical()) {
		t.Errorf("record %+v", rec.Identities)
	}
	w.revoked.add(subject)
	if _, err := w.send(t, w.attempt(t)); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("released to a machine that is revoked under another name: %v", err)
	}
}

// TestOneDeviceTwoNames: a device with two keys is not two devices, whether the evidence says so or the book.
func TestOneDeviceTwoNames(t *testing.T) {
	named := func(chip string, more ...string) attest.Claims {
		c := gpu(chip)
		c.Identities = more
		return c
	}
	for name, tc := range map[string]struct {
		one, two attest.Claims
		book     [][]string
		good     bool
	}{
		"two":                        {named("rsa-1", "ak-1"), named("ecc-2", "ak-2"), nil, true},
		"a key in common":            {named("rsa-1", "ak-1"), named("ecc-1", "AK-1"), nil, false},
		"the other's name":           {named("rsa-1", "ecc-1"), named("ecc-1"), nil, false},
		"known from earlier":         {named("rsa-1"), named("ecc-1"), [][]string{{"rsa-1", "ecc-1"}}, false},
		"another machine from there": {named("rsa-1"), named("ecc-2"), [][]string{{"rsa-1", "ecc-1"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			book := &fakeIdentities{sets: tc.book}
			w, a, _ := guestWithDevices(t, theCPU, map[byte]attest.Claims{'1': tc.one, '2': tc.two}, "12", func(c *broker.Config) { c.Identities = book })
			if _, err := w.send(t, a); (err == nil) != tc.good {
				t.Errorf("%v", err)
			}
			bound := slices.ContainsFunc(book.sets[len(tc.book):], func(s []string) bool { return slices.Equal(s, []string{"rsa-1", "ak-1"}) })
			if want := tc.good && len(tc.one.Identities) > 0; bound != want {
				t.Errorf("bound %v, want %t", book.sets, want)
			}
		})
	}
	// Nothing is sent before it is remembered, so that a revocation of either name finds the other.
	book := &fakeIdentities{fault: errors.New("no majority")}
	w, a, _ := guestWithDevices(t, theCPU, map[byte]attest.Claims{'1': named("rsa-1", "ak-1")}, "1", func(c *broker.Config) { c.Identities = book })
	if _, err := w.send(t, a); !errors.Is(err, broker.ErrUnavailable) || w.source.touched != 0 {
		t.Errorf("the book is not there: %v, source touched %d times", err, w.source.touched)
	}
}

// TestRevokedComponent: what a log shows can be revoked one by one, of devices too, and what leaves it out is no better.
func TestRevokedComponent(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		components, omits []string
		revoked           string
		says              string // "" is released
	}{
		"nothing revoked":         {nil, []string{"event_log"}, "", ""},
		"another component":       {[]string{strings.Repeat("cd", 32)}, nil, digest, ""},
		"the component":           {[]string{strings.Repeat("cd", 32), digest}, nil, strings.ToUpper(digest), "revoked: measurement " + digest},
		"left out":                {nil, []string{"event_log", "pcr2"}, digest, "omits nvidia-gpu.event_log, nvidia-gpu.pcr2"},
		"of what no PCR can have": {nil, []string{"event_log"}, strings.Repeat("ab", 48), ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := gpu("gpu-1")
			c.Components, c.Omits = tc.components, tc.omits
			w, a, _ := guestWithDevices(t, theCPU, map[byte]attest.Claims{'1': c}, "1")
			if tc.revoked != "" {
				w.revoked.add(broker.Subject{Kind: broker.RevokeMeasurement, Value: tc.revoked})
			}
			_, err := w.send(t, a)
			if tc.says == "" && err != nil || tc.says != "" && (!errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("%v, want %q", err, tc.says)
			}
		})
	}
}
