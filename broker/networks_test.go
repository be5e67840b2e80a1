package broker_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/claviger/claviger/broker"
)

// TestNetworksOfReleases: what policy denied does not count against whoever else is on the same chip.
func TestNetworksOfReleases(t *testing.T) {
	l := newLeaseWorld(t)
	ask := func(network int) (int, error) {
		a := l.guest(t, "disks/vm-1")
		a.req.Peer = netip.MustParseAddr(fmt.Sprintf("10.0.%d.1", network))
		_, err := l.send(t, a)
		l.decisions.mu.Lock()
		defer l.decisions.mu.Unlock()
		return l.decisions.in[len(l.decisions.in)-1].Chip.Networks, err
	}
	l.decisions.set(true, nil)
	for i := range 20 {
		if n, err := ask(i); !errors.Is(err, broker.ErrDenied) || n != 1 {
			t.Errorf("denied: %d networks, %v", n, err)
		}
	}
	l.decisions.set(false, nil)
	for i := range 3 {
		if n, err := ask(i); err != nil || n != i+1 {
			t.Errorf("released to network %d: %d networks, %v", i, n, err)
		}
	}
	// What is not released in the end does not count either.
	l.world.log.mu.Lock()
	l.world.log.fault = errors.New("disk full")
	l.world.log.mu.Unlock()
	if _, err := ask(7); !errors.Is(err, broker.ErrUnavailable) {
		t.Error(err)
	}
	l.world.log.mu.Lock()
	l.world.log.fault = nil
	l.world.log.mu.Unlock()
	if n, err := ask(0); err != nil || n != 3 {
		t.Errorf("%d networks, %v", n, err)
	}
}
