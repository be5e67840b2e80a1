package state

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
)

func machineOf(key string, ids ...string) Pair {
	b, _ := json.Marshal(machine{ids})
	return Pair{Key: identities + key, Value: b}
}

// TestSameMachine: names are one machine's by one record or by several, and by what was enrolled together, for as long as these are there.
func TestSameMachine(t *testing.T) {
	s := open(t, nil, nil)
	s.alive(time.Now())
	same := func(after, id string, want ...string) {
		t.Helper()
		if got := s.SameMachine([]string{id}); got[0] != id || !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			t.Errorf("after %s: %s is %q, want %q", after, id, got, want)
		}
	}
	same("nothing", "rsa", "rsa")
	s.apply(whole(machineOf("1", "ak", "rsa"), machineOf("2", "ak", "ecc"), machineOf("3", "x", "y")))
	same("three", "rsa", "ak", "ecc", "rsa")
	same("three", "x", "x", "y")
	s.apply(Update{Pairs: []Pair{{Key: identities + "2", Deleted: true}}})
	same("one was deleted", "rsa", "ak", "rsa")
	set := broker.ReferenceSet{Name: "host-7", Type: "tpm", State: broker.ReferenceActive, Values: map[string][]string{broker.SameMachine: {"rsa", "ecc"}, "chip_id": {"rsa", "other"}}}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	s.apply(Update{Pairs: []Pair{{Key: references + "host-7", Value: b}}})
	same("enrolment", "ecc", "ak", "ecc", "rsa")
	same("enrolment", "other", "other")
	s.apply(Update{Pairs: []Pair{{Key: references + "host-7", Deleted: true}}})
	same("the set was deleted", "ecc", "ecc")
	for name, value := range map[string]string{"cut": "{", "one": `{"identities":["a"]}`, "none": `{}`, "many": `{"identities":["` + strings.Repeat(`a","`, broker.MaxIdentities) + `b"]}`} {
		s.apply(Update{Pairs: []Pair{{Key: identities + name, Value: []byte(value)}}})
		if _, _, err := s.Revoked(chip); err != nil {
			t.Errorf("%s stops releases: %v", name, err)
		}
	}
	if p := s.Problems(); len(p) != 4 || p[0].Kind != KindIdentity {
		t.Errorf("problems %+v", p)
	}
}

// TestBind: what is not known yet is written, once, and never more than a machine may have.
func TestBind(t *testing.T) {
	f := &fake{items: map[string][]byte{}}
	s := open(t, f, nil)
	s.alive(time.Now())
	bind := func(want int, ids ...string) {
		t.Helper()
		if err := s.Bind(t.Context(), ids); err != nil {
			t.Fatal(err)
		}
		if len(f.items) != want {
			t.Errorf("after %q: %d records, want %d", ids, len(f.items), want)
		}
		var pairs []Pair
		for key, v := range f.items {
			pairs = append(pairs, Pair{Key: key, Value: v})
		}
		s.apply(Update{Pairs: pairs})
	}
	bind(0)
	bind(0, "ak")
	bind(1, "rsa", "ak")
	bind(1, "ak", "rsa")
	bind(2, "ecc", "ak")
	bind(2, "ecc", "rsa") // known by the other two
	for i := range 2 * broker.MaxIdentities {
		_ = s.Bind(t.Context(), []string{"ecc", fmt.Sprint("ak", i)})
		for key, v := range f.items {
			s.apply(Update{Pairs: []Pair{{Key: key, Value: v}}})
		}
	}
	if n := len(s.SameMachine([]string{"ecc"})); n != broker.MaxIdentities {
		t.Errorf("a machine has %d identities, want %d at most", n, broker.MaxIdentities)
	}
}

// TestNewMachineWakesNobody: sessions are looked at again when a machine concerns a revocation, not for each new one of a fleet.
func TestNewMachineWakesNobody(t *testing.T) {
	s := open(t, nil, nil)
	s.apply(whole(Pair{Key: revocations + "chip/x", Value: []byte(`{"kind":"chip","value":"00ff"}`)}))
	s.enforceOnce()
	told := func() bool {
		select {
		case <-s.tell:
			return true
		default:
			return false
		}
	}
	told()
	for _, tc := range []struct {
		ids  []string
		want bool
	}{{[]string{"a", "b"}, false}, {[]string{"b", "00ff"}, true}, {[]string{"c", "a"}, true}} {
		s.apply(Update{Pairs: []Pair{machineOf(tc.ids[0], tc.ids...)}})
		s.enforceOnce()
		if got := told(); got != tc.want {
			t.Errorf("%q: told %t, want %t", tc.ids, got, tc.want)
		}
	}
}
