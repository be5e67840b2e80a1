package broker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

const (
	// reverify is how often the evidence of a session is held against the collateral again.
	reverify = 5 * time.Minute
	// spread is how far apart sessions act on the same change.
	spread = 2 * time.Second
	// sendTimeout is how long a guest may leave what it is sent unread.
	sendTimeout = 30 * time.Second
	// retryPush is the wait before a version that could not be fetched is tried again.
	retryPush    = 2 * time.Second
	maxRetryPush = 30 * time.Second
	// renewAtLeast is how long a credential is kept, however soon it runs out.
	renewAtLeast = time.Second
	// maxSequence is the highest sequence that a guest is believed to have seen: it leaves room for more than a session ever sends.
	maxSequence = 1 << 32
)

// Watch is Release that goes on (DESIGN §1, and the Watch rpc): it appraises,
// sends what was asked for, then each new version, until the session ends or
// ctx does. Every send was decided anew, is wrapped afresh and is recorded. It
// returns an error as Release does if the session does not start.
func (b *Broker) Watch(ctx context.Context, st Stream) error {
	if b.cfg.Sessions == nil || b.cfg.Versions == nil {
		return fmt.Errorf("%w: this broker keeps no sessions", ErrInvalid)
	}
	m, err := st.Recv()
	if err != nil {
		return err
	}
	if m.Subscribe == nil {
		return fmt.Errorf("%w: the first message must subscribe", ErrInvalid)
	}
	if b.sessions.Add(1) > int64(b.cfg.MaxSessions) {
		b.sessions.Add(-1)
		return fmt.Errorf("%w: %d sessions are watching already", ErrUnavailable, b.cfg.MaxSessions)
	}
	defer b.sessions.Add(-1)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Taken before the first decision, so that no change after it is missed.
	changed, drain := b.changed.wait(), b.draining.wait()
	w := &watch{b: b, st: st, wake: make(chan struct{}, 1), seen: map[string]string{}, renew: map[string]time.Time{}, lost: map[string]string{}}
	defer w.close(ctx)
	if err := w.subscribe(ctx, *m.Subscribe); err != nil {
		return b.denial(err, attest.PurposeWatch, m.Subscribe.Request, b.cfg.Now())
	}
	messages := make(chan WatchMessage)
	go func() {
		defer close(messages)
		for {
			m, err := st.Recv()
			if err != nil {
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	why, err := w.run(ctx, messages, changed, drain)
	if why != "" {
		_ = w.send(WatchUpdate{Ended: &why})
	}
	switch {
	case why == EndDenied && errors.Is(err, ErrDenied):
		return b.denial(err, attest.PurposeWatch, w.judged, b.cfg.Now()) // the proof of what Ended says
	case errors.Is(err, io.EOF) || err == nil, why != "":
		return nil
	default:
		return err
	}
}

// Watching is how many sessions this broker serves.
func (b *Broker) Watching() int { return int(b.sessions.Load()) }

// Drain ends all sessions; their guests go on with another broker, or with this one.
func (b *Broker) Drain() { b.draining.fire() }

// Stop is Drain, and no session starts any more.
func (b *Broker) Stop() {
	b.stopping.Store(true)
	b.Drain()
}

// watch is a session as one broker serves it, on one goroutine.
type watch struct {
	b     *Broker
	st    Stream
	wake  chan struct{} // a followed version may have changed
	stops []func()      // of the followed entries

	s      Session
	a      appraisal // the last that verified
	judged Request   // what a denial is about: a's, or one that did not get as far
	policy string    // digest that last allowed
	seen   map[string]string
	lost   map[string]string    // by resource: the version that the guest has of a lease that ended
	renew  map[string]time.Time // when what was sent, and runs out, is to be replaced; by resource
	leases *owners
	// resumed sessions may have leases of which neither this stream nor the guest knows.
	resumed bool
	ended   bool // denied or expired: nothing to go on with

	asked    []byte    // nonce of a re-attestation under way
	failures int       // of pushes, in a row
	push     time.Time // when to try failed pushes again; zero: nothing failed
	check    time.Time // when to decide again
	verify   time.Time // when to hold the evidence against the collateral again
	reason   ReattestReason
}

// subscribe appraises the first request and sends everything that the guest has not.
func (w *watch) subscribe(ctx context.Context, sub Subscription) error {
	b, now := w.b, w.b.cfg.Now()
	ev := Event{Stage: StageAdmit, Outcome: Denied}
	err := func() error {
		a, err := b.appraise(ctx, sub.Request, now, &ev)
		if err != nil {
			return err
		}
		w.a, w.judged = a, a.req
		resumed, err := w.open(ctx, sub, now)
		if err != nil {
			return err
		}
		rec := b.newRecord(a, sub.Request.Resources, now)
		rec.Session = w.s.ID
		ev.RecordID = rec.ID
		held := func(path string) bool { return resumed && sub.Held[path] != "" }
		updates, err := w.release(ctx, &rec, true, held, now, &ev)
		if err != nil {
			// Nobody can go on with what never began, nor with what is denied.
			w.ended = !resumed || errors.Is(err, ErrDenied)
			return b.refuse(ctx, rec, err, now)
		}
		started := SessionStarted{ID: w.s.ID, ExpiresAt: w.s.ExpiresAt, Resumed: resumed}
		if err := w.send(WatchUpdate{Started: &started}); err != nil {
			return err
		}
		return w.sendAll(ctx, updates)
	}()
	b.observe(ctx, ev, err, now)
	if err != nil {
		return err
	}
	w.follow()
	return nil
}

// open makes the session, or finds the one to go on with.
func (w *watch) open(ctx context.Context, sub Subscription, now time.Time) (resumed bool, err error) {
	b := w.b
	if sub.Session != "" {
		old, err := b.cfg.Sessions.GetSession(ctx, sub.Session)
		switch {
		case errors.Is(err, ErrNoSecret):
		case err != nil:
			return false, fmt.Errorf("%w: read session: %w", ErrUnavailable, err)
		// Only who has the key that the session was opened with; that it has it, the evidence says.
		case old.Recipient == thumbprint(w.a) && now.Before(old.ExpiresAt) && slices.Equal(resourcesOf(old), sub.Request.Resources):
			w.s, resumed = old, true
			// What the guest says nothing signs: whoever changed it on the way must not use up the sequence.
			w.s.Sequence = max(w.s.Sequence, min(sub.Sequence, maxSequence))
		}
	}
	if !resumed {
		w.s = Session{ID: rand.Text(), StartedAt: now.UTC()}
		for _, path := range sub.Request.Resources {
			w.s.Holdings = append(w.s.Holdings, Holding{Resource: path})
		}
	}
	// What the guest has is what it says: a version that was on its way when the stream broke is sent again.
	for i := range w.s.Holdings {
		h := &w.s.Holdings[i]
		v := sub.Held[h.Resource]
		if !resumed && w.kind(h.Resource).Leased() {
			v = "" // its lease ended with the session that it belonged to
		}
		if v != h.Version {
			h.Version, h.AcknowledgedAt = v, now.UTC()
		}
		h.Pending = ""
	}
	if w.resumed = resumed; resumed {
		w.forgetPartialLeases()
	}
	w.s.Stream = rand.Text()
	w.attested(now)
	return resumed, nil
}

// forgetPartialLeases: where the guest missed one of its leased secrets, it
// gets all of them anew, because they end together.
func (w *watch) forgetPartialLeases() {
	missing := slices.ContainsFunc(w.s.Holdings, func(h Holding) bool { return w.kind(h.Resource).Leased() && h.Version == "" })
	for i := range w.s.Holdings {
		if h := &w.s.Holdings[i]; missing && w.kind(h.Resource).Leased() {
			h.Version, h.Pending = "", ""
		}
	}
}

func (w *watch) kind(resource string) Kind {
	e, _, _ := w.b.Catalog().Lookup(resource)
	return e.Kind
}

func resourcesOf(s Session) []string {
	var out []string
	for _, h := range s.Holdings {
		out = append(out, h.Resource)
	}
	return out
}

// attested notes what fresh evidence says.
func (w *watch) attested(now time.Time) {
	c := w.a.claims
	w.s.Broker, w.s.AttestedAt, w.s.ExpiresAt = w.b.cfg.Instance, now.UTC(), now.Add(w.b.cfg.SessionTTL).UTC()
	w.s.Recipient, w.s.EvidenceType, w.s.HardwareModel, w.s.ChipID = thumbprint(w.a), c.Type, c.HardwareModel, c.ChipID
	w.s.HostData, w.s.Simulated, w.s.Measurements, w.s.Subjects = c.HostData, c.Simulated, nil, subjectsOf(c)
	for _, of := range append([]attest.Claims{c}, c.Devices...) {
		for _, id := range w.b.identities(of) {
			if s := (Subject{RevokeChip, id}); !slices.Contains(w.s.Subjects, s) {
				w.s.Subjects = append(w.s.Subjects, s)
			}
		}
	}
	for name, v := range c.Measurements {
		w.s.Measurements = append(w.s.Measurements, name+"="+v)
	}
	slices.Sort(w.s.Measurements)
	w.asked, w.reason = nil, ""
	w.verify = now.Add(reverify + mathrand.N(reverify/4))
}

// release is steps 4 to 8 for the record's resources. It returns what is new
// to the guest; if nothing is, and this is not the answer to fresh evidence,
// there is nothing to record either.
func (w *watch) release(ctx context.Context, rec *Record, fresh bool, held func(path string) bool, now time.Time, ev *Event) (out []SecretVersion, err error) {
	b := w.b
	var grants []allowed
	if fresh {
		grants, err = b.decideAndSpend(ctx, w.a, rec, now, ev)
	} else {
		ev.Stage = StageDecide
		grants, err = b.decide(ctx, w.a, rec, now)
	}
	if err != nil {
		return nil, err
	}
	w.policy, w.s.Policy = rec.PolicyDigest, rec.PolicyDigest
	// What is not released was not sent: it is still to come.
	before := slices.Clone(w.s.Holdings)
	defer func() {
		if err != nil {
			w.s.Holdings = before
		}
	}()
	var failed error
	for i, g := range grants {
		h := w.holding(g.path)
		if g.entry.Kind.Leased() {
			had := h.Version
			u, err := w.lease(ctx, g, h, rec, &rec.Resources[i], held(g.path), now, ev)
			if had = cmp.Or(had, w.lost[g.path]); had != "" && (errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNoSecret)) {
				w.later(ctx, g.path, &rec.Resources[i], h.Version, err)
				w.lost[g.path] = had
				failed = notNow(err)
				continue
			}
			if err != nil {
				return nil, err
			}
			delete(w.lost, g.path)
			if u != nil {
				out = append(out, *u)
			}
			continue
		}
		ev.Stage = StageFetch
		if again, ok := w.renew[g.path]; ok && now.Before(again) { // sent in this session, and good for a while
			rec.Resources[i].Version, rec.Resources[i].Unchanged = h.Version, true
			continue
		}
		w.seen[g.path] = w.current(g.entry)
		secret, err := w.fetch(ctx, g, rec, fresh, now)
		// What its source lost, by mistake or for a moment, a workload that runs keeps (G10): to take it away there is revoke.
		_, sent := w.renew[g.path]
		if lost := errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNoSecret); lost && (h.Version != "" || sent) {
			w.later(ctx, g.path, &rec.Resources[i], h.Version, err)
			failed = notNow(err)
			continue
		}
		if err != nil {
			return nil, err
		}
		// What the guest has already is not sent again. (A kind without versions, such as a token, is new each time.)
		// Which of two of one number a guest holds that comes from elsewhere, nobody knows: it is sent once more.
		same := secret.Edition == "" || h.Edition == secret.Edition
		h.Edition = cmp.Or(secret.Edition, h.Edition)
		if secret.Version != "" && same && (secret.Version == h.Version || secret.Version == h.Pending) {
			secret.Wipe()
			rec.Resources[i].Version, rec.Resources[i].Unchanged = secret.Version, true
			continue
		}
		u, err := w.wrap(g, h, secret, rec, &rec.Resources[i], now, ev)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	if !fresh && len(out) == 0 {
		return nil, failed
	}
	if err := b.stillAllowed(w.a.claims, rec); err != nil {
		return nil, err
	}
	ev.Stage = StageRecord
	receipt, err := b.record(ctx, w.a.claims, rec, now)
	if err != nil {
		return nil, err
	}
	for i := range out {
		out[i].Receipt = receipt
	}
	if failed == nil {
		w.failures = 0
	}
	if err := b.cfg.Sessions.PutSession(ctx, w.s); err != nil {
		rec.withhold()
		return nil, fmt.Errorf("%w: write session: %w", ErrUnavailable, err)
	}
	b.sightings.released(chipsOf(w.a.claims, b.identities), w.a.req.Peer, now)
	ev.Stage, ev.Outcome = StageReply, Released
	return out, nil
}

// later leaves a resource, which does not come just now, for another time: the
// guest has a version of it, and the others do not wait.
func (w *watch) later(ctx context.Context, path string, rr *RecordResource, held string, err error) {
	rr.Version, rr.Unchanged = held, true
	rr.Reasons = append(rr.Reasons, DecisionReason{Rule: "not_fetched", Message: Clip(err.Error(), MaxError)})
	delete(w.seen, path)
	w.pushLater()
	w.b.cfg.Logger.WarnContext(ctx, "a session keeps the version before, trying again", "session", w.s.ID, "resource", path, "error", err)
}

// notNow is why something comes later, which denies nothing: what the guest has of it, it keeps.
func notNow(err error) error {
	if errors.Is(err, ErrDenied) {
		return fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	return err
}

// pushLater sets when to try again, less often after each failure: each leaves a record.
func (w *watch) pushLater() {
	if !w.push.IsZero() {
		return
	}
	wait := min(retryPush<<min(w.failures, 8), maxRetryPush)
	w.failures++
	w.push = w.b.cfg.Now().Add(wait/2 + mathrand.N(wait))
}

// edition is that of the newest known version.
func (w *watch) edition(e CatalogEntry) string {
	if v, ok := w.b.cfg.Versions.(Editions); ok {
		return v.Edition(e)
	}
	return ""
}

// current tells the newest known version from all others, also from one of its number before it.
func (w *watch) current(e CatalogEntry) string {
	version := w.b.cfg.Versions.Current(e)
	if edition := w.edition(e); edition != "" {
		version += "\x00" + edition
	}
	return version
}

// fetch shares one read of the source between the sessions that a rotation reaches.
func (w *watch) fetch(ctx context.Context, g allowed, rec *Record, fresh bool, now time.Time) (Secret, error) {
	current := w.current(g.entry)
	if fresh || !g.entry.Kind.Watched() || current == "" {
		return w.b.fetch(ctx, w.a, g, nil, rec, now)
	}
	e := g.entry
	return w.b.shared.fetch(ctx, sharedKey{e.Source, string(e.Kind), e.Mount, e.Key, e.Field, current, e.Base64()}, func() (Secret, error) {
		return w.b.fetch(ctx, w.a, g, nil, rec, now)
	})
}

func (w *watch) wrap(g allowed, h *Holding, secret Secret, rec *Record, rr *RecordResource, now time.Time, ev *Event) (SecretVersion, error) {
	defer secret.Wipe()
	w.s.Sequence++
	wrapped, err := w.b.wrap(w.a, g, w.s.Sequence, secret, rr, rec, now, ev)
	if err != nil {
		return SecretVersion{}, err
	}
	delete(w.renew, g.path)
	if k := g.entry.Kind; !secret.Expires.IsZero() && !k.Watched() && !k.Leased() {
		w.renew[g.path] = now.Add(max(secret.Expires.Sub(now)*2/3, renewAtLeast))
	}
	u := SecretVersion{Wrapped: wrapped}
	h.Leased = g.entry.Kind.Leased()
	h.Pending, h.SentAt = secret.Version, now.UTC()
	if h.Version != "" && g.entry.Grace > 0 {
		h.RetiresAt = now.Add(g.entry.Grace).UTC()
		u.PreviousRetiresAt = h.RetiresAt
	}
	return u, nil
}

// lease fetches a leased secret, unless the guest has one that still lives.
func (w *watch) lease(ctx context.Context, g allowed, h *Holding, rec *Record, rr *RecordResource, held bool, now time.Time, ev *Event) (*SecretVersion, error) {
	b := w.b
	if held || w.resumed || w.leases != nil || h.Version != "" || h.Pending != "" {
		r, err := b.cfg.Leases.GetLease(ctx, w.s.ID)
		switch {
		case errors.Is(err, ErrNoSecret):
			w.leases = nil
		case err != nil:
			return nil, fmt.Errorf("%w: leases of the session: %w", ErrUnavailable, err)
		case w.leases == nil && !w.holdsAny(r) && len(r.Owners) > 0: // leases that the guest may never have heard of
			if err := b.endLeases(ctx, r); err != nil {
				return nil, fmt.Errorf("%w: leases of the session: %w", ErrUnavailable, err)
			}
		default:
			if w.leases == nil { // another broker made it
				w.leases = &owners{b: b, bySource: map[string]*Owner{}, known: map[string]bool{}}
			}
			w.leases.adopt(r)
			if err := w.extend(ctx); err != nil {
				return nil, err
			}
			if h.Version != "" && r.leases(g.entry.Source, g.path, h.Version) {
				rr.Version, rr.Unchanged = h.Version, true
				return nil, nil
			}
		}
		h.Version, h.Pending = "", ""
	}
	// What is leased already stays with its owner, which may be one that only another broker can use.
	if w.leases == nil {
		o, err := b.openLeases(ctx, rec, w.a, w.leasedGrants(g, rec), now)
		if err != nil {
			return nil, err
		}
		w.leases = o
		if err := w.extend(ctx); err != nil {
			return nil, err
		}
	} else if o := w.leases.bySource[g.entry.Source]; o == nil || len(o.Secret) == 0 {
		if err := w.leases.add(ctx, g.entry.Source, g.path); err != nil {
			return nil, err
		}
	}
	ev.Stage = StageFetch
	if g.entry.Kind == KindLogin && g.cap == 0 { // whoever has it can renew it himself: not beyond what the evidence is believed for
		g.cap = b.cfg.SessionTTL + b.cfg.ResumeTime
	}
	secret, err := b.fetch(ctx, w.a, g, w.leases.of(g.entry), rec, now)
	if err != nil {
		return nil, err
	}
	if secret.Version == "" {
		secret.Version = secret.Lease
	}
	secret.Expires = time.Time{} // renewed for as long as the session lives
	u, err := w.wrap(g, h, secret, rec, rr, now, ev)
	if err != nil {
		return nil, err
	}
	return &u, w.leases.save(ctx)
}

// holdsAny says whether the guest has anything that the record leases.
func (w *watch) holdsAny(r LeaseRecord) bool {
	return slices.ContainsFunc(w.s.Holdings, func(h Holding) bool {
		e, _, ok := w.b.Catalog().Lookup(h.Resource)
		return ok && e.Kind.Leased() && h.Version != "" && r.leases(e.Source, h.Resource, h.Version)
	})
}

// leasedGrants are the session's leased resources of one source, as the record granted them.
func (w *watch) leasedGrants(g allowed, rec *Record) []allowed {
	out := []allowed{g}
	for _, r := range rec.Resources {
		if e, _, ok := w.b.Catalog().Lookup(r.Path); ok && r.Path != g.path && e.Kind.Leased() {
			out = append(out, allowed{path: r.Path, entry: e, ttl: g.ttl})
		}
	}
	return out
}

// extend lets the leases live as long as the evidence is believed.
func (w *watch) extend(ctx context.Context) error {
	if w.leases == nil {
		return nil
	}
	err := w.leases.update(ctx, func(r *LeaseRecord) {
		r.ExpiresAt, r.Claims = w.s.ExpiresAt.Add(w.b.cfg.ResumeTime), w.a.claims
		r.Keeper, r.KeptUntil = w.b.cfg.Instance, w.b.cfg.Now().Add(keepFor)
	})
	if errors.Is(err, ErrNoSecret) {
		w.lostLeases()
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: extend leases: %w", ErrUnavailable, err)
	}
	return nil
}

func (w *watch) holding(path string) *Holding {
	i := slices.IndexFunc(w.s.Holdings, func(h Holding) bool { return h.Resource == path })
	return &w.s.Holdings[i]
}

// follow asks to be woken when a version changes, and has the session look once
// more: what changed before we followed it woke nobody.
func (w *watch) follow() {
	defer func() {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}()
	for _, h := range w.s.Holdings {
		if e, _, ok := w.b.Catalog().Lookup(h.Resource); ok && e.Kind.Watched() && e.PinVersion == 0 {
			w.stops = append(w.stops, w.b.cfg.Versions.Follow(e, w.wake))
		}
	}
}

func (w *watch) unfollow() {
	for _, stop := range w.stops {
		stop()
	}
	w.stops = nil
}

// run serves the session until it ends; why says how to put it to the guest, "" if it is gone.
func (w *watch) run(ctx context.Context, messages <-chan WatchMessage, changed, drain <-chan struct{}) (why EndReason, err error) {
	if w.b.stopping.Load() {
		return EndMoved, nil
	}
	if err := w.revoked(); err != nil {
		w.ended = true
		return EndDenied, err
	}
	for {
		if why, err := w.due(ctx); why != "" || err != nil {
			return why, err
		}
		timer := time.NewTimer(max(w.next().Sub(w.b.cfg.Now()), time.Millisecond))
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-drain:
			why = EndMoved
		case m, ok := <-messages:
			if !ok {
				err = io.EOF
			} else {
				why, err = w.message(ctx, m)
			}
		case <-w.wake:
			err = w.pushNew(ctx)
		case <-changed:
			changed = w.b.changed.wait()
			// What is revoked ends now; what else changed is looked at a little later, so that not all do at once.
			err = w.revoked()
			if next := w.b.cfg.Now().Add(mathrand.N(spread)); w.check.IsZero() || next.Before(w.check) {
				w.check = next
			}
			if w.a.verifiers != w.b.verifiers.Load() {
				w.verify = w.check
			}
		case <-timer.C:
		}
		timer.Stop()
		switch {
		case errors.Is(err, ErrDenied), errors.Is(err, ErrInvalid):
			w.ended = true
			return EndDenied, err
		case errors.Is(err, ErrChallenge): // too late with its evidence: asked once more, until the session expires
			w.asked, err = nil, nil
		case errors.Is(err, ErrUnavailable):
			// Nothing was released; the version is not lost, it is tried again.
			w.b.cfg.Logger.WarnContext(ctx, "session not served just now, trying again", "session", w.s.ID, "error", err)
			w.pushLater()
			err = nil
		}
		if why != "" || err != nil {
			return why, err
		}
	}
}

// next is when something is due.
func (w *watch) next() time.Time {
	next := w.s.ExpiresAt
	times := []time.Time{w.renewAt(), w.push, w.check, w.verify}
	if w.push.IsZero() {
		times = slices.AppendSeq(times, maps.Values(w.renew))
	}
	for _, t := range times {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	return next
}

// renewAt is when to ask for new evidence, well before the old is not believed any more.
func (w *watch) renewAt() time.Time {
	if w.asked != nil {
		return time.Time{}
	}
	return w.s.AttestedAt.Add(w.s.ExpiresAt.Sub(w.s.AttestedAt) * 2 / 3)
}

// due does what its time has come for.
func (w *watch) due(ctx context.Context) (EndReason, error) {
	now := w.b.cfg.Now()
	past := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	if past(w.s.ExpiresAt) {
		w.ended = true
		return EndExpired, nil
	}
	if past(w.verify) {
		w.verify = now.Add(reverify + mathrand.N(reverify/4))
		if err := w.reverify(ctx, now); errors.Is(err, ErrDenied) {
			w.ended = true
			return EndDenied, err
		}
	}
	if past(w.check) {
		w.check = time.Time{}
		if err := w.recheck(ctx, now); errors.Is(err, ErrDenied) {
			w.ended = true
			return EndDenied, err
		} else if err != nil {
			w.check = now.Add(spread)
		}
	}
	runsOut := slices.ContainsFunc(slices.Collect(maps.Values(w.renew)), past)
	if past(w.push) || runsOut && w.push.IsZero() {
		w.push = time.Time{}
		if err := w.pushAll(ctx); errors.Is(err, ErrDenied) {
			w.ended = true
			return EndDenied, err
		} else if err != nil {
			w.pushLater()
		}
	}
	if past(w.renewAt()) && w.reason == "" {
		w.reason = ReattestExpires
	}
	if w.reason != "" && w.asked == nil {
		return "", w.ask(now)
	}
	return "", nil
}

// ask asks for fresh evidence.
func (w *watch) ask(now time.Time) error {
	nonce, _, err := w.b.cfg.Nonces.Issue(now)
	if err != nil {
		return nil // tried again: reason stays
	}
	w.asked = nonce
	return w.send(WatchUpdate{Reattest: &Reattest{Nonce: nonce, Deadline: w.s.ExpiresAt, Reason: w.reason}})
}

func (w *watch) message(ctx context.Context, m WatchMessage) (EndReason, error) {
	switch {
	case m.Acknowledge != nil:
		return "", w.acknowledge(ctx, *m.Acknowledge)
	case m.Subscribe != nil:
		return "", w.reattested(ctx, *m.Subscribe)
	}
	return "", fmt.Errorf("%w: empty message", ErrInvalid)
}

func (w *watch) acknowledge(ctx context.Context, a Acknowledgement) error {
	i := slices.IndexFunc(w.s.Holdings, func(h Holding) bool { return h.Resource == a.Resource })
	if i < 0 {
		return fmt.Errorf("%w: acknowledges %q, which it does not watch", ErrInvalid, a.Resource)
	}
	h := &w.s.Holdings[i]
	// Of an older version, overtaken meanwhile, or of nothing at all: it changes nothing, and costs nothing.
	if a.Version == "" || a.Version != h.Pending {
		return nil
	}
	h.Version, h.Pending, h.AcknowledgedAt, h.RetiresAt = a.Version, "", w.b.cfg.Now().UTC(), time.Time{}
	if err := w.b.cfg.Sessions.PutSession(ctx, w.s); err != nil {
		return fmt.Errorf("%w: write session: %w", ErrUnavailable, err)
	}
	return nil
}

// reattested takes fresh evidence within the session. Key and resources stay.
func (w *watch) reattested(ctx context.Context, sub Subscription) (err error) {
	b, now := w.b, w.b.cfg.Now()
	w.judged = sub.Request
	defer func() {
		if !errors.Is(err, ErrDenied) {
			w.judged = w.a.req
		}
	}()
	ev := Event{Stage: StageAdmit, Outcome: Denied}
	var updates []SecretVersion
	err = func() error {
		a, err := b.appraise(ctx, sub.Request, now, &ev)
		switch {
		case err != nil:
			return err
		case thumbprint(a) != w.s.Recipient:
			return fmt.Errorf("%w: public_key: another one than the session's", ErrInvalid)
		case !slices.Equal(sub.Request.Resources, resourcesOf(w.s)):
			return fmt.Errorf("%w: resources: others than the session's", ErrInvalid)
		}
		w.a = a
		rec := b.newRecord(a, sub.Request.Resources, now)
		rec.Session = w.s.ID
		ev.RecordID = rec.ID
		w.attested(now)
		updates, err = w.release(ctx, &rec, true, func(string) bool { return true }, now, &ev)
		if err != nil {
			return b.refuse(ctx, rec, err, now)
		}
		return nil
	}()
	b.observe(ctx, ev, err, now)
	if err != nil {
		return err
	}
	if err := w.send(WatchUpdate{Started: &SessionStarted{ID: w.s.ID, ExpiresAt: w.s.ExpiresAt, Resumed: true}}); err != nil {
		return err
	}
	return w.sendAll(ctx, updates)
}

// revoked ends what an operator revoked, at once.
func (w *watch) revoked() error {
	rec := Record{Session: w.s.ID, PolicyDigest: w.policy}
	for _, h := range w.s.Holdings { // a revoked version is not taken back; the next one replaces it
		rec.Resources = append(rec.Resources, RecordResource{Path: h.Resource, Unchanged: true})
	}
	err := w.b.stillAllowed(w.a.claims, &rec)
	if errors.Is(err, ErrDenied) {
		now := w.b.cfg.Now()
		full := w.b.newRecord(w.a, resourcesOf(w.s), now)
		full.Session, full.Outcome, full.Error = w.s.ID, Denied, "session ended: "+err.Error()
		if _, lerr := w.b.cfg.Log.Append(context.Background(), full); lerr != nil {
			w.b.cfg.Logger.Error("cannot record the end of a session", "session", w.s.ID, "error", lerr)
		}
		return recorded{full.ID, err}
	}
	return nil // an old view of revocations releases nothing and ends nothing; recheck follows
}

// recheck decides again, because something changed that decides.
func (w *watch) recheck(ctx context.Context, now time.Time) error {
	rec := w.b.newRecord(w.a, resourcesOf(w.s), now)
	rec.Session = w.s.ID
	_, err := w.b.decide(ctx, w.a, &rec, now)
	if errors.Is(err, ErrDenied) {
		return w.b.refuse(ctx, rec, err, now)
	}
	if err != nil {
		return err
	}
	if w.policy != rec.PolicyDigest {
		w.policy, w.reason = rec.PolicyDigest, ReattestPolicy
	}
	w.unfollow() // the catalog may point elsewhere now
	w.follow()
	if err := w.leasesLive(ctx); err != nil {
		return err
	}
	return w.pushNew(ctx)
}

// leasesLive notices leases that ended in their source: the guest gets new ones.
func (w *watch) leasesLive(ctx context.Context) error {
	if w.leases == nil {
		return nil
	}
	r, err := w.b.cfg.Leases.GetLease(ctx, w.s.ID)
	switch {
	case errors.Is(err, ErrNoSecret):
		w.lostLeases()
	case err != nil:
		return err
	default:
		w.leases.adopt(r)
		for i := range w.s.Holdings {
			h := &w.s.Holdings[i]
			e, _, ok := w.b.Catalog().Lookup(h.Resource)
			if has := cmp.Or(h.Pending, h.Version); ok && e.Kind.Leased() && has != "" && !r.leases(e.Source, h.Resource, has) {
				w.lose(h)
			}
		}
	}
	return nil
}

// lostLeases has the guest get new ones.
func (w *watch) lostLeases() {
	w.leases = nil
	for i := range w.s.Holdings {
		if h := &w.s.Holdings[i]; w.kind(h.Resource).Leased() {
			w.lose(h)
		}
	}
}

// lose has the guest get another in place of a lease that ended, or soon will.
func (w *watch) lose(h *Holding) {
	if had := cmp.Or(h.Pending, h.Version); had != "" {
		w.lost[h.Resource] = had
	}
	h.Version, h.Pending = "", ""
	w.push = w.b.cfg.Now()
}

// reverify holds the session's evidence against the collateral of today.
func (w *watch) reverify(ctx context.Context, now time.Time) error {
	vs := w.b.verifiers.Load()
	claims, err := w.b.verifyAll(ctx, vs, w.a.parts, now)
	switch {
	case err != nil && (ours(attest.ReasonOf(err)) || ctx.Err() != nil):
		return err // for want of collateral: the evidence was believed, and runs out by itself
	case attest.ReasonOf(err) == attest.ReasonValidity:
		// Good for minutes only, as that of Nitro or another verifier's token, or a certificate ran out:
		// that it was fresh was seen when it came. It says nothing against the guest, which is to bring new one.
		w.reason = ReattestExpires
		return err
	case err != nil:
		rec := w.b.newRecord(w.a, resourcesOf(w.s), now)
		rec.Session = w.s.ID
		return w.b.refuse(ctx, rec, fmt.Errorf("%w: verify evidence again: %w", ErrDenied, err), now)
	}
	if claims.TCB.Status != w.a.claims.TCB.Status || !slices.Equal(claims.TCB.Advisories, w.a.claims.TCB.Advisories) ||
		!reflect.DeepEqual(claims.TCB.Date, w.a.claims.TCB.Date) {
		w.reason, w.check = ReattestCollateral, now
	}
	w.a.claims, w.a.verifiers = claims, vs
	return nil
}

// pushNew sends the resources whose version is not the one last looked at.
func (w *watch) pushNew(ctx context.Context) error {
	var paths []string
	for _, h := range w.s.Holdings {
		e, _, ok := w.b.Catalog().Lookup(h.Resource)
		if !ok || !e.Kind.Watched() || e.PinVersion != 0 {
			continue
		}
		if cur := w.current(e); cur != "" && cur != w.seen[h.Resource] {
			paths = append(paths, h.Resource)
		}
	}
	return w.pushPaths(ctx, paths)
}

// pushAll looks at everything that can have a new version, after a failure.
func (w *watch) pushAll(ctx context.Context) error {
	var paths []string
	now := w.b.cfg.Now()
	for _, h := range w.s.Holdings {
		at, expires := w.renew[h.Resource]
		if e, _, ok := w.b.Catalog().Lookup(h.Resource); ok && (e.Kind.Watched() || e.Kind.Leased() && (h.Version == "" && h.Pending == "" || w.lost[h.Resource] != "") || expires && !now.Before(at)) {
			paths = append(paths, h.Resource)
		}
	}
	return w.pushPaths(ctx, paths)
}

func (w *watch) pushPaths(ctx context.Context, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	b, now := w.b, w.b.cfg.Now()
	ev := Event{Stage: StageDecide, Outcome: Denied, Type: w.a.claims.Type}
	rec := b.newRecord(w.a, paths, now)
	rec.Session = w.s.ID
	ev.RecordID = rec.ID
	updates, err := w.release(ctx, &rec, false, func(string) bool { return false }, now, &ev)
	if err != nil {
		for _, p := range paths { // looked at, but not in vain
			delete(w.seen, p)
		}
		err = b.refuse(ctx, rec, err, now)
	}
	if err != nil || len(updates) > 0 {
		b.observe(ctx, ev, err, now)
	}
	if err != nil {
		return err
	}
	return w.sendAll(ctx, updates)
}

func (w *watch) sendAll(_ context.Context, updates []SecretVersion) error {
	for i := range updates {
		if err := w.send(WatchUpdate{Secret: &updates[i]}); err != nil {
			return err
		}
	}
	return nil
}

// send gives up on a guest that does not read: Send goes on until Watch has returned.
func (w *watch) send(u WatchUpdate) error {
	sent := make(chan error, 1)
	go func() { sent <- w.st.Send(u) }()
	slow := time.NewTimer(sendTimeout)
	defer slow.Stop()
	select {
	case err := <-sent:
		return err
	case <-slow.C:
		return fmt.Errorf("the guest has read nothing for %s", sendTimeout)
	}
}

// close leaves the session to whoever goes on with it, or ends it.
func (w *watch) close(ctx context.Context) {
	w.unfollow()
	if w.s.ID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	log := func(what string, err error) {
		if err != nil {
			w.b.cfg.Logger.WarnContext(ctx, what, "session", w.s.ID, "error", err)
		}
	}
	if w.ended {
		if w.leases != nil {
			log("cannot end leases now, trying again later", w.b.endLeases(ctx, w.leases.rec))
		}
		log("cannot forget session", w.b.cfg.Sessions.DeleteSession(ctx, w.s.ID))
		return
	}
	// Another stream may have gone on with the session already.
	if now, err := w.b.cfg.Sessions.GetSession(ctx, w.s.ID); err == nil && now.Stream != w.s.Stream {
		return
	}
	// The guest has a while to come back, here or elsewhere.
	if end := w.b.cfg.Now().Add(w.b.cfg.ResumeTime).UTC(); end.Before(w.s.ExpiresAt) {
		w.s.ExpiresAt = end
	}
	log("cannot write session", w.b.cfg.Sessions.PutSession(ctx, w.s))
	if w.leases != nil {
		log("cannot shorten leases", w.leases.update(ctx, func(r *LeaseRecord) { r.ExpiresAt = w.s.ExpiresAt }))
	}
}
