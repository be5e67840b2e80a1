package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
)

// LeaseRecord is what the brokers share about the leases of one session, so
// that they end with it even if the broker that made them dies.
type LeaseRecord struct {
	Session string  `json:"session"`
	Owners  []Owner `json:"owners"`
	// Retiring owners have a successor. They end by themselves soon, and with the session at the latest.
	Retiring  []Owner   `json:"retiring,omitempty"`
	ExpiresAt time.Time `json:"expires_at"` // when the attestation ends that earned them

	// What another broker needs in order to decide again.
	KeyAlgorithm string        `json:"key_algorithm"`
	PublicKey    []byte        `json:"public_key"`
	Resources    []string      `json:"resources"`
	Claims       attest.Claims `json:"claims"`

	// Keeper is the broker that renews and ends them, until KeptUntil; then any other may take over.
	Keeper    string    `json:"keeper"`
	KeptUntil time.Time `json:"kept_until"`

	Revision int64 `json:"-"` // 0: not stored yet
}

// LeaseBook keeps lease records for all brokers, linearizably. PutLease writes
// only if the record is still at r.Revision, else it returns ErrChanged; both
// return what is stored. GetLease returns ErrNoSecret where there is none.
// Safe for concurrent use.
type LeaseBook interface {
	PutLease(ctx context.Context, r LeaseRecord) (LeaseRecord, error)
	GetLease(ctx context.Context, session string) (LeaseRecord, error)
	DeleteLease(ctx context.Context, session string) error
	Leases(ctx context.Context) ([]LeaseRecord, error)
}

const (
	// keepFor is how long a keeper is believed to live after its last word.
	keepFor = 10 * time.Second
	// keepEvery is how often a keeper looks.
	keepEvery = 3 * time.Second
	// maxRetryRenew is the longest wait before a renewal that failed is tried again.
	maxRetryRenew = 15 * time.Second
	// keepAtOnce is how many sessions' leases are kept at a time.
	keepAtOnce = 16
	// decideEvery is how often a keeper decides again without a reason, since time itself may be one.
	decideEvery = 30 * time.Second
)

// owners are the owners of one session's leases. The nil value has none.
type owners struct {
	b        *Broker
	rec      LeaseRecord
	bySource map[string]*Owner // that new leases are made with
	// known are the ids of owners and leases that were in the record once. If they are not any more, they ended meanwhile.
	known map[string]bool
}

// adopt takes over what the record says.
func (o *owners) adopt(r LeaseRecord) {
	o.rec = r
	for source, owner := range o.bySource {
		i := slices.IndexFunc(r.Owners, func(x Owner) bool { return x.ID == owner.ID })
		switch {
		case i >= 0:
			owner.Leases, owner.Of = r.Owners[i].Leases, r.Owners[i].Of
		case o.known[owner.ID]:
			delete(o.bySource, source)
		}
	}
	for _, owner := range r.Owners {
		if has := o.bySource[owner.Source]; has == nil || len(has.Secret) == 0 {
			o.bySource[owner.Source] = &owner
		}
		o.known[owner.ID] = true
		for _, id := range owner.Leases {
			o.known[id] = true
		}
	}
}

// add makes an owner in a source, beside those that there are, and writes it down.
func (o *owners) add(ctx context.Context, source, path string) error {
	owner, err := o.b.cfg.Sources[source].(LeasedSource).NewOwner(ctx, o.rec.Session, o.b.cfg.OwnerTTL)
	if err != nil {
		return fmt.Errorf("%w: lease owner for %s: %w", ErrUnavailable, path, err)
	}
	owner.Source = source
	o.bySource[source] = &owner
	if err := o.save(ctx); err != nil {
		delete(o.bySource, source) // nothing may belong to what is not written down: it ends by itself
		return err
	}
	return nil
}

// of is the owner for an entry, nil where the kind is not leased.
func (o *owners) of(e CatalogEntry) *Owner {
	if o == nil || !e.Kind.Leased() {
		return nil
	}
	return o.bySource[e.Source]
}

// openLeases makes an owner per source of leased kinds, and writes them down.
// The order is what keeps anything from being orphaned: the owner ends by itself
// if we die before it is written down, and nothing belongs to it by then.
func (b *Broker) openLeases(ctx context.Context, rec *Record, a appraisal, grants []allowed, now time.Time) (*owners, error) {
	var o *owners
	for _, g := range grants {
		if !g.entry.Kind.Leased() {
			continue
		}
		if o == nil {
			session := rec.Session
			if session == "" {
				session = rec.ID
			}
			o = &owners{b: b, bySource: map[string]*Owner{}, known: map[string]bool{}, rec: LeaseRecord{
				Session: session, ExpiresAt: now.Add(g.life()), KeyAlgorithm: a.req.KeyAlgorithm, PublicKey: a.req.PublicKey,
				Claims: a.claims, Keeper: b.cfg.Instance, KeptUntil: now.Add(keepFor),
			}}
		}
		o.rec.Resources = append(o.rec.Resources, g.path)
		if end := now.Add(g.life()); end.Before(o.rec.ExpiresAt) {
			o.rec.ExpiresAt = end
		}
		if o.bySource[g.entry.Source] != nil {
			continue
		}
		owner, err := b.cfg.Sources[g.entry.Source].(LeasedSource).NewOwner(ctx, o.rec.Session, b.cfg.OwnerTTL)
		if err != nil {
			o.abandon(ctx)
			return nil, fmt.Errorf("%w: lease owner for %s: %w", ErrUnavailable, g.path, err)
		}
		owner.Source = g.entry.Source
		o.bySource[g.entry.Source] = &owner
	}
	if o == nil {
		return nil, nil
	}
	rec.Session = o.rec.Session
	if err := o.save(ctx); err != nil {
		o.abandon(ctx)
		return nil, err
	}
	return o, nil
}

// save writes down who owns what: what is new since the last time, whatever a keeper changed about the rest.
func (o *owners) save(ctx context.Context) error {
	if o == nil {
		return nil
	}
	if err := o.update(ctx, o.addTo); err != nil {
		return fmt.Errorf("%w: write down leases: %w", ErrUnavailable, err)
	}
	o.adopt(o.rec)
	return nil
}

// addTo adds owners and leases that the record does not have yet. A lease replaces those before it of its resource:
// they are not renewed any more, and end by themselves.
func (o *owners) addTo(r *LeaseRecord) {
	r.Owners = slices.Clone(r.Owners)
	for _, source := range slices.Sorted(maps.Keys(o.bySource)) {
		owner := *o.bySource[source]
		i := slices.IndexFunc(r.Owners, func(x Owner) bool { return x.ID == owner.ID })
		if i < 0 && o.known[owner.ID] { // it ended meanwhile
			continue
		}
		if i < 0 {
			i = len(r.Owners)
			r.Owners = append(r.Owners, owner)
			r.Owners[i].Leases, r.Owners[i].Of = nil, nil
		}
		for _, id := range owner.Leases {
			if o.known[id] || slices.Contains(r.Owners[i].Leases, id) {
				continue
			}
			for n := range r.Owners {
				x := &r.Owners[n]
				x.drop(func(other string) bool {
					return owner.Of[id].Resource != "" && x.Of[other].Resource == owner.Of[id].Resource
				})
			}
			r.Owners[i].note(id, owner.Of[id])
		}
	}
	r.retire(func(x Owner) bool {
		used := o.bySource[x.Source]
		return len(x.Leases) == 0 && used != nil && used.ID != x.ID
	})
}

// retire moves owners to those that nobody renews any more.
func (r *LeaseRecord) retire(which func(Owner) bool) {
	var stay []Owner
	for _, x := range r.Owners {
		if which(x) {
			r.Retiring = append(slices.Clone(r.Retiring), x)
		} else {
			stay = append(stay, x)
		}
	}
	r.Owners = stay
}

// leases says whether that version of a resource is still leased.
func (r LeaseRecord) leases(source, resource, version string) bool {
	return slices.ContainsFunc(r.Owners, func(o Owner) bool { return o.leases(source, resource, version) })
}

// update changes the stored record, whoever else changes it.
func (o *owners) update(ctx context.Context, change func(*LeaseRecord)) error {
	for range 5 {
		change(&o.rec)
		stored, err := o.b.cfg.Leases.PutLease(ctx, o.rec)
		if err == nil {
			o.rec = stored
			return nil
		}
		if !errors.Is(err, ErrChanged) {
			return err
		}
		if o.rec, err = o.b.cfg.Leases.GetLease(ctx, o.rec.Session); err != nil {
			return err
		}
	}
	return ErrChanged
}

// abandon ends the owners after a failure, at once where it can, else by whoever keeps the record.
func (o *owners) abandon(ctx context.Context) {
	if o == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	r := o.rec
	r.Owners = slices.Clone(r.Owners)
	for _, owner := range o.bySource {
		if !slices.ContainsFunc(r.Owners, func(x Owner) bool { return x.ID == owner.ID }) {
			r.Owners = append(r.Owners, *owner)
		}
		clear(owner.Secret)
	}
	if err := o.b.endLeases(ctx, r); err != nil {
		o.b.cfg.Logger.WarnContext(ctx, "cannot end leases now, trying again later", "session", r.Session, "error", err)
	}
}

// endLeases revokes the owners, and forgets the record once all are gone.
func (b *Broker) endLeases(ctx context.Context, r LeaseRecord) error {
	var errs []error
	for _, owner := range slices.Concat(r.Owners, r.Retiring) {
		src, ok := b.cfg.Sources[owner.Source].(LeasedSource)
		if !ok {
			errs = append(errs, fmt.Errorf("source %q is not configured any more", owner.Source))
			continue
		}
		if err := src.RevokeOwner(ctx, owner); err != nil {
			errs = append(errs, fmt.Errorf("revoke owner %s of %s: %w", owner.ID, owner.Source, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return b.cfg.Leases.DeleteLease(ctx, r.Session)
}

// KeepLeases renews and ends leases until ctx ends: those of this broker, and
// those of brokers that are gone.
func (b *Broker) KeepLeases(ctx context.Context) error {
	if b.cfg.Leases == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	k := keeper{b: b, kept: map[string]*kept{}}
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	for {
		changed := b.changed.wait()
		k.pass(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			for _, s := range k.kept {
				s.decided = time.Time{}
			}
		case <-t.C:
		}
	}
}

type keeper struct {
	b    *Broker
	kept map[string]*kept // by session
}

// kept is what the keeper remembers of a session. A pass has one goroutine for each.
type kept struct {
	decided time.Time           // when the policy last allowed it
	renewal map[string]*renewal // by the ids of its owners and leases
}

// renewal is when to renew an owner or a lease again.
type renewal struct {
	next     time.Time
	failures int // in a row
}

// due says whether it is time.
func (s *kept) due(id string, now time.Time) bool {
	r := s.renewal[id]
	return r == nil || !now.Before(r.next)
}

func (s *kept) succeeded(id string, next time.Time) { s.renewal[id] = &renewal{next: next} }

// failed puts the next try off, ever longer: but a lease must not end meanwhile if what failed is back.
func (s *kept) failed(id string, now time.Time) {
	r := s.renewal[id]
	if r == nil {
		r = &renewal{}
		s.renewal[id] = r
	}
	r.next = now.Add(min(keepEvery<<min(r.failures, 8), maxRetryRenew))
	r.failures++
}

// pass looks at every record once. Several at a time, as what hangs must not keep the others waiting until they end.
func (k *keeper) pass(ctx context.Context) {
	all, err := k.b.cfg.Leases.Leases(ctx)
	if err != nil {
		k.b.cfg.Logger.WarnContext(ctx, "cannot read the leases", "error", err)
		return
	}
	known := map[string]bool{}
	slots := make(chan struct{}, keepAtOnce)
	var wg sync.WaitGroup
	for _, r := range all {
		known[r.Session] = true
		s := k.kept[r.Session]
		if s == nil {
			s = &kept{renewal: map[string]*renewal{}}
			k.kept[r.Session] = s
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := k.keep(ctx, r, s); err != nil && ctx.Err() == nil {
				k.b.cfg.Logger.WarnContext(ctx, "cannot keep leases, trying again", "session", r.Session, "error", err)
			}
		})
	}
	wg.Wait()
	maps.DeleteFunc(k.kept, func(id string, _ *kept) bool { return !known[id] })
}

func (k *keeper) keep(ctx context.Context, r LeaseRecord, s *kept) error {
	b, now := k.b, k.b.cfg.Now()
	if r.Keeper != b.cfg.Instance && now.Before(r.KeptUntil) {
		return nil
	}
	if now.After(r.ExpiresAt) {
		b.cfg.Logger.InfoContext(ctx, "attestation ended, revoking its leases", "session", r.Session)
		return b.endLeases(ctx, r)
	}
	if now.Sub(s.decided) >= decideEvery {
		if err := b.leaseAllowed(ctx, r, now); errors.Is(err, ErrDenied) {
			b.cfg.Logger.InfoContext(ctx, "session not allowed any more, revoking its leases", "session", r.Session, "why", err)
			return b.endLeases(ctx, r)
		} else if err != nil {
			return err // cannot tell: neither renew nor revoke
		}
		s.decided = now
	}
	if r.KeptUntil.Sub(now) < 2*keepEvery { // so always, if it was another's
		r.Keeper, r.KeptUntil = b.cfg.Instance, now.Add(keepFor)
		stored, err := b.cfg.Leases.PutLease(ctx, r)
		if errors.Is(err, ErrChanged) { // by its session, or another broker was quicker: next time
			return nil
		} else if err != nil {
			return err
		}
		r = stored
	}
	return k.renew(ctx, r, s, now)
}

// renew renews what is due. What cannot be renewed keeps nothing else from it, and what ended ends nothing else:
// it leaves the record, so that a watching session sees it, and gets another.
func (k *keeper) renew(ctx context.Context, r LeaseRecord, s *kept, now time.Time) error {
	b := k.b
	ended, ending, gone := map[string]bool{}, map[string]bool{}, map[string]bool{} // owners, owners, leases
	var errs []error
	maps.DeleteFunc(s.renewal, func(id string, _ *renewal) bool { // of what was replaced
		return !slices.ContainsFunc(r.Owners, func(o Owner) bool { return o.ID == id || slices.Contains(o.Leases, id) })
	})
	for _, owner := range r.Owners {
		src, ok := b.cfg.Sources[owner.Source].(LeasedSource)
		if !ok {
			errs = append(errs, fmt.Errorf("source %q is not configured any more", owner.Source))
			continue
		}
		due := owner
		due.Leases = slices.DeleteFunc(slices.Clone(owner.Leases), func(id string) bool {
			at := owner.Of[id].ReplaceAt
			if !at.IsZero() && !now.Before(at) {
				gone[id] = true
			}
			return !at.IsZero() || !s.due(id, now)
		})
		if len(due.Leases) == 0 && !s.due(owner.ID, now) {
			continue
		}
		err := src.RenewOwner(ctx, due, b.cfg.OwnerTTL)
		leases := map[string]error{}
		if part, ok := errors.AsType[*RenewError](err); ok {
			err, leases = part.Owner, part.Leases
		}
		switch {
		case errors.Is(err, ErrNoSecret):
			b.cfg.Logger.WarnContext(ctx, "leases ended in their source", "session", r.Session, "source", owner.Source)
			ended[owner.ID] = true
			continue
		case errors.Is(err, ErrEnding):
			ending[owner.ID] = true
			continue
		case err != nil:
			errs = append(errs, err)
			s.failed(owner.ID, now)
		default:
			s.succeeded(owner.ID, now.Add(b.cfg.OwnerTTL/3))
		}
		for _, id := range due.Leases {
			switch lerr := leases[id]; {
			case lerr == nil && err == nil:
				s.succeeded(id, now.Add(owner.LeaseTTL(id, b.cfg.OwnerTTL)/3))
			case lerr == nil: // it may have been renewed, and may not
				s.failed(id, now)
			case errors.Is(lerr, ErrNoSecret), errors.Is(lerr, ErrEnding):
				b.cfg.Logger.WarnContext(ctx, "a lease cannot be renewed any more", "session", r.Session, "resource", owner.Of[id].Resource, "error", lerr)
				gone[id] = true
			default:
				errs = append(errs, lerr)
				s.failed(id, now)
			}
		}
	}
	if len(ended)+len(ending)+len(gone) > 0 {
		errs = append(errs, k.shrink(ctx, r, ended, ending, gone))
	}
	return errors.Join(errs...)
}

// shrink writes down what ended.
func (k *keeper) shrink(ctx context.Context, r LeaseRecord, ended, ending, gone map[string]bool) error {
	b := k.b
	if len(ended) == len(r.Owners) { // a watching session sees that its record is gone, and gets new leases
		err := b.endLeases(ctx, r)
		b.Changed()
		return err
	}
	r.retire(func(o Owner) bool { return ending[o.ID] })
	r.Owners = slices.DeleteFunc(slices.Clone(r.Owners), func(o Owner) bool { return ended[o.ID] })
	for i := range r.Owners {
		r.Owners[i].drop(func(id string) bool { return gone[id] })
	}
	_, err := b.cfg.Leases.PutLease(ctx, r)
	if errors.Is(err, ErrChanged) { // seen again at the next pass
		return nil
	}
	b.Changed()
	return err
}

// leaseAllowed decides again about a session whose evidence is not at hand.
func (b *Broker) leaseAllowed(ctx context.Context, r LeaseRecord, now time.Time) error {
	to, err := seal.ParseRecipient(seal.Suite(r.KeyAlgorithm), r.PublicKey)
	if err != nil {
		return fmt.Errorf("%w: lease record: %w", ErrDenied, err)
	}
	a := appraisal{claims: r.Claims, recipient: to, req: Request{KeyAlgorithm: r.KeyAlgorithm, PublicKey: r.PublicKey, Resources: r.Resources}}
	rec := b.newRecord(a, r.Resources, now)
	rec.Session = r.Session
	_, err = b.decide(ctx, a, &rec, now)
	if !errors.Is(err, ErrDenied) {
		return err
	}
	rec.Outcome, rec.Error = Denied, "leases ended: "+err.Error()
	if _, lerr := b.cfg.Log.Append(ctx, rec); lerr != nil {
		return errors.Join(err, fmt.Errorf("record the end of leases: %w", lerr))
	}
	return err
}

func thumbprint(a appraisal) string {
	t := seal.Thumbprint(a.recipient.Suite(), a.req.PublicKey)
	return hex.EncodeToString(t[:])
}
