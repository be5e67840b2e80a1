package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
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
	// decideEvery is how often a keeper decides again without a reason, since time itself may be one.
	decideEvery = 30 * time.Second
)

// owners are the owners of one session's leases. The nil value has none.
type owners struct {
	b        *Broker
	rec      LeaseRecord
	bySource map[string]*Owner
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
			o = &owners{b: b, bySource: map[string]*Owner{}, rec: LeaseRecord{
				Session: session, ExpiresAt: now.Add(g.ttl), KeyAlgorithm: a.req.KeyAlgorithm, PublicKey: a.req.PublicKey,
				Claims: a.claims, Keeper: b.cfg.Instance, KeptUntil: now.Add(keepFor),
			}}
		}
		o.rec.Resources = append(o.rec.Resources, g.path)
		if end := now.Add(g.ttl); end.Before(o.rec.ExpiresAt) {
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

// save writes down who owns what.
func (o *owners) save(ctx context.Context) error {
	if o == nil {
		return nil
	}
	err := o.update(ctx, func(r *LeaseRecord) {
		r.Owners = nil
		for _, owner := range o.bySource {
			r.Owners = append(r.Owners, *owner)
		}
	})
	if err != nil {
		return fmt.Errorf("%w: write down leases: %w", ErrUnavailable, err)
	}
	return nil
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
	r.Owners = nil
	for _, owner := range o.bySource {
		r.Owners = append(r.Owners, *owner)
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
	k := keeper{b: b, renewed: map[string]time.Time{}, decided: map[string]time.Time{}}
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	for {
		changed := b.changed.wait()
		k.pass(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			clear(k.decided)
		case <-t.C:
		}
	}
}

type keeper struct {
	b       *Broker
	renewed map[string]time.Time // by session
	decided map[string]time.Time // by session; when the policy last allowed it
}

// pass looks at every record once.
func (k *keeper) pass(ctx context.Context) {
	all, err := k.b.cfg.Leases.Leases(ctx)
	if err != nil {
		k.b.cfg.Logger.WarnContext(ctx, "cannot read the leases", "error", err)
		return
	}
	known := map[string]bool{}
	for _, r := range all {
		known[r.Session] = true
		if err := k.keep(ctx, r); err != nil && ctx.Err() == nil {
			k.b.cfg.Logger.WarnContext(ctx, "cannot keep leases, trying again", "session", r.Session, "error", err)
		}
	}
	for id := range k.renewed {
		if !known[id] {
			delete(k.renewed, id)
			delete(k.decided, id)
		}
	}
}

func (k *keeper) keep(ctx context.Context, r LeaseRecord) error {
	b, now := k.b, k.b.cfg.Now()
	if r.Keeper != b.cfg.Instance && now.Before(r.KeptUntil) {
		return nil
	}
	if now.After(r.ExpiresAt) {
		b.cfg.Logger.InfoContext(ctx, "attestation ended, revoking its leases", "session", r.Session)
		return b.endLeases(ctx, r)
	}
	if now.Sub(k.decided[r.Session]) >= decideEvery {
		if err := b.leaseAllowed(ctx, r, now); errors.Is(err, ErrDenied) {
			b.cfg.Logger.InfoContext(ctx, "session not allowed any more, revoking its leases", "session", r.Session, "why", err)
			return b.endLeases(ctx, r)
		} else if err != nil {
			return err // cannot tell: neither renew nor revoke
		}
		k.decided[r.Session] = now
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
	if now.Sub(k.renewed[r.Session]) < b.cfg.OwnerTTL/3 {
		return nil
	}
	for _, owner := range r.Owners {
		src, ok := b.cfg.Sources[owner.Source].(LeasedSource)
		if !ok {
			return fmt.Errorf("source %q is not configured any more", owner.Source)
		}
		err := src.RenewOwner(ctx, owner, b.cfg.OwnerTTL)
		if errors.Is(err, ErrNoSecret) {
			// It ended in Vault. A watching session sees that its record is gone, and gets new leases.
			b.cfg.Logger.WarnContext(ctx, "leases ended in their source", "session", r.Session, "source", owner.Source)
			err = b.endLeases(ctx, r)
			b.Changed()
			return err
		} else if errors.Is(err, ErrEnding) {
			r.Owners, r.Retiring = nil, r.Owners
			_, err = b.cfg.Leases.PutLease(ctx, r)
			b.Changed()
			return err
		} else if err != nil {
			return err
		}
	}
	k.renewed[r.Session] = now
	return nil
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
