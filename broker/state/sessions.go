package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/broker"
)

const (
	sessions = "sessions/"
	leases   = "leases/"
)

// PutSession implements broker.SessionBook.
func (s *State) PutSession(ctx context.Context, v broker.Session) error {
	return s.putJSON(ctx, sessions+v.ID, v)
}

// GetSession implements broker.SessionBook.
func (s *State) GetSession(ctx context.Context, id string) (broker.Session, error) {
	v, _, err := getJSON[broker.Session](ctx, s.kv, sessions+id)
	return v, err
}

// DeleteSession implements broker.SessionBook.
func (s *State) DeleteSession(ctx context.Context, id string) error {
	_, err := s.kv.Delete(ctx, sessions+id)
	return err
}

// Sessions lists the sessions that have not expired.
func (s *State) Sessions(ctx context.Context) ([]broker.Session, error) {
	all, err := listJSON[broker.Session](ctx, s, sessions)
	if err != nil {
		return nil, err
	}
	live := all[:0]
	for _, v := range all {
		if s.now().Before(v.ExpiresAt) {
			live = append(live, v)
		}
	}
	return live, nil
}

// SessionsPage lists sessions that have not expired: of at most limit records,
// as ListReferenceSets does. A page may be empty without being the last.
func (s *State) SessionsPage(ctx context.Context, after string, limit int) (page []broker.Session, next string, err error) {
	page, next, err = pageJSON[broker.Session](ctx, s, sessions, after, limit)
	return slices.DeleteFunc(page, func(v broker.Session) bool { return !s.now().Before(v.ExpiresAt) }), next, err
}

// Sweep forgets sessions and copies that expired, now and then, until ctx ends.
func (s *State) Sweep(ctx context.Context) error {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		if err := errors.Join(s.sweepSessions(ctx), s.sweepCopies(ctx)); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "cannot forget all that expired", "error", err)
		}
	}
}

// sweepSessions leaves alone what does not decode: a newer broker may have written it.
func (s *State) sweepSessions(ctx context.Context) error {
	return s.each(ctx, sessions, func(p Pair) error {
		var v broker.Session
		if err := json.Unmarshal(p.Value, &v); err != nil || s.now().Sub(v.ExpiresAt) <= 10*time.Minute {
			return err
		}
		_, err := s.kv.Delete(ctx, p.Key)
		return err
	})
}

// PutLease implements broker.LeaseBook.
func (s *State) PutLease(ctx context.Context, r broker.LeaseRecord) (broker.LeaseRecord, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return r, fmt.Errorf("encode lease record: %w", err)
	}
	won, err := s.kv.PutIf(ctx, leases+r.Session, b, r.Revision)
	if err != nil {
		return r, err
	}
	if !won {
		return r, fmt.Errorf("lease record %s: %w", r.Session, broker.ErrChanged)
	}
	// The revision of our own write is not known from PutIf; a later update finds out.
	return s.GetLease(ctx, r.Session)
}

// GetLease implements broker.LeaseBook.
func (s *State) GetLease(ctx context.Context, session string) (broker.LeaseRecord, error) {
	r, rev, err := getJSON[broker.LeaseRecord](ctx, s.kv, leases+session)
	r.Revision = rev
	return r, err
}

// DeleteLease implements broker.LeaseBook.
func (s *State) DeleteLease(ctx context.Context, session string) error {
	_, err := s.kv.Delete(ctx, leases+session)
	return err
}

// Leases implements broker.LeaseBook. A record that does not decode is left out: it must not keep the others from being kept.
func (s *State) Leases(ctx context.Context) ([]broker.LeaseRecord, error) {
	var out []broker.LeaseRecord
	err := s.each(ctx, leases, func(p Pair) error {
		var r broker.LeaseRecord
		if err := json.Unmarshal(p.Value, &r); err != nil {
			s.log.ErrorContext(ctx, "nobody keeps the leases of a session: their record does not decode", "key", p.Key, "error", err)
			return nil
		}
		r.Revision = p.Revision
		out = append(out, r)
		return nil
	})
	return out, err
}

// each calls f with all pairs under prefix, a page at a time, and joins its errors.
func (s *State) each(ctx context.Context, prefix string, f func(Pair) error) error {
	var errs []error
	for after := ""; ; {
		page, err := s.kv.Page(ctx, prefix, after, listPage)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, p := range page {
			errs = append(errs, f(p))
		}
		if len(page) < listPage {
			return errors.Join(errs...)
		}
		after = page[listPage-1].Key
	}
}

func getJSON[T any](ctx context.Context, kv KV, key string) (v T, revision int64, err error) {
	b, rev, err := kv.Get(ctx, key)
	if err != nil {
		return v, 0, err
	}
	if rev == 0 {
		return v, 0, fmt.Errorf("%s: %w", key, broker.ErrNoSecret)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, 0, fmt.Errorf("decode %s: %w", key, err)
	}
	return v, rev, nil
}
