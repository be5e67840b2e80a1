package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/policy"
)

// world is a broker with a real verifier (under a test root), the real example
// policies and fakes with faults for what stands behind the interfaces.
type world struct {
	*broker.Broker
	id      *seal.Identity
	nonces  *broker.Nonces
	device  *teesim.Device
	root    *teesim.Root
	store   *fakeStore
	log     *fakeLog
	source  *fakeSource
	revoked *fakeRevocations
	events  []broker.Event
	now     time.Time
	cfg     broker.Config
}

type fakeStore struct {
	mu    sync.Mutex
	spent map[broker.NonceID]bool
	until time.Time // of the last
	fault error
}

func (s *fakeStore) Redeem(_ context.Context, id broker.NonceID, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = until
	if s.fault != nil {
		return s.fault
	}
	if s.spent[id] {
		return broker.ErrSpent
	}
	s.spent[id] = true
	return nil
}

type fakeLog struct {
	mu      sync.Mutex
	records []broker.Record
	fault   error
}

func (l *fakeLog) Append(_ context.Context, r broker.Record) (broker.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault != nil {
		return broker.Position{}, l.fault
	}
	l.records = append(l.records, r)
	return broker.Position{Origin: "test", Index: uint64(len(l.records) - 1)}, nil
}

type fakeSource struct {
	mu      sync.Mutex
	touched int
	fault   error
	during  func() // runs while the secret is being fetched
}

const theSecret = "correct horse battery staple"

func (s *fakeSource) Fetch(_ context.Context, g *broker.Grant) (broker.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touched++
	if _, err := g.Redeem(); err != nil {
		return broker.Secret{}, err
	}
	if s.during != nil {
		s.during()
	}
	if s.fault != nil {
		return broker.Secret{}, s.fault
	}
	return broker.Secret{Value: []byte(theSecret), Version: "7"}, nil
}

type fakeRevocations struct {
	mu    sync.Mutex
	hits  map[broker.Subject]bool
	fault error
}

func (f *fakeRevocations) Revoked(subjects ...broker.Subject) (broker.Subject, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range subjects {
		if f.hits[s.Canonical()] {
			return s, true, f.fault
		}
	}
	return broker.Subject{}, false, f.fault
}

func (f *fakeRevocations) RevokedMeasurement(digits int) (broker.Subject, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.hits {
		if s.Kind == broker.RevokeMeasurement && len(s.Value) == digits {
			return s, true, f.fault
		}
	}
	return broker.Subject{}, false, f.fault
}

func (f *fakeRevocations) add(s broker.Subject) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hits[s.Canonical()] = true
}

// examplePolicies is compiled once: it takes longer than the rest of a world.
var examplePolicies = sync.OnceValues(func() (*policy.Engine, error) {
	engine, err := policy.New(policy.Config{Dir: "../internal/dev/policies", ExtraData: map[string]any{"allow_simulated": true}})
	if err != nil {
		return nil, err
	}
	return engine, engine.SetReferences([]broker.ReferenceSet{{
		Name: "img", Type: attest.TypeSNP, State: broker.ReferenceActive,
		Values: map[string][]string{"measurement": {fmt.Sprintf("%x", teesim.Measurement(""))}},
	}}, nil)
})

func newWorld(t testing.TB, change ...func(*broker.Config)) *world {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	w := &world{
		now: now, store: &fakeStore{spent: map[broker.NonceID]bool{}}, log: &fakeLog{}, source: &fakeSource{},
		revoked: &fakeRevocations{hits: map[broker.Subject]bool{}},
	}
	var err error
	check := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.id, err = seal.NewIdentity()
	check()
	w.nonces, err = broker.NewNonces(make([]byte, 32), w.id.ID(), time.Minute)
	check()
	w.root, err = teesim.NewRoot(now)
	check()
	w.device, err = w.root.NewDevice(teesim.DeviceOptions{Product: "Milan", TCB: teesim.TCB{Bootloader: 4, SNP: 24, Microcode: 219}})
	check()
	coll, err := w.root.Collateral(now)
	check()
	verifiers, err := tee.New(tee.Config{SNP: snp.Config{TestRoots: []tee.TestRoot{{Product: "Milan", ARK: w.root.ARK()}}}})
	check()
	engine, err := examplePolicies()
	check()
	w.cfg = broker.Config{
		Identity: w.id, Nonces: w.nonces, Verifiers: verifiers.Verifiers, Collateral: teetest.MapCollateral(coll), Policy: engine, Revocations: w.revoked,
		Store: w.store, Log: w.log, Sources: map[string]broker.Source{"local": w.source}, AllowSimulated: true, DenialTime: time.Millisecond,
		Observe: func(_ context.Context, e broker.Event) { w.events = append(w.events, e) },
		Now:     func() time.Time { return w.now },
	}
	for _, f := range change {
		f(&w.cfg)
	}
	w.Broker, err = broker.New(w.cfg)
	check()
	cat, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks"}})
	check()
	w.SetCatalog(cat)
	return w
}

// attempt is one guest's try; the test changes what the attacker can.
type attempt struct {
	key     *seal.PrivateKey
	req     broker.Request
	options teesim.ReportOptions
	bind    attest.Transcript // what the evidence is made over
}

func (w *world) attempt(t testing.TB) *attempt {
	t.Helper()
	nonce, _, err := w.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.GenerateKey(seal.X25519)
	if err != nil {
		t.Fatal(err)
	}
	a := &attempt{key: key, options: teesim.ReportOptions{Measurement: teesim.Measurement("")}}
	a.req = broker.Request{
		Nonce: nonce, KeyAlgorithm: string(seal.X25519), PublicKey: key.Public(),
		OfferedSuites: []string{string(seal.X25519)}, Resources: []string{"disks/vm-1"},
	}
	a.bind = attest.Transcript{
		Nonce: nonce, BrokerID: w.id.ID(), KeyAlgorithm: a.req.KeyAlgorithm, PublicKey: a.req.PublicKey,
		OfferedSuites: a.req.OfferedSuites, Resources: a.req.Resources,
	}
	return a
}

func (w *world) send(t testing.TB, a *attempt) (broker.Response, error) {
	t.Helper()
	if a.req.Evidence.Report == nil {
		var err error
		if a.req.Evidence, err = w.device.Evidence(a.bind.Digest64(), a.options); err != nil {
			t.Fatal(err)
		}
	}
	return w.Release(t.Context(), a.req)
}

func TestRelease(t *testing.T) {
	w := newWorld(t)
	a := w.attempt(t)
	resp, err := w.send(t, a)
	if err != nil {
		t.Fatal(err)
	}
	st, err := seal.Open(a.key, resp.Secrets[0].JWE, seal.Expect{Identity: w.Identity(), Resource: "disks/vm-1", Nonce: a.req.Nonce, Now: w.now})
	if err != nil || string(st.Secret) != theSecret || st.Version != "7" {
		t.Fatalf("got %q version %s: %v", st.Secret, st.Version, err)
	}
	if len(w.log.records) != 1 || w.log.records[0].Outcome != broker.Released || !w.log.records[0].Simulated || w.log.records[0].ID != st.Decision {
		t.Errorf("records %+v", w.log.records)
	}
	if _, err := seal.Verify(w.Identity(), seal.TypeReceipt, resp.Receipt.Promise); err != nil {
		t.Error(err)
	}
	if strings.Contains(fmt.Sprintf("%+v %+v", w.log.records, w.events), theSecret) {
		t.Error("the secret stands in the log or in an event")
	}
}

// TestReleaseRefuses: every way in which a request can be bad ends with the
// right error, the right number of records, and nothing released. The source
// is not touched unless policy had allowed (G7).
func TestReleaseRefuses(t *testing.T) {
	other := newWorld(t)
	tests := map[string]struct {
		world    func(*world)
		attack   func(t *testing.T, w *world, a *attempt)
		want     error
		stage    broker.Stage
		reason   attest.Reason
		says     string // in the operator's view
		records  int
		touched  int
		wantRule string
	}{
		"forged nonce":         {attack: func(_ *testing.T, _ *world, a *attempt) { a.req.Nonce[20] ^= 1 }, want: broker.ErrChallenge, stage: broker.StageAdmit},
		"nonce of nothing":     {attack: func(_ *testing.T, _ *world, a *attempt) { a.req.Nonce = make([]byte, 16) }, want: broker.ErrChallenge, stage: broker.StageAdmit},
		"expired nonce":        {attack: func(_ *testing.T, w *world, _ *attempt) { w.now = w.now.Add(2 * time.Minute) }, want: broker.ErrChallenge, stage: broker.StageAdmit, says: "expired"},
		"nonce of another one": {attack: func(t *testing.T, _ *world, a *attempt) { a.req.Nonce, _, _ = other.Challenge() }, want: broker.ErrChallenge, stage: broker.StageAdmit, says: "another broker"},
		"spent nonce": {attack: func(t *testing.T, w *world, a *attempt) {
			if _, err := w.send(t, a); err != nil {
				t.Fatal(err)
			}
		}, want: broker.ErrChallenge, stage: broker.StageAdmit, records: 1, touched: 1, says: "spent"},
		"nonce spent on another replica": {world: func(w *world) { w.store.fault = broker.ErrSpent },
			want: broker.ErrChallenge, stage: broker.StageSpend, records: 1, says: "spent"},
		"denied request, replayed": {attack: func(t *testing.T, w *world, a *attempt) {
			a.options.Measurement = teesim.Measurement("evil")
			if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) {
				t.Fatal(err)
			}
		}, want: broker.ErrChallenge, stage: broker.StageAdmit, records: 1, says: "spent"},
		"resource revoked while the secret is fetched": {world: func(w *world) {
			w.source.during = func() { w.revoked.add(broker.Subject{Kind: broker.RevokeResource, Value: "disks/vm-1"}) }
		}, want: broker.ErrDenied, stage: broker.StageSeal, records: 1, touched: 1, says: "revoked: resource"},
		"another key than the one bound": {attack: func(t *testing.T, _ *world, a *attempt) {
			k, _ := seal.GenerateKey(seal.X25519)
			a.req.PublicKey = k.Public()
		}, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonBinding, records: 1},
		"another resource list": {attack: func(_ *testing.T, _ *world, a *attempt) { a.req.Resources = []string{"disks/vm-2"} }, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonBinding, records: 1},
		"suites talked down": {attack: func(_ *testing.T, _ *world, a *attempt) {
			a.bind.OfferedSuites = []string{string(seal.Hybrid), string(seal.X25519)}
		},
			want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonBinding, records: 1},
		"evidence for another broker": {attack: func(_ *testing.T, _ *world, a *attempt) { a.bind.BrokerID = other.id.ID() }, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonBinding, records: 1},
		"suite that was not offered":  {attack: func(_ *testing.T, _ *world, a *attempt) { a.req.OfferedSuites = []string{string(seal.Hybrid)} }, want: broker.ErrInvalid, stage: broker.StageAdmit, says: "key_algorithm"},
		"broken key":                  {attack: func(_ *testing.T, _ *world, a *attempt) { a.req.PublicKey = make([]byte, 32) }, want: broker.ErrInvalid, stage: broker.StageAdmit, says: "public_key"},
		"unknown evidence type": {attack: func(_ *testing.T, _ *world, a *attempt) {
			a.req.Evidence = attest.Evidence{Type: "none", Report: []byte{1}}
		}, want: broker.ErrInvalid, stage: broker.StageAdmit, says: "evidence.type"},
		"oversized evidence": {attack: func(_ *testing.T, _ *world, a *attempt) {
			a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: make([]byte, attest.MaxReportSize+1)}
		}, want: broker.ErrInvalid, stage: broker.StageAdmit, says: "evidence.report"},
		"truncated evidence": {attack: func(t *testing.T, w *world, a *attempt) {
			a.req.Evidence, _ = w.device.Evidence(a.bind.Digest64(), a.options)
			a.req.Evidence.Report = a.req.Evidence.Report[:1000]
		}, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonMalformed, records: 1},
		"altered evidence": {attack: func(t *testing.T, w *world, a *attempt) {
			a.req.Evidence, _ = w.device.Evidence(a.bind.Digest64(), a.options)
			a.req.Evidence.Report[0x90] ^= 1 // MEASUREMENT
		}, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonSignature, records: 1},
		"device under another root": {attack: func(t *testing.T, _ *world, a *attempt) {
			a.req.Evidence, _ = other.device.Evidence(a.bind.Digest64(), a.options)
		}, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonChain, records: 1},
		"debuggable guest": {attack: func(_ *testing.T, _ *world, a *attempt) { a.options.Policy = 0x30000 | 1<<19 }, want: broker.ErrDenied, stage: broker.StageDecide, records: 1, wantRule: "debug"},
		"VMPL 2":           {attack: func(_ *testing.T, _ *world, a *attempt) { a.options.VMPL = 2 }, want: broker.ErrDenied, stage: broker.StageDecide, records: 1, wantRule: "vmpl"},
		"unknown measurement": {attack: func(_ *testing.T, _ *world, a *attempt) { a.options.Measurement = teesim.Measurement("evil") },
			want: broker.ErrDenied, stage: broker.StageDecide, records: 1, wantRule: "measurement_unknown"},
		"unknown resource": {attack: func(_ *testing.T, _ *world, a *attempt) {
			a.req.Resources = []string{"db/none"}
			a.bind.Resources = a.req.Resources
		}, want: broker.ErrDenied, stage: broker.StageDecide, records: 1, wantRule: "unknown_resource"},
		"one resource of two unknown": {attack: func(_ *testing.T, _ *world, a *attempt) {
			a.req.Resources = []string{"disks/vm-1", "db/none"}
			a.bind.Resources = a.req.Resources
		}, want: broker.ErrDenied, stage: broker.StageDecide, records: 1},
		"simulated device at a production broker": {world: func(w *world) {
			w.cfg.AllowSimulated = false
			w.Broker, _ = broker.New(w.cfg)
			c, _ := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks"}})
			w.SetCatalog(c)
		}, want: broker.ErrDenied, stage: broker.StageDecide, records: 1, wantRule: "simulated"},
		"no catalog": {world: func(w *world) { w.SetCatalog(nil) }, want: broker.ErrDenied, stage: broker.StageDecide, records: 1, wantRule: "unknown_resource"},
		"secret is not there": {world: func(w *world) { w.source.fault = fmt.Errorf("x: %w", broker.ErrNoSecret) },
			want: broker.ErrDenied, stage: broker.StageFetch, records: 1, touched: 1},
		"source is down": {world: func(w *world) { w.source.fault = errors.New("vault is sealed") },
			want: broker.ErrUnavailable, stage: broker.StageFetch, records: 1, touched: 1, says: "vault is sealed"},
		"store lost its majority": {world: func(w *world) { w.store.fault = errors.New("no leader") },
			want: broker.ErrUnavailable, stage: broker.StageSpend, records: 1, says: "no leader"},
		"audit disk is full": {world: func(w *world) { w.log.fault = errors.New("no space left on device") },
			want: broker.ErrUnavailable, stage: broker.StageRecord, touched: 1, says: "no space left"},
		"audit disk is full at a denial": {world: func(w *world) { w.log.fault = errors.New("no space left on device") },
			attack: func(_ *testing.T, _ *world, a *attempt) { a.options.Measurement = teesim.Measurement("evil") },
			want:   broker.ErrUnavailable, stage: broker.StageDecide, says: "no space left"},
		"view of revocations is old": {world: func(w *world) { w.revoked.fault = errors.New("stale") }, want: broker.ErrUnavailable, stage: broker.StageDecide, records: 1},
		"revoked chip": {world: func(w *world) {
			w.revoked.add(broker.Subject{Kind: broker.RevokeChip, Value: fmt.Sprintf("%X", w.device.ChipID())})
		},
			want: broker.ErrDenied, stage: broker.StageDecide, records: 1, says: "revoked: chip"},
		"revoked measurement": {world: func(w *world) {
			w.revoked.add(broker.Subject{Kind: broker.RevokeMeasurement, Value: fmt.Sprintf("%x", teesim.Measurement(""))})
		}, want: broker.ErrDenied, stage: broker.StageDecide, records: 1, says: "revoked: measurement"},
		"revoked resource": {world: func(w *world) { w.revoked.add(broker.Subject{Kind: broker.RevokeResource, Value: "disks/vm-1"}) },
			want: broker.ErrDenied, stage: broker.StageDecide, records: 1, says: "revoked: resource"},
		"revoked secret version": {world: func(w *world) { w.revoked.add(broker.Subject{Kind: broker.RevokeSecretVersion, Value: "disks/vm-1@7"}) },
			want: broker.ErrDenied, stage: broker.StageSeal, records: 1, touched: 1, says: "revoked: secret_version"},
		"chip revoked while the secret is fetched": {world: func(w *world) {
			w.source.during = func() {
				w.revoked.add(broker.Subject{Kind: broker.RevokeChip, Value: fmt.Sprintf("%x", w.device.ChipID())})
			}
		}, want: broker.ErrDenied, stage: broker.StageSeal, records: 1, touched: 1, says: "revoked: chip"},
		"verifier panics": {world: func(w *world) {
			w.cfg.Verifiers = []attest.Verifier{panicking{}}
			w.Broker, _ = broker.New(w.cfg)
		}, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonMalformed, records: 1, says: "panicked"},
		"verifier forgets the binding": {world: func(w *world) {
			w.cfg.Verifiers = []attest.Verifier{forgetful{}}
			w.Broker, _ = broker.New(w.cfg)
		}, want: broker.ErrDenied, stage: broker.StageVerify, reason: attest.ReasonBinding, records: 1},
		"policy runs out of time": {world: func(w *world) {
			w.cfg.Policy = slowPolicy{}
			w.Broker, _ = broker.New(w.cfg)
			c, _ := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks"}})
			w.SetCatalog(c)
		}, want: broker.ErrUnavailable, stage: broker.StageDecide, records: 1},
		"no collateral": {world: func(w *world) {
			w.cfg.Collateral = teetest.MapCollateral{}
			w.Broker, _ = broker.New(w.cfg)
		}, want: broker.ErrUnavailable, stage: broker.StageVerify, reason: attest.ReasonCollateralMissing},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.world != nil {
				tt.world(w)
			}
			a := w.attempt(t)
			if tt.attack != nil {
				tt.attack(t, w, a)
			}
			resp, err := w.send(t, a)
			if len(resp.Secrets) > 0 || resp.Receipt.Promise != "" {
				t.Fatal("released something")
			}
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			ev := w.events[len(w.events)-1]
			if ev.Stage != tt.stage || ev.Reason != tt.reason || ev.Outcome == broker.Released {
				t.Errorf("event says stage %s, reason %q, outcome %s (%v); want %s, %q", ev.Stage, ev.Reason, ev.Outcome, ev.Err, tt.stage, tt.reason)
			}
			if !strings.Contains(ev.Err.Error(), tt.says) {
				t.Errorf("operator is told %q, which does not mention %q", ev.Err, tt.says)
			}
			if len(w.log.records) != tt.records || w.source.touched != tt.touched {
				t.Errorf("%d records and %d reads of the source, want %d and %d", len(w.log.records), w.source.touched, tt.records, tt.touched)
			}
			if tt.wantRule != "" && !strings.Contains(fmt.Sprintf("%+v", w.log.records[0].Resources), tt.wantRule) {
				t.Errorf("record does not name rule %q: %+v", tt.wantRule, w.log.records[0].Resources)
			}
		})
	}
}

type panicking struct{}

func (panicking) Type() attest.Type { return attest.TypeSNP }
func (panicking) Verify(context.Context, attest.Evidence, attest.Binding, attest.Collateral, time.Time) (attest.Claims, error) {
	panic("index out of range")
}

// forgetful is a verifier with the worst possible bug.
type forgetful struct{ panicking }

func (forgetful) Verify(context.Context, attest.Evidence, attest.Binding, attest.Collateral, time.Time) (attest.Claims, error) {
	return attest.Claims{Type: attest.TypeSNP}, nil
}

// TestDenialsLookAlike holds G7: what a guest can see of "denied" and "no such resource" is the same.
func TestDenialsLookAlike(t *testing.T) {
	w := newWorld(t, func(c *broker.Config) { c.DenialTime = 50 * time.Millisecond; c.Now = time.Now })
	try := func(change func(*attempt)) time.Duration {
		a := w.attempt(t)
		change(a)
		start := time.Now()
		if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) {
			t.Fatalf("got %v", err)
		}
		return time.Since(start)
	}
	for range 3 {
		denied := try(func(a *attempt) { a.options.Measurement = teesim.Measurement("evil") })
		unknown := try(func(a *attempt) { a.req.Resources = []string{"no/such"}; a.bind.Resources = a.req.Resources })
		if denied < 45*time.Millisecond || unknown < 45*time.Millisecond {
			t.Errorf("denied after %s, unknown after %s: below the floor of 50ms", denied, unknown)
		}
	}
	if w.source.touched != 0 {
		t.Error("the source was touched")
	}
}

// TestNonceSpentOnce: of many concurrent requests with one nonce, one is served.
func TestNonceSpentOnce(t *testing.T) {
	w := newWorld(t, func(c *broker.Config) {
		c.Observe = nil
		c.Policy = fixedPolicy{broker.Decision{Allow: true}}
	})
	a := w.attempt(t)
	ev, err := w.device.Evidence(a.bind.Digest64(), a.options)
	if err != nil {
		t.Fatal(err)
	}
	a.req.Evidence = ev
	var mu sync.Mutex
	served := 0
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := w.Release(t.Context(), a.req); err == nil {
				mu.Lock()
				served++
				mu.Unlock()
			} else if !errors.Is(err, broker.ErrChallenge) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if served != 1 {
		t.Fatalf("served %d of 32", served)
	}
}

func TestObligations(t *testing.T) {
	for name, tt := range map[string]struct {
		o    broker.Obligations
		want error
	}{
		"post-quantum required":     {broker.Obligations{RequirePQ: true}, broker.ErrDenied},
		"approvals cannot be kept":  {broker.Obligations{Approvals: 1}, broker.ErrDenied},
		"holders cannot be counted": {broker.Obligations{MaxHolders: 1}, broker.ErrDenied},
		"lifetime":                  {broker.Obligations{TTL: time.Hour}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *broker.Config) { c.Policy = fixedPolicy{broker.Decision{Allow: true, Obligations: tt.o}} })
			a := w.attempt(t)
			resp, err := w.send(t, a)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil {
				st, err := seal.Open(a.key, resp.Secrets[0].JWE, seal.Expect{Identity: w.Identity(), Resource: "disks/vm-1", Nonce: a.req.Nonce, Now: w.now})
				if err != nil || st.Expires-st.IssuedAt != 3600 {
					t.Errorf("valid for %d seconds, want 3600: %v", st.Expires-st.IssuedAt, err)
				}
			}
		})
	}
}

type slowPolicy struct{}

func (slowPolicy) Decide(context.Context, broker.PolicyInput) (broker.Decision, error) {
	return broker.Decision{}, fmt.Errorf("evaluate: %w", context.DeadlineExceeded)
}

type fixedPolicy struct{ d broker.Decision }

func (p fixedPolicy) Decide(context.Context, broker.PolicyInput) (broker.Decision, error) {
	return p.d, nil
}
