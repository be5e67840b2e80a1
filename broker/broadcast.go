package broker

import (
	"context"
	"sync"
	"time"
)

// broadcast wakes everybody who waits.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; nil if nobody waits
}

// wait returns a channel that the next fire closes.
func (s *broadcast) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *broadcast) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// shared lets sessions that get the same new version at the same moment share
// one read of the source: a rotation that a thousand guests wait for is one
// request to Vault, not a thousand. A value is kept for sharedFor and wiped.
type shared struct {
	mu    sync.Mutex
	reads map[sharedKey]*sharedRead // guarded by mu
}

type sharedKey struct {
	source, kind, mount, key, field, version string
	base64                                   bool
}

type sharedRead struct {
	done   chan struct{}
	secret Secret
	err    error
	mu     sync.Mutex // the value, against wiping it while it is copied
	wiped  bool
}

const sharedFor = 2 * time.Second

// fetch returns a copy of what read returns, or of what it returned a moment ago for the same key.
func (s *shared) fetch(ctx context.Context, key sharedKey, read func() (Secret, error)) (Secret, error) {
	s.mu.Lock()
	if s.reads == nil {
		s.reads = map[sharedKey]*sharedRead{}
	}
	r, ok := s.reads[key]
	if !ok {
		r = &sharedRead{done: make(chan struct{})}
		s.reads[key] = r
	}
	s.mu.Unlock()
	if !ok {
		r.secret, r.err = read()
		close(r.done)
		if r.err != nil {
			s.forget(key, r)
		} else {
			time.AfterFunc(sharedFor, func() { s.forget(key, r) })
		}
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return Secret{}, ctx.Err()
	}
	if r.err != nil {
		return Secret{}, r.err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wiped { // we waited that long: read for ourselves
		return read()
	}
	out := r.secret
	out.Value = append([]byte(nil), r.secret.Value...)
	return out, nil
}

func (s *shared) forget(key sharedKey, r *sharedRead) {
	s.mu.Lock()
	if s.reads[key] == r {
		delete(s.reads, key)
	}
	s.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secret.Wipe()
	r.wiped = true
}
