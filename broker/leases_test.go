package broker_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// fakeLeases is the brokers' shared memory of leases, with its revisions and faults.
type fakeLeases struct {
	mu         sync.Mutex
	records    map[string]broker.LeaseRecord
	fault      error                               // of every write
	tries      int                                 // writes, also in vain
	unlisted   error                               // of every read of all
	before     func(map[string]broker.LeaseRecord) // runs once before a write, as another broker would
	puts       int
	unreadable error // of every read of one
	faultAt    int   // the write, counted from 1, that fails
}

func copyRecord(r broker.LeaseRecord) broker.LeaseRecord {
	owners := func(os []broker.Owner) (out []broker.Owner) {
		for _, o := range os {
			o.Secret, o.Leases = slices.Clone(o.Secret), slices.Clone(o.Leases)
			out = append(out, o)
		}
		return out
	}
	r.Owners, r.Retiring, r.Resources = owners(r.Owners), owners(r.Retiring), slices.Clone(r.Resources)
	return r
}

func (f *fakeLeases) PutLease(_ context.Context, r broker.LeaseRecord) (broker.LeaseRecord, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.before != nil {
		f.before(f.records)
		f.before = nil
	}
	if f.fault != nil {
		return r, f.fault
	}
	if f.tries == f.faultAt {
		return r, errors.New("no leader")
	}
	if f.records[r.Session].Revision != r.Revision {
		return r, broker.ErrChanged
	}
	f.puts++
	r = copyRecord(r)
	r.Revision++
	f.records[r.Session] = r
	return copyRecord(r), nil
}

func (f *fakeLeases) GetLease(_ context.Context, session string) (broker.LeaseRecord, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unreadable != nil {
		return broker.LeaseRecord{}, f.unreadable
	}
	r, ok := f.records[session]
	if !ok {
		return r, broker.ErrNoSecret
	}
	return copyRecord(r), nil
}

func (f *fakeLeases) DeleteLease(_ context.Context, session string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.records, session)
	return nil
}

func (f *fakeLeases) Leases(context.Context) (out []broker.LeaseRecord, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unlisted != nil {
		return nil, f.unlisted
	}
	for _, r := range f.records {
		out = append(out, copyRecord(r))
	}
	return out, nil
}

// fail changes what goes wrong from now on.
func (f *fakeLeases) fail(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeLeases) all() []broker.LeaseRecord {
	out, _ := f.Leases(context.Background())
	return out
}

func (f *fakeLeases) written() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.puts
}

// fakeLeased is a source of leased secrets, as Vault is one.
type fakeLeased struct {
	name string

	mu       sync.Mutex
	made     int
	live     map[string]bool // owners
	ttls     []time.Duration // of renewals
	sessions []string        // sessions that owners were made for
	fetches  int
	granted  []broker.Granted
	during   func()           // runs while a secret is made
	renewed  []string         // leases
	strict   bool             // logins end when they are to, as Vault's do
	dead     map[string]error // why leases of a role cannot be renewed, nor made
	fault    struct{ owner, fetch, renew, revoke error }
}

// fail changes what goes wrong from now on.
func (f *fakeLeased) fail(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeLeased) NewOwner(_ context.Context, session string, ttl time.Duration) (broker.Owner, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.owner != nil {
		return broker.Owner{}, f.fault.owner
	}
	f.made++
	id := fmt.Sprintf("%s-%d", f.name, f.made)
	f.live[id] = true
	f.sessions, f.ttls = append(f.sessions, session), append(f.ttls, ttl)
	return broker.Owner{ID: id, Secret: []byte("token of " + id)}, nil
}

func (f *fakeLeased) RenewOwner(_ context.Context, o broker.Owner, ttl time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ttls = append(f.ttls, ttl)
	if f.fault.renew != nil {
		return f.fault.renew
	}
	if !f.live[o.ID] || string(o.Secret) != "token of "+o.ID {
		return broker.ErrNoSecret
	}
	failed := map[string]error{}
	for _, id := range o.Leases {
		f.renewed = append(f.renewed, id)
		for role, err := range f.dead {
			if strings.HasSuffix(o.Of[id].Resource, "/"+role) {
				failed[id] = err
			}
		}
	}
	if len(failed) > 0 {
		return &broker.RenewError{Leases: failed, All: len(failed) == len(o.Leases)}
	}
	return nil
}

// renewals of one lease.
func (f *fakeLeased) renewalsOf(id string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.renewed {
		if r == id {
			n++
		}
	}
	return n
}

func (f *fakeLeased) RevokeOwner(_ context.Context, o broker.Owner) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.revoke != nil {
		return f.fault.revoke
	}
	delete(f.live, o.ID)
	return nil
}

func (f *fakeLeased) Fetch(_ context.Context, g *broker.Grant) (broker.Secret, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, err := g.Redeem()
	if err != nil {
		return broker.Secret{}, err
	}
	f.fetches++
	f.granted = append(f.granted, w)
	if f.during != nil {
		f.during()
	}
	if f.fault.fetch != nil {
		return broker.Secret{}, f.fault.fetch
	}
	if !w.Entry.Kind.Leased() {
		return broker.Secret{Value: []byte("value"), Version: "3"}, nil
	}
	if f.dead[w.Entry.Key] != nil {
		return broker.Secret{}, errors.New("the database does not answer")
	}
	if w.Owner == nil || w.Owner.Source != f.name || !f.live[w.Owner.ID] {
		return broker.Secret{}, errors.New("a lease without a living owner")
	}
	s := broker.Secret{Value: []byte("user"), Lease: fmt.Sprintf("%s-lease-%d", f.name, f.fetches)}
	if w.Entry.Kind == broker.KindLogin && f.strict {
		s.Expires = time.Now().Add(w.Cap)
	}
	return s, nil
}

func (f *fakeLeased) owners() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.live))
}

func (f *fakeLeased) renewals() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ttls) - f.made
}

// switchPolicy answers as the test says.
type switchPolicy struct {
	mu  sync.Mutex
	err error
	no  bool
	ttl time.Duration
	in  []broker.PolicyInput

	digest string // of the bundle; anyPolicy if empty
}

func (p *switchPolicy) setDigest(d string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.digest = d
}

func (p *switchPolicy) set(no bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.no, p.err = no, err
}

func (p *switchPolicy) Decide(_ context.Context, in broker.PolicyInput) (broker.Decision, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.in = append(p.in, in)
	return broker.Decision{Allow: !p.no, Package: "any", PolicyDigest: cmp.Or(p.digest, anyPolicy), Obligations: broker.Obligations{TTL: p.ttl}}, p.err
}

type leaseWorld struct {
	*world
	book      *fakeLeases
	sessions  *fakeSessions
	vault     *fakeLeased
	other     *fakeLeased
	decisions *switchPolicy
}

func newLeaseWorld(t *testing.T, change ...func(*broker.Config)) *leaseWorld {
	t.Helper()
	l := &leaseWorld{
		book: &fakeLeases{records: map[string]broker.LeaseRecord{}}, vault: &fakeLeased{name: "vault", live: map[string]bool{}},
		other: &fakeLeased{name: "other", live: map[string]bool{}}, decisions: &switchPolicy{}, sessions: &fakeSessions{},
	}
	l.world = newWorld(t, append([]func(*broker.Config){func(c *broker.Config) {
		c.Verifiers = []attest.Verifier{stated{attest.TypeSNP, map[byte]attest.Claims{'c': theCPU}}}
		c.Policy, c.Leases, c.Sessions, c.Versions = l.decisions, l.book, l.sessions, fakeVersions{}
		c.Sources["vault"], c.Sources["other"], c.Instance, c.Now, c.Observe = l.vault, l.other, "here", time.Now, nil
	}}, change...)...)
	l.restart(t)
	return l
}

// restart is a new broker of the same configuration.
func (l *leaseWorld) restart(t *testing.T) {
	t.Helper()
	var err error
	if l.Broker, err = broker.New(l.cfg); err != nil {
		t.Fatal(err)
	}
	c, err := broker.NewCatalog([]broker.CatalogEntry{
		{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "any"},
		{Pattern: "db/{name}", Source: "vault", Kind: broker.KindDatabase, Key: "{name}", Policy: "any", TTL: 5 * time.Minute},
		{Pattern: "brief/{name}", Source: "vault", Kind: broker.KindDatabase, Key: "{name}", Policy: "any", TTL: time.Minute},
		{Pattern: "static/{name}", Source: "vault", Key: "{name}", Policy: "any"},
		{Pattern: "logins/{name}", Source: "other", Kind: broker.KindLogin, Key: "{name}", Policy: "any"},
		{Pattern: "plain/{name}", Source: "local2", Kind: broker.KindDatabase, Key: "{name}", Policy: "any"},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.SetCatalog(c)
}

// guest asks for resources with good evidence.
func (l *leaseWorld) guest(t *testing.T, resources ...string) *attempt {
	t.Helper()
	a := l.attempt(t)
	a.req.Resources, a.bind.Resources = resources, resources
	return l.fresh(t, a)
}

// fresh is the same guest with new evidence.
func (l *leaseWorld) fresh(t *testing.T, a *attempt) *attempt {
	t.Helper()
	b := *a
	nonce, _, err := l.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	b.req.Nonce, b.bind.Nonce = nonce, nonce
	d := b.bind.Digest64()
	b.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: append([]byte{'c'}, d[:]...)}
	return &b
}

// TestLeasedRelease: what is leased belongs to an owner that is written down before it has anything.
func TestLeasedRelease(t *testing.T) {
	l := newLeaseWorld(t)
	start := time.Now()
	resp, err := l.send(t, l.guest(t, "db/orders", "disks/vm-1", "brief/users", "logins/app"))
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Secrets) != 4 || len(l.book.all()) != 1 {
		t.Fatalf("%d secrets, %d records", len(resp.Secrets), len(l.book.all()))
	}
	r, rec := l.book.all()[0], l.records()[0]
	slices.SortFunc(r.Owners, func(a, b broker.Owner) int { return strings.Compare(b.ID, a.ID) })
	if len(r.Owners) != 2 || r.Owners[0].ID != "vault-1" || r.Owners[0].Source != "vault" || r.Owners[1].ID != "other-1" || r.Owners[1].Source != "other" ||
		!slices.Equal(r.Owners[0].Leases, []string{"vault-lease-1", "vault-lease-2"}) || !slices.Equal(r.Owners[1].Leases, []string{"other-lease-1"}) {
		t.Errorf("owners %+v", r.Owners)
	}
	if r.Session != rec.ID || rec.Session != rec.ID || l.vault.sessions[0] != rec.ID || l.vault.ttls[0] != 2*time.Minute {
		t.Errorf("session %q, of the record %q; owner of %q for %s", r.Session, rec.ID, l.vault.sessions, l.vault.ttls)
	}
	if end := r.ExpiresAt.Sub(start); end < 55*time.Second || end > 65*time.Second {
		t.Errorf("ends after %s, the shortest of all is a minute", end)
	}
	if !slices.Equal(r.Resources, []string{"db/orders", "brief/users", "logins/app"}) || r.Keeper != "here" || r.KeptUntil.Sub(start) < 5*time.Second ||
		r.KeyAlgorithm == "" || len(r.PublicKey) == 0 || r.Claims.ChipID != theCPU.ChipID {
		t.Errorf("record %+v", r)
	}
}

// TestOwnersOfLeasesOnly: a secret that is not leased is not read with the owner of those that are, of the same source.
func TestOwnersOfLeasesOnly(t *testing.T) {
	l := newLeaseWorld(t)
	if _, err := l.send(t, l.guest(t, "db/orders", "static/x")); err != nil {
		t.Fatal(err)
	}
	if g := l.vault.granted; len(g) != 2 || g[0].Owner == nil || g[1].Owner != nil {
		t.Errorf("granted %+v", g)
	}
}

// TestLeaseFailures: what comes to nothing leaves no owner behind.
func TestLeaseFailures(t *testing.T) {
	down := errors.New("vault is sealed")
	for name, tt := range map[string]struct {
		fail    func(*leaseWorld)
		want    error
		says    string
		fetches int // by then
	}{
		"first owner":   {func(l *leaseWorld) { l.vault.fault.owner = down }, broker.ErrUnavailable, "lease owner for db/orders: vault is sealed", 0},
		"second owner":  {func(l *leaseWorld) { l.other.fault.owner = down }, broker.ErrUnavailable, "lease owner for logins/app: vault is sealed", 0},
		"first secret":  {func(l *leaseWorld) { l.vault.fault.fetch = down }, broker.ErrUnavailable, "vault is sealed", 1},
		"second secret": {func(l *leaseWorld) { l.other.fault.fetch = down }, broker.ErrUnavailable, "vault is sealed", 2},
		"no such role":  {func(l *leaseWorld) { l.other.fault.fetch = broker.ErrNoSecret }, broker.ErrDenied, "", 2},
		"shared memory": {func(l *leaseWorld) { l.book.fault = errors.New("no leader") }, broker.ErrUnavailable, "write down leases: no leader", 0},
		"log":           {func(l *leaseWorld) { l.log.fault = errors.New("disk full") }, broker.ErrUnavailable, "disk full", 2},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeaseWorld(t)
			tt.fail(l)
			resp, err := l.send(t, l.guest(t, "db/orders", "logins/app"))
			if !errors.Is(err, tt.want) || len(resp.Secrets) > 0 {
				t.Errorf("got %d secrets, %v", len(resp.Secrets), err)
			}
			if n := l.vault.fetches + l.other.fetches; !strings.Contains(err.Error(), tt.says) || n != tt.fetches {
				t.Errorf("%v, after %d reads", err, n)
			}
			if live := append(l.vault.owners(), l.other.owners()...); len(live) > 0 || len(l.book.all()) > 0 {
				t.Errorf("left behind: %v, %+v", live, l.book.all())
			}
		})
	}
	t.Run("cannot be revoked now", func(t *testing.T) {
		l := newLeaseWorld(t)
		l.other.fault.fetch, l.vault.fault.revoke = down, down
		if _, err := l.send(t, l.guest(t, "db/orders", "logins/app")); !errors.Is(err, broker.ErrUnavailable) {
			t.Error(err)
		}
		if r := l.book.all(); len(r) != 1 || len(l.other.owners()) != 0 {
			t.Errorf("nobody will end %v: %+v", l.vault.owners(), r)
		}
	})
}

// TestLeaseRecordChanges: a record that another broker writes meanwhile is written again, a few times, and one that is gone is not.
func TestLeaseRecordChanges(t *testing.T) {
	t.Run("once", func(t *testing.T) {
		l := newLeaseWorld(t)
		l.vault.during = func() {
			l.book.before = func(rs map[string]broker.LeaseRecord) {
				for id, r := range rs {
					r.Keeper, r.Revision = "elsewhere", r.Revision+1
					rs[id] = r
				}
			}
		}
		if _, err := l.send(t, l.guest(t, "db/orders")); err != nil {
			t.Fatal(err)
		}
		if r := l.book.all()[0]; r.Keeper != "elsewhere" || len(r.Owners) != 1 || len(r.Owners[0].Leases) != 1 {
			t.Errorf("record %+v", r)
		}
	})
	t.Run("gone", func(t *testing.T) {
		l := newLeaseWorld(t)
		l.vault.during = func() { l.book.before = func(rs map[string]broker.LeaseRecord) { clear(rs) } }
		if _, err := l.send(t, l.guest(t, "db/orders")); !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, broker.ErrNoSecret) {
			t.Error(err)
		}
		if len(l.vault.owners()) > 0 {
			t.Errorf("left behind: %v", l.vault.owners())
		}
	})
	t.Run("without end", func(t *testing.T) {
		l := newLeaseWorld(t)
		l.vault.during = func() { l.book.fault, l.book.tries = broker.ErrChanged, 0 }
		if _, err := l.send(t, l.guest(t, "db/orders")); !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, broker.ErrChanged) {
			t.Error(err)
		}
		if l.book.tries != 5 {
			t.Errorf("tried %d times", l.book.tries)
		}
	})
}

// TestNotLeasable: a leased kind needs a source that leases, and a memory for it.
func TestNotLeasable(t *testing.T) {
	for name, tt := range map[string]struct {
		resource, rule string
		change         func(*broker.Config)
	}{
		"plain source":   {"plain/x", "not_leasable", func(c *broker.Config) { c.Sources["local2"] = c.Sources["local"] }},
		"no memory":      {"db/x", "not_leasable", func(c *broker.Config) { c.Leases = nil }},
		"unknown source": {"plain/x", "unknown_source", func(*broker.Config) {}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeaseWorld(t, tt.change)
			if _, err := l.send(t, l.guest(t, tt.resource)); !errors.Is(err, broker.ErrDenied) {
				t.Fatal(err)
			}
			if rs := l.records()[0].Resources[0].Reasons; len(rs) != 1 || rs[0].Rule != tt.rule {
				t.Errorf("reasons %+v", rs)
			}
		})
	}
}

// kept runs a test in a bubble of its own time, with a keeper and one release of db/orders.
func kept(t *testing.T, test func(t *testing.T, l *leaseWorld), change ...func(*broker.Config)) {
	t.Helper()
	l := newLeaseWorld(t, change...)
	synctest.Test(t, func(t *testing.T) {
		l.restart(t)
		if _, err := l.send(t, l.guest(t, "db/orders")); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.KeepLeases(ctx) }()
		synctest.Wait()
		test(t, l)
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestKeeper: leases are renewed for as long as the attestation that earned them is believed and allowed.
func TestKeeper(t *testing.T) {
	gone := func(t *testing.T, l *leaseWorld) {
		t.Helper()
		if len(l.vault.owners()) > 0 || len(l.book.all()) > 0 {
			t.Errorf("still there: %v, %+v", l.vault.owners(), l.book.all())
		}
	}
	there := func(t *testing.T, l *leaseWorld) {
		t.Helper()
		if len(l.vault.owners()) != 1 || len(l.book.all()) != 1 {
			t.Errorf("owners %v, records %+v", l.vault.owners(), l.book.all())
		}
	}
	t.Run("renews, and ends in time", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			if n := l.vault.renewals(); n != 1 {
				t.Errorf("renewed %d times at once", n)
			}
			wait(100 * time.Second)
			if n := l.vault.renewals(); n != 3 { // 0, 42 s, 84 s: every third of the owner's time
				t.Errorf("renewed %d times in 100 s", n)
			}
			for _, ttl := range l.vault.ttls {
				if ttl != 2*time.Minute {
					t.Errorf("renewed for %s", ttl)
				}
			}
			r := l.book.all()[0]
			if left := time.Until(r.KeptUntil); r.Keeper != "here" || left < 3*time.Second || left > 10*time.Second {
				t.Errorf("kept by %s for another %s", r.Keeper, left)
			}
			if l.book.written() > 21 { // every other pass
				t.Errorf("written %d times", l.book.puts)
			}
			wait(200 * time.Second) // the fifth minute is over: not yet past it
			there(t, l)
			wait(3 * time.Second)
			gone(t, l)
		})
	})
	t.Run("renews at a third of the owner's time", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			wait(29 * time.Second)
			if n := l.vault.renewals(); n != 1 {
				t.Errorf("renewed %d times before", n)
			}
			wait(time.Second)
			if n := l.vault.renewals(); n != 2 {
				t.Errorf("renewed %d times", n)
			}
		}, func(c *broker.Config) { c.OwnerTTL = 90 * time.Second })
	})
	t.Run("writes no sooner than it must", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			r := l.book.all()[0]
			r.KeptUntil = time.Now().Add(9 * time.Second)
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			n := l.book.written()
			wait(3 * time.Second) // its word holds for two more looks
			if l.book.written() != n {
				t.Error("written too soon")
			}
			wait(3 * time.Second)
			if l.book.written() != n+1 {
				t.Error("not written in time")
			}
		})
	})
	t.Run("memory cannot be written", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.book.fail(func() { l.book.fault = errors.New("no leader") })
			wait(90 * time.Second)
			there(t, l)
			if n := l.vault.renewals(); n != 1 {
				t.Errorf("renewed %d times what another may keep by now", n)
			}
			l.book.fail(func() { l.book.fault = nil })
			wait(3 * time.Second)
			if n := l.vault.renewals(); n != 2 {
				t.Errorf("renewed %d times", n)
			}
		})
	})
	t.Run("memory cannot be read", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.book.fail(func() { l.book.unlisted = errors.New("no leader") })
			wait(10 * time.Second)
			l.book.fail(func() { l.book.unlisted = nil })
			wait(10 * time.Second)
			if n := l.vault.renewals(); n != 1 { // it has not forgotten when it did so
				t.Errorf("renewed %d times", n)
			}
		})
	})
	t.Run("denied by and by", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.decisions.set(true, nil)
			wait(29 * time.Second)
			there(t, l)
			wait(time.Second)
			gone(t, l)
			last := l.records()[1]
			if last.Outcome != broker.Denied || !strings.HasPrefix(last.Error, "leases ended: ") || last.Session != l.records()[0].ID {
				t.Errorf("record %+v", last)
			}
		})
	})
	t.Run("denied by a change", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.decisions.set(true, nil)
			l.Changed()
			synctest.Wait()
			gone(t, l)
		})
	})
	t.Run("revoked", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.revoked.add(broker.Subject{Kind: broker.RevokeSession, Value: l.records()[0].ID})
			l.Changed()
			synctest.Wait()
			gone(t, l)
		})
	})
	t.Run("nobody can tell", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.decisions.set(false, fmt.Errorf("%w: no policy in force", broker.ErrUnavailable))
			l.Changed()
			wait(100 * time.Second)
			there(t, l)
			if n := l.vault.renewals(); n != 1 {
				t.Errorf("renewed %d times without a decision", n)
			}
			l.decisions.set(false, nil)
			wait(3 * time.Second)
			if n := l.vault.renewals(); n != 2 {
				t.Errorf("renewed %d times", n)
			}
		})
	})
	t.Run("what it asks", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			in := l.decisions.in[len(l.decisions.in)-1]
			if len(l.decisions.in) != 2 || in.Resource.Path != "db/orders" || in.Attestation.ChipID != theCPU.ChipID || in.Request.KeyAlgorithm == "" || len(in.Request.Resources) != 1 {
				t.Errorf("asked %d times, last %+v", len(l.decisions.in), in)
			}
		})
	})
	t.Run("of another broker", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			r := l.book.all()[0]
			r.Keeper, r.KeptUntil = "elsewhere", time.Now().Add(20*time.Second)
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			wait(18 * time.Second)
			if k := l.book.all()[0].Keeper; k != "elsewhere" {
				t.Errorf("taken over by %s while its keeper lives", k)
			}
			wait(4 * time.Second)
			if k := l.book.all()[0].Keeper; k != "here" {
				t.Errorf("left to %s, which is gone", k)
			}
		})
	})
	t.Run("another broker is quicker", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			before := l.vault.renewals()
			r := l.book.all()[0]
			r.Keeper, r.KeptUntil = "elsewhere", time.Now().Add(-time.Second)
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			l.book.mu.Lock()
			l.book.before = func(rs map[string]broker.LeaseRecord) {
				r := rs[r.Session]
				r.Keeper, r.KeptUntil, r.Revision = "third", time.Now().Add(time.Minute), r.Revision+1
				rs[r.Session] = r
			}
			l.book.mu.Unlock()
			wait(45 * time.Second)
			if k := l.book.all()[0].Keeper; k != "third" || l.vault.renewals() != before {
				t.Errorf("kept by %s, renewed %d times", k, l.vault.renewals()-before)
			}
		})
	})
	t.Run("ended in its source", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			_ = l.vault.RevokeOwner(t.Context(), broker.Owner{ID: "vault-1"})
			wait(45 * time.Second)
			gone(t, l)
		})
	})
	t.Run("near the end in its source", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.vault.fail(func() { l.vault.fault.renew = broker.ErrEnding })
			wait(42 * time.Second) // at once, also where the same look wrote down who keeps them
			r := l.book.all()
			if len(r) != 1 || len(r[0].Owners) != 0 || len(r[0].Retiring) != 1 || r[0].Retiring[0].ID != "vault-1" || len(l.vault.owners()) != 1 {
				t.Fatalf("records %+v, owners %v", r, l.vault.owners())
			}
			wait(5 * time.Minute)
			gone(t, l) // with the session at the latest
		})
	})
	t.Run("cannot be renewed", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.vault.fail(func() { l.vault.fault.renew = errors.New("vault is sealed") })
			wait(52 * time.Second)
			there(t, l)
			if n := l.vault.renewals(); n < 4 { // tried again at each pass
				t.Errorf("tried %d times", n)
			}
		})
	})
	t.Run("cannot be ended", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.vault.fail(func() { l.vault.fault.revoke = errors.New("vault is sealed") })
			l.decisions.set(true, nil)
			wait(time.Minute)
			there(t, l)
			l.vault.fail(func() { l.vault.fault.revoke = nil })
			wait(3 * time.Second)
			gone(t, l)
		})
	})
	t.Run("source not configured any more", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			r := l.book.all()[0]
			r.Owners[0].Source, r.ExpiresAt = "old", time.Now()
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			wait(10 * time.Second)
			there(t, l) // it must not be forgotten
		})
	})
	t.Run("source not configured any more, before the end", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			r := l.book.all()[0]
			r.Owners[0].Source = "old"
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			n := l.vault.renewals()
			wait(time.Minute)
			there(t, l)
			if l.vault.renewals() != n {
				t.Error("renewed by another source")
			}
		})
	})
	t.Run("of a key that is none", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			r := l.book.all()[0]
			r.PublicKey = r.PublicKey[1:]
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			l.Changed()
			synctest.Wait()
			gone(t, l)
		})
	})
	t.Run("no memory", func(t *testing.T) {
		l := newLeaseWorld(t, func(c *broker.Config) { c.Leases = nil })
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := l.KeepLeases(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
