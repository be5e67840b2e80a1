package broker

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

func TestSightings(t *testing.T) {
	s, now := newSightings(), time.Unix(1e9, 0)
	see := func(chip, from string) int {
		addr, _ := netip.ParseAddr(from)
		c := attest.Claims{ChipID: chip, Devices: []attest.Claims{{ChipID: "gpu of " + chip}, {}}}
		n := s.count(chipsOf(c, identitiesOf), addr, now)
		s.released(chipsOf(c, identitiesOf), addr, now)
		return n
	}
	for _, c := range []struct {
		chip, from string
		want       int
	}{
		{"a", "10.0.0.1", 1}, {"a", "10.0.0.200", 1}, {"a", "::ffff:10.0.0.9", 1}, // one network
		{"b", "10.0.1.1", 1}, {"a", "10.0.1.1", 2}, {"a", "2001:db8::1", 3}, {"a", "2001:db8:0:1::1", 3}, {"a", "2001:db8:1::1", 4},
		{"a", "", 0},
	} {
		if got := see(c.chip, c.from); got != c.want {
			t.Errorf("%s from %s: %d networks, want %d", c.chip, c.from, got, c.want)
		}
	}
	now = now.Add(sightingTime + time.Second)
	if got := see("a", "10.0.0.1"); got != 1 {
		t.Errorf("later: %d networks", got)
	}
	// A device that moved to another machine counts, too.
	if got := s.count(chipsOf(attest.Claims{ChipID: "c", Devices: []attest.Claims{{ChipID: "gpu of a"}}}, identitiesOf), netip.MustParseAddr("10.9.9.9"), now); got != 2 {
		t.Errorf("a device in two networks: %d", got)
	}
	for i := range 100 {
		if got := see("d", fmt.Sprintf("10.1.%d.1", i)); got > maxNetworks+1 {
			t.Fatalf("%d networks are remembered", got)
		}
	}
	for i := range maxChips + 10 {
		s.released(chipsOf(attest.Claims{ChipID: fmt.Sprint(i)}, identitiesOf), netip.MustParseAddr("10.0.0.1"), now)
	}
	if len(s.chips) != maxChips || s.lru.Len() != maxChips {
		t.Errorf("%d chips are remembered, %d", len(s.chips), s.lru.Len())
	}
}

// TestSightingsOfOthers: what was denied, and what another image did on the same chip, is nothing against a guest.
func TestSightingsOfOthers(t *testing.T) {
	s, now := newSightings(), time.Unix(1e9, 0)
	good := chipsOf(attest.Claims{ChipID: "host", Measurements: map[string]string{"measurement": "good", "b": "1"}}, identitiesOf)
	other := chipsOf(attest.Claims{ChipID: "host", Measurements: map[string]string{"measurement": "other", "b": "1"}}, identitiesOf)
	at := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.1.%d.1", i)) }
	for i := range 10 {
		if got := s.count(good, at(i), now); got != 1 { // asked, and denied
			t.Errorf("%d networks", got)
		}
		s.released(other, at(i), now)
	}
	if got := s.count(good, at(0), now); got != 1 {
		t.Errorf("another guest of the host makes it %d networks", got)
	}
	s.released(good, at(0), now)
	s.released(good, at(1), now)
	if got := s.count(good, at(2), now); got != 3 {
		t.Errorf("the same image in three networks: %d", got)
	}
	// One machine by another of its names.
	names := attest.Claims{ChipID: "Second", Identities: []string{"host"}, Measurements: map[string]string{"measurement": "good", "b": "1"}}
	if got := s.count(chipsOf(names, identitiesOf), at(3), now); got != 3 {
		t.Errorf("by another name: %d networks", got)
	}
}
