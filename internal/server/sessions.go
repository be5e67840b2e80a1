package server

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/broker"
)

// sessions implements rpc.Sessions.
type sessions struct{ *Server }

func (s sessions) Page(ctx context.Context, after string, limit int) ([]broker.Session, string, error) {
	return s.state.SessionsPage(ctx, after, limit)
}

func (s sessions) Current(e broker.CatalogEntry) string { return s.feed.Current(e) }

func (s sessions) Notify(ctx context.Context, e broker.CatalogEntry) error {
	return s.feed.Notify(ctx, e)
}

func (s sessions) Rotate(ctx context.Context, e broker.CatalogEntry) (string, error) {
	src, ok := s.sources[e.Source].(broker.Rotator)
	if !ok {
		return "", broker.ErrNotRotatable
	}
	return src.Rotate(ctx, e)
}

func (s sessions) Lookup(path string) (broker.CatalogEntry, bool) {
	e, _, ok := s.broker.Catalog().Lookup(path)
	return e, ok
}

func (s sessions) Seen(ctx context.Context, subject broker.Subject) ([]string, error) {
	if s.index.Has(subject) {
		return []string{subject.Canonical().Value}, nil
	}
	known, err := s.known.get(ctx, s.Server)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, v := range known[subject.Kind] {
		if len(v) >= len(subject.Value) && strings.EqualFold(v[:len(subject.Value)], subject.Value) {
			seen[v] = true
		}
	}
	// What the index does not have yet is not waited for long: a revocation is urgent, and can be forced.
	_ = s.caughtUp(ctx, time.Second)
	logged, err := s.index.Seen(ctx, subject)
	if err != nil {
		s.log.WarnContext(ctx, "the index of the audit log cannot be read", "error", err)
	}
	for _, v := range logged {
		seen[broker.Subject{Kind: subject.Kind, Value: v}.Canonical().Value] = true
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// known is what can be revoked besides what the log has: of sessions, leases, reference
// sets and policies. It is read at most once a second, for who revokes thousands of things.
type known struct {
	mu sync.Mutex
	at time.Time                          // guarded by mu
	by map[broker.RevocationKind][]string // guarded by mu; replaced, never changed
}

func (k *known) get(ctx context.Context, s *Server) (map[broker.RevocationKind][]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.at) < time.Second {
		return k.by, nil
	}
	by := map[broker.RevocationKind][]string{}
	add := func(kind broker.RevocationKind, value string) {
		by[kind] = append(by[kind], broker.Subject{Kind: kind, Value: value}.Canonical().Value)
	}
	live, err := s.state.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range live {
		for _, sub := range x.Subjects {
			add(sub.Kind, sub.Value)
		}
		add(broker.RevokeSession, x.ID)
	}
	leases, err := s.state.Leases(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range leases {
		add(broker.RevokeSession, x.Session)
	}
	sets, err := s.state.ReferenceSets(ctx)
	if err != nil {
		return nil, err
	}
	for _, set := range sets {
		for claim, values := range set.Values {
			kind := broker.RevokeMeasurement
			switch claim {
			case "host_data":
				kind = broker.RevokeWorkload
			case "chip_id":
				kind = broker.RevokeChip
			}
			for _, v := range values {
				add(kind, v)
			}
		}
	}
	st := s.engine.Status()
	if st.Digest != "" {
		add(broker.RevokePolicy, st.Digest)
	}
	for _, c := range st.Candidates {
		add(broker.RevokePolicy, c.Digest)
	}
	k.by, k.at = by, time.Now()
	return by, nil
}

// caughtUp waits until the index has all that was recorded until now.
func (s sessions) caughtUp(ctx context.Context, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if err := s.audit.Settle(ctx); err != nil {
		return err
	}
	return s.index.CatchUp(ctx)
}

func (s sessions) Exposed(ctx context.Context, subject broker.Subject, since time.Time) (broker.Exposure, error) {
	if err := s.caughtUp(ctx, 20*time.Second); err != nil {
		return broker.Exposure{}, err
	}
	return s.index.Exposure(ctx, subject, since)
}
