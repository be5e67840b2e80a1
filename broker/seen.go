package broker

import (
	"sync"
	"time"
)

// seen remembers the nonces that came with verified evidence to this broker,
// for at least as long as they are honoured. The Store makes sure that a nonce
// releases once, on any replica; this makes sure that a replayed request, which
// policy denies again and again, leaves one record and not thousands.
type seen struct {
	life time.Duration

	mu     sync.Mutex
	young  map[NonceID]bool // guarded by mu
	old    map[NonceID]bool // guarded by mu
	turned time.Time        // guarded by mu; when young became old
}

// maxSeen bounds a generation. Past it nonces are forgotten early, and a replay may leave one more record.
const maxSeen = 1 << 20

func newSeen(life time.Duration) *seen {
	return &seen{life: life, young: map[NonceID]bool{}, old: map[NonceID]bool{}}
}

// has says whether the nonce was here.
func (s *seen) has(id NonceID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.young[id] || s.old[id]
}

// add says whether the nonce is new here.
func (s *seen) add(id NonceID, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.turned) > s.life || len(s.young) >= maxSeen {
		s.young, s.old, s.turned = make(map[NonceID]bool, len(s.young)), s.young, now
	}
	if s.young[id] || s.old[id] {
		return false
	}
	s.young[id] = true
	return true
}
