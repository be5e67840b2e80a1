package snp

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
)

type digest = [sha256.Size]byte

// digestOf hashes the parts with their lengths, so that no other division of
// the same bytes has the same digest.
func digestOf(parts ...[]byte) digest {
	h := sha256.New()
	var n [4]byte
	for _, p := range parts {
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	var d digest
	h.Sum(d[:0])
	return d
}

// memo remembers results by the digest of all that they depend on. It holds
// at most size entries, in two generations: when the young one is full, the
// old one is dropped. Only verified results may go in, so that a stranger
// cannot flush it.
type memo[V any] struct {
	size int

	mu         sync.Mutex
	young, old map[digest]V // guarded by mu
}

func (m *memo[V]) get(k digest) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.young[k]; ok {
		return v, true
	}
	v, ok := m.old[k]
	if ok {
		m.add(k, v) // still in use: keep it for another generation
	}
	return v, ok
}

func (m *memo[V]) put(k digest, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(k, v)
}

// add is called with mu held.
func (m *memo[V]) add(k digest, v V) {
	if m.young == nil || len(m.young) >= m.size/2 {
		m.young, m.old = map[digest]V{}, m.young
	}
	m.young[k] = v
}
