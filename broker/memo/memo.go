// Package memo remembers what verified, so that a second appraisal of the same
// certificates, lists and documents costs only the signatures that are new.
package memo

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
)

// size bounds each Memo. Only what has verified is kept, so a stranger
// cannot fill it; a fleet has about one entry per machine.
const size = 1024

// Memo remembers results that depend on nothing but the bytes they were made
// from. What depends on the clock or on a revocation list is never kept here.
// The zero value is ready.
type Memo[T any] struct {
	mu    sync.Mutex
	m     map[[32]byte]T // guarded by mu
	order [][32]byte     // guarded by mu; keys by age, a ring once full
	next  int            // guarded by mu
}

// Get returns the value for key, making it on first use. Failures are not
// kept. Two callers may make the same value at once; that is harmless.
func (m *Memo[T]) Get(key [32]byte, make func() (T, error)) (T, error) {
	m.mu.Lock()
	v, ok := m.m[key]
	m.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := make()
	if err != nil {
		return v, err
	}
	m.put(key, v)
	return v, nil
}

func (m *Memo[T]) put(key [32]byte, v T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[[32]byte]T{}
	}
	if _, ok := m.m[key]; ok {
		return
	}
	if len(m.order) < size {
		m.order = append(m.order, key)
	} else {
		delete(m.m, m.order[m.next])
		m.order[m.next] = key
		m.next = (m.next + 1) % size
	}
	m.m[key] = v
}

// Key is a digest over the length-prefixed parts.
func Key(parts ...[]byte) [32]byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}
