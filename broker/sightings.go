package broker

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// sightings remembers from which networks the requests of a chip came to this
// broker. Evidence that verified is remembered, whatever policy says then.
type sightings struct {
	mu    sync.Mutex
	chips map[string]*list.Element // guarded by mu
	lru   *list.List               // of sighting, the last seen in front; guarded by mu
}

type sighting struct {
	chip     string
	networks map[netip.Prefix]time.Time // when last seen
}

const (
	sightingTime = 10 * time.Minute
	maxChips     = 65536
	maxNetworks  = 16 // of a chip; enough to know that something is wrong
)

func newSightings() *sightings {
	return &sightings{chips: map[string]*list.Element{}, lru: list.New()}
}

// see notes a request, and returns the number of networks of the chip in the
// claims that has most.
func (s *sightings) see(c attest.Claims, from netip.Addr, now time.Time) int {
	if !from.IsValid() {
		return 0
	}
	bits := 24
	if from = from.Unmap(); from.Is6() {
		bits = 48
	}
	network, err := from.Prefix(bits)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.seeChip(c.ChipID, network, now)
	for _, d := range c.Devices {
		n = max(n, s.seeChip(d.ChipID, network, now))
	}
	return n
}

// seeChip: s.mu is held.
func (s *sightings) seeChip(chip string, network netip.Prefix, now time.Time) int {
	if chip == "" {
		return 0
	}
	e := s.chips[chip]
	if e == nil {
		if len(s.chips) >= maxChips {
			delete(s.chips, s.lru.Remove(s.lru.Back()).(sighting).chip)
		}
		e = s.lru.PushFront(sighting{chip, map[netip.Prefix]time.Time{}})
		s.chips[chip] = e
	}
	s.lru.MoveToFront(e)
	seen := e.Value.(sighting).networks
	for n, at := range seen {
		if now.Sub(at) > sightingTime {
			delete(seen, n)
		}
	}
	if _, known := seen[network]; known || len(seen) < maxNetworks {
		seen[network] = now
	}
	return len(seen)
}
