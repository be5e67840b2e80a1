package broker

import (
	"container/list"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// sightings remembers to which networks this broker released something lately, by chip and image. What
// was denied does not count, and neither does another image: a chip is the host's, and its other
// guests, who may send as much evidence from as many networks as they like, are somebody else's.
type sightings struct {
	mu    sync.Mutex
	chips map[sighted]*list.Element // guarded by mu
	lru   *list.List                // of sighting, the last released to in front; guarded by mu
}

// sighted is a chip as it ran an image.
type sighted struct {
	chip  string
	image [sha256.Size]byte // of its measurements
}

type sighting struct {
	of       sighted
	networks map[netip.Prefix]time.Time // when last released to
}

const (
	sightingTime = 10 * time.Minute
	maxChips     = 65536
	maxNetworks  = 16 // of a chip; enough to know that something is wrong
)

func newSightings() *sightings {
	return &sightings{chips: map[sighted]*list.Element{}, lru: list.New()}
}

// networkOf is the network of a guest that is to be told from others: IPv4 /24, IPv6 /48.
func networkOf(from netip.Addr) (netip.Prefix, bool) {
	if !from.IsValid() {
		return netip.Prefix{}, false
	}
	bits := 24
	if from = from.Unmap(); from.Is6() {
		bits = 48
	}
	network, err := from.Prefix(bits)
	return network, err == nil
}

// chipsOf are the chips in the claims by each of their names (Broker.identities), with what each measured itself.
func chipsOf(c attest.Claims, names func(attest.Claims) []string) (out []sighted) {
	for _, x := range append([]attest.Claims{c}, c.Devices...) {
		h := sha256.New()
		for _, name := range slices.Sorted(maps.Keys(x.Measurements)) {
			fmt.Fprintf(h, "%q=%q\n", name, x.Measurements[name])
		}
		image := [sha256.Size]byte(h.Sum(nil))
		for _, name := range names(x) {
			out = append(out, sighted{name, image})
		}
	}
	return out
}

// count is the number of networks of the chip that has most: those released to lately, and the one that asks now.
// It is 0 where nobody knows from where the request came.
func (s *sightings) count(chips []sighted, from netip.Addr, now time.Time) int {
	network, ok := networkOf(from)
	if !ok {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	most := 0
	for _, x := range chips {
		n := 1
		if e := s.chips[x]; e != nil {
			for seen, at := range e.Value.(sighting).networks {
				if seen != network && now.Sub(at) <= sightingTime {
					n++
				}
			}
		}
		most = max(most, n)
	}
	return most
}

// released notes that something was released to the chips' guest.
func (s *sightings) released(chips []sighted, from netip.Addr, now time.Time) {
	network, ok := networkOf(from)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range chips {
		e := s.chips[x]
		if e == nil {
			if len(s.chips) >= maxChips {
				delete(s.chips, s.lru.Remove(s.lru.Back()).(sighting).of)
			}
			e = s.lru.PushFront(sighting{x, map[netip.Prefix]time.Time{}})
			s.chips[x] = e
		}
		s.lru.MoveToFront(e)
		seen := e.Value.(sighting).networks
		maps.DeleteFunc(seen, func(_ netip.Prefix, at time.Time) bool { return now.Sub(at) > sightingTime })
		if _, known := seen[network]; known || len(seen) < maxNetworks {
			seen[network] = now
		}
	}
}
