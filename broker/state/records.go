package state

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/claviger/claviger/broker"
)

// Limits of what operators can write. They keep what every broker holds in
// memory, and loads at its start, within bounds; the store has a quota besides.
const (
	MaxRevocations    = 200_000
	MaxReferenceSets  = 20_000
	MaxCatalogEntries = 10_000

	maxRevocationBytes   = 4 << 10
	maxCatalogEntryBytes = 16 << 10
)

// ErrNotInForce is returned where a change is stored, and this broker has not
// put it in force before the caller's deadline. It still will.
var ErrNotInForce = errors.New("stored, but not in force on this broker yet")

// inForceTimeout is how long a change is waited for if the caller sets no deadline.
const inForceTimeout = 5 * time.Second

// Revoke persists a revocation; on return it is durable and in force here, and
// within a second it holds on every replica.
func (s *State) Revoke(ctx context.Context, r broker.Revocation) error {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	r.Subject = r.Canonical()
	b, err := encode(r, "revocation", maxRevocationBytes)
	if err != nil {
		return err
	}
	key := revocations + revocationKey(r.Subject)
	if err := s.room(key, MaxRevocations); err != nil {
		return err
	}
	_, err = s.commit(ctx, Change{Key: key, Value: b})
	return err
}

// Unrevoke takes a revocation back and says whether there was one. A value that
// is the key of a revocation's record, as Problems has it, names that record.
func (s *State) Unrevoke(ctx context.Context, sub broker.Subject) (bool, error) {
	key := revocations + revocationKey(sub.Canonical())
	if strings.HasPrefix(sub.Value, revocations) {
		key = sub.Value
	}
	return s.commit(ctx, Change{Key: key, Delete: true})
}

// ListRevocations lists at most limit of them, as ListReferenceSets does.
func (s *State) ListRevocations(ctx context.Context, after string, limit int) (page []broker.Revocation, next string, err error) {
	return pageJSON[broker.Revocation](ctx, s, revocations, after, limit)
}

// Revocations lists them, from the store.
func (s *State) Revocations(ctx context.Context) ([]broker.Revocation, error) {
	return listJSON[broker.Revocation](ctx, s, revocations)
}

func revocationKey(sub broker.Subject) string {
	return string(sub.Kind) + "/" + base64.RawURLEncoding.EncodeToString([]byte(sub.Value))
}

// PutReferenceSet persists a reference-value set; on return it is in force here.
func (s *State) PutReferenceSet(ctx context.Context, r broker.ReferenceSet) error {
	r = r.Normal()
	if err := r.Validate(); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	b, err := encode(r, "set", broker.MaxReferenceSetBytes)
	if err != nil {
		return err
	}
	key := references + r.Name
	if err := s.room(key, MaxReferenceSets); err != nil {
		return err
	}
	if _, err = s.commit(ctx, Change{Key: key, Value: b}); err != nil {
		return err
	}
	return s.applied(key)
}

// ChangeReferenceSet changes a set that exists, whoever else changes it; on
// return the change is in force here. ErrNoSecret if there is no such set.
func (s *State) ChangeReferenceSet(ctx context.Context, name string, change func(*broker.ReferenceSet) error) (broker.ReferenceSet, error) {
	key := references + name
	for range 10 {
		r, rev, err := s.referenceSet(ctx, name)
		if err != nil {
			return r, err
		}
		if err := change(&r); err != nil {
			return r, err
		}
		r = r.Normal()
		if err := r.Validate(); err != nil {
			return r, fmt.Errorf("%w: %w", broker.ErrRefused, err)
		}
		b, err := encode(r, "set", broker.MaxReferenceSetBytes)
		if err != nil {
			return r, err
		}
		// (A set that was deleted meanwhile would come back: deletions do not count. The operators disagree then.)
		done, err := s.commit(ctx, Change{Key: key, Value: b, Unless: key, Since: rev})
		if err != nil {
			return r, err
		}
		if done {
			return r, s.applied(key)
		}
	}
	return broker.ReferenceSet{}, fmt.Errorf("reference set %s: %w", name, ErrConflict)
}

// ReferenceSet is one from the store; ErrNoSecret if there is none of the name.
func (s *State) ReferenceSet(ctx context.Context, name string) (broker.ReferenceSet, error) {
	r, _, err := s.referenceSet(ctx, name)
	return r, err
}

// referenceSet reads a set as the brokers do that put it in force: of one that has members that this broker does
// not know (they may restrict it), what is written back would lack them.
func (s *State) referenceSet(ctx context.Context, name string) (r broker.ReferenceSet, revision int64, err error) {
	b, revision, err := s.kv.Get(ctx, references+name)
	if err != nil {
		return r, 0, err
	}
	if revision == 0 {
		return r, 0, fmt.Errorf("%s: %w", references+name, broker.ErrNoSecret)
	}
	if d := decode(Pair{Key: references + name, Value: b}); d.problem == nil {
		return d.set, revision, nil
	} else {
		return r, 0, fmt.Errorf("%w: reference set %s: %s: put it anew, with an owner and values", broker.ErrRefused, name, d.problem.Reason)
	}
}

// DeleteReferenceSet says whether there was one.
func (s *State) DeleteReferenceSet(ctx context.Context, name string) (bool, error) {
	return s.commit(ctx, Change{Key: references + strings.TrimPrefix(name, references), Delete: true})
}

// ListReferenceSets lists at most limit of them, from the store, by name. after
// is "" or what the call before returned as next, which is "" after the last.
func (s *State) ListReferenceSets(ctx context.Context, after string, limit int) (page []broker.ReferenceSet, next string, err error) {
	return pageJSON[broker.ReferenceSet](ctx, s, references, after, limit)
}

// ReferenceSets lists them, from the store.
func (s *State) ReferenceSets(ctx context.Context) ([]broker.ReferenceSet, error) {
	return listJSON[broker.ReferenceSet](ctx, s, references)
}

// PutCatalogEntry persists a catalog entry, by its pattern, if the whole catalog
// with it is good: of two entries put at once that are not good together, one
// is refused. On return it is in force here.
func (s *State) PutCatalogEntry(ctx context.Context, e broker.CatalogEntry) error {
	if err := e.Validate(); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	b, err := encode(e, "entry", maxCatalogEntryBytes)
	if err != nil {
		return err
	}
	key := catalogKey(e.Pattern)
	for range 10 {
		before, since, err := s.catalogNow(ctx)
		if err != nil {
			return err
		}
		after := []broker.CatalogEntry{e}
		for _, o := range before {
			if o.Pattern != e.Pattern {
				after = append(after, o)
			}
		}
		if len(after) > MaxCatalogEntries {
			return fmt.Errorf("%w: the catalog has %d entries, the most that it can have", broker.ErrRefused, MaxCatalogEntries)
		}
		if err := s.CheckCatalog(e, before, after); err != nil {
			return fmt.Errorf("%w: %w", broker.ErrRefused, err)
		}
		done, err := s.commit(ctx, Change{Key: key, Value: b, Unless: catalog, Since: since})
		if err != nil {
			return err
		}
		if done {
			return s.applied(key)
		}
	}
	return fmt.Errorf("catalog: %w", ErrConflict)
}

// catalogNow is the catalog in the store, without what does not decode, and the
// revision of its newest record.
func (s *State) catalogNow(ctx context.Context) (entries []broker.CatalogEntry, newest int64, err error) {
	pairs, err := s.kv.List(ctx, catalog)
	if err != nil {
		return nil, 0, err
	}
	for _, p := range pairs {
		newest = max(newest, p.Revision)
		if r := decode(p); r.problem == nil {
			entries = append(entries, r.entry)
		}
	}
	return entries, newest, nil
}

// DeleteCatalogEntry says whether there was one. The key of an entry's record,
// as Problems has it, names it as well.
func (s *State) DeleteCatalogEntry(ctx context.Context, pattern string) (bool, error) {
	key := catalogKey(pattern)
	if strings.HasPrefix(pattern, catalog) {
		key = pattern
	}
	return s.commit(ctx, Change{Key: key, Delete: true})
}

// CatalogEntries lists them, from the store.
func (s *State) CatalogEntries(ctx context.Context) ([]broker.CatalogEntry, error) {
	return listJSON[broker.CatalogEntry](ctx, s, catalog)
}

func catalogKey(pattern string) string {
	return catalog + base64.RawURLEncoding.EncodeToString([]byte(pattern))
}

// PinPolicy pins a bundle digest on every broker; "" takes the pin away. On
// return this broker has done what it could about it.
func (s *State) PinPolicy(ctx context.Context, digest string) error {
	c := Change{Key: policyPin, Value: []byte(digest), Delete: digest == ""}
	if !c.Delete && !bundleDigest.MatchString(digest) {
		return fmt.Errorf("%w: digest: want sha256: and 64 hex digits in lower case", broker.ErrRefused)
	}
	_, err := s.commit(ctx, c)
	return err
}

// commit does a change and waits until it is in force here.
func (s *State) commit(ctx context.Context, c Change) (bool, error) {
	rev, done, err := s.kv.Commit(ctx, c)
	if err != nil || !done || !s.running.Load() {
		return done, err
	}
	return done, s.await(ctx, rev, strings.HasPrefix(c.Key, revocations))
}

// await waits until revision rev is in force: by the hooks, or for revocations by being in the view.
func (s *State) await(ctx context.Context, rev int64, viewed bool) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, inForceTimeout)
		defer cancel()
	}
	for {
		s.mu.RLock()
		inForce, moved := s.inForce, s.moved
		if viewed {
			inForce = s.view.revision
		}
		s.mu.RUnlock()
		if inForce >= rev {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNotInForce, ctx.Err())
		}
	}
}

// applied says why what was put under key did not come into force.
func (s *State) applied(key string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, of := range []map[string]Problem{s.view.bad, s.refused} {
		if p, ok := of[key]; ok {
			return fmt.Errorf("stored, but not in force: %s", p.Reason)
		}
	}
	return nil
}

// room refuses a record more than there may be of its kind. (Several brokers that
// write at once may go a little beyond.)
func (s *State) room(key string, most int) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n := s.view.count(key); n >= most {
		return fmt.Errorf("%w: there are %d such records, the most that there can be: delete some", broker.ErrRefused, n)
	}
	return nil
}

func encode(v any, what string, most int) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", what, err)
	}
	if len(b) > most {
		return nil, fmt.Errorf("%w: the %s has %d bytes, want at most %d", broker.ErrRefused, what, len(b), most)
	}
	return b, nil
}

// pageJSON returns what decodes of a page of records under prefix, and where
// the next page starts: "" after the last. What does not decode is left out of
// listings; the follower reports it (Problems).
func pageJSON[T any](ctx context.Context, s *State, prefix, after string, limit int) (page []T, next string, err error) {
	if after != "" {
		after = prefix + after
	}
	pairs, err := s.kv.Page(ctx, prefix, after, limit)
	if err != nil {
		return nil, "", err
	}
	for _, p := range pairs {
		var v T
		if err := json.Unmarshal(p.Value, &v); err != nil {
			s.log.WarnContext(ctx, "a record is left out of a listing: it does not decode", "key", p.Key, "error", err)
			continue
		}
		page = append(page, v)
	}
	if limit > 0 && len(pairs) == limit {
		next = strings.TrimPrefix(pairs[limit-1].Key, prefix)
	}
	return page, next, nil
}

// listPage is how many records are read at a time where all are wanted.
const listPage = 1000

func listJSON[T any](ctx context.Context, s *State, prefix string) ([]T, error) {
	all := []T{}
	for after := ""; ; {
		page, next, err := pageJSON[T](ctx, s, prefix, after, listPage)
		if err != nil {
			return nil, err
		}
		if all = append(all, page...); next == "" {
			return all, nil
		}
		after = next
	}
}
