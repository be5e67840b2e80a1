// Package memo remembers what verified, so that a second appraisal of the same
// certificates, lists and documents costs only the signatures that are new.
package memo

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
)

// defaultSize is for what a fleet has one of per machine.
const defaultSize = 4096

// Memo remembers results that depend on nothing but the bytes they were made
// from. What depends on the clock or on a revocation list is never kept here.
// Only what has verified is kept, so that a stranger cannot fill it.
//
// It has two generations: when the young one is half of Size, the old one is
// dropped, and what is still in use has moved to the young one by then. The
// zero value is ready.
type Memo[T any] struct {
	Size int // entries at most; default 4096

	mu         sync.Mutex
	young, old map[[32]byte]T // guarded by mu
}

// Get returns the value for key, making it on first use. Failures are not
// kept. Two callers may make the same value at once; that is harmless.
func (m *Memo[T]) Get(key [32]byte, make func() (T, error)) (T, error) {
	if v, ok := m.Find(key); ok {
		return v, nil
	}
	v, err := make()
	if err == nil {
		m.Keep(key, v)
	}
	return v, err
}

// Find returns the value for key, if it was kept.
func (m *Memo[T]) Find(key [32]byte) (T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.young[key]; ok {
		return v, true
	}
	v, ok := m.old[key]
	if ok {
		m.add(key, v)
	}
	return v, ok
}

// Keep remembers a value that verified.
func (m *Memo[T]) Keep(key [32]byte, v T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(key, v)
}

// Len is how many values are kept; one that moved to the young generation counts twice.
func (m *Memo[T]) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.young) + len(m.old)
}

// add is called with mu held.
func (m *Memo[T]) add(key [32]byte, v T) {
	size := m.Size
	if size == 0 {
		size = defaultSize
	}
	if m.young == nil || len(m.young) >= size/2 {
		m.young, m.old = map[[32]byte]T{}, m.young
	}
	m.young[key] = v
}

// Key is a digest over the parts with their lengths: no other division of the
// same bytes has it.
func Key(parts ...[]byte) [32]byte {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}
