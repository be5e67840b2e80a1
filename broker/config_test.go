package broker_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// TestNewRefuses a broker that misses a part.
func TestNewRefuses(t *testing.T) {
	w := newWorld(t)
	for want, change := range map[string]func(*broker.Config){
		"no identity":    func(c *broker.Config) { c.Identity = nil },
		"no nonces":      func(c *broker.Config) { c.Nonces = nil },
		"no verifiers":   func(c *broker.Config) { c.Verifiers = nil },
		"no collateral":  func(c *broker.Config) { c.Collateral = nil },
		"no policy":      func(c *broker.Config) { c.Policy = nil },
		"no revocations": func(c *broker.Config) { c.Revocations = nil },
		"no store":       func(c *broker.Config) { c.Store = nil },
		"no log":         func(c *broker.Config) { c.Log = nil },
	} {
		cfg := w.cfg
		change(&cfg)
		if b, err := broker.New(cfg); err == nil || b != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	cfg := w.cfg
	cfg.Observe, cfg.Now, cfg.Logger = nil, nil, nil
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if b.Catalog() != nil || !slices.Equal(b.Identity(), w.id.PublicKey()) || !b.AcceptsSimulated() || !slices.Contains(b.EvidenceTypes(), attest.TypeSNP) || !slices.IsSorted(b.EvidenceTypes()) {
		t.Errorf("types %v", b.EvidenceTypes())
	}
	if nonce, expires, err := b.Challenge(); err != nil || len(nonce) != broker.NonceSize || time.Until(expires) < 50*time.Second {
		t.Errorf("nonce of %d bytes until %s: %v", len(nonce), expires, err)
	}
}

// TestDefaults: without settings a secret is good for five minutes, and evidence for a quarter of an hour.
func TestDefaults(t *testing.T) {
	w, a, book, _ := sessionWorld(t, &rotated{version: "1"})
	st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
	s, _ := st.started(t)
	if got := s.ExpiresAt.Sub(w.now); got != 15*time.Minute {
		t.Errorf("a session lives %s", got)
	}
	hangUp()
	if got := book.get(t, s.ID).ExpiresAt.Sub(w.now); got != time.Minute {
		t.Errorf("a broken stream leaves %s", got)
	}
	if book.get(t, s.ID).Broker == "" {
		t.Error("no instance")
	}
	w = newWorld(t, func(c *broker.Config) { c.Policy = keepInput{&broker.PolicyInput{}} })
	if st, err := w.opened(t); err != nil || st.Expires-st.IssuedAt != 300 {
		t.Errorf("a secret is good for %d s: %v", st.Expires-st.IssuedAt, err)
	}
}

// TestRecordSaysWhatWasProven: what the operator needs to know later stands in the record, and in what was signed.
func TestRecordSaysWhatWasProven(t *testing.T) {
	cpu := theCPU
	cpu.HostData, cpu.TCB.Advisories = "0bff", []string{"AMD-SB-1"}
	cpu.Measurements = map[string]string{"b": "2", "a": "1"}
	w, a, in := guestWithDevices(t, cpu, nil, "")
	a.req.Inputs = nil
	resp, err := w.send(t, a)
	if err != nil {
		t.Fatal(err)
	}
	r, id, thumb := w.log.records[0], w.id.ID(), seal.Thumbprint(seal.X25519, a.req.PublicKey)
	switch {
	case r.Version != 1, len(r.ID) < 20, !r.Time.Equal(w.now), r.Time.Location() != time.UTC, r.BrokerID != fmt.Sprintf("%x", id), r.Outcome != broker.Released,
		r.EvidenceType != attest.TypeSNP, !strings.HasPrefix(r.EvidenceDigest, "sha256:"), !strings.HasPrefix(r.ClaimsDigest, "sha256:"), r.EvidenceDigest == r.ClaimsDigest,
		r.HardwareModel != "Milan", r.ChipID != "cpu-1", r.HostData != "0bff", r.TCBStatus != attest.TCBUnknown, !slices.Equal(r.Advisories, cpu.TCB.Advisories),
		!slices.Equal(r.Measurements, []string{"a=1", "b=2"}), r.Recipient != fmt.Sprintf("%x", thumb), r.PolicyDigest != anyPolicy, r.Session != "", r.Error != "", r.Unproven,
		len(r.Resources) != 1, r.Resources[0].Path != "disks/vm-1", r.Resources[0].Policy != "disks", !r.Resources[0].Allow, r.Resources[0].Version != "7":
		t.Errorf("record %+v", r)
	}
	st, err := seal.Open(a.key, resp.Secrets[0].JWE, seal.Expect{Identity: w.Identity(), Resource: "disks/vm-1", Nonce: a.req.Nonce, Now: w.now})
	if err != nil || st.Policy != anyPolicy || st.Decision != r.ID || st.Version != "7" || resp.Secrets[0].Version != "7" || resp.Secrets[0].Resource != "disks/vm-1" || st.IssuedAt != w.now.Unix() || st.Sequence != 0 {
		t.Errorf("statement %+v: %v", st, err)
	}
	payload, err := seal.Verify(w.Identity(), seal.TypeReceipt, resp.Receipt.Promise)
	if err != nil {
		t.Fatal(err)
	}
	var p broker.Promise
	if err := json.Unmarshal(payload, &p); err != nil {
		t.Fatal(err)
	}
	if p.ID != r.ID || p.Log != "test" || p.Index != 0 || p.IssuedAt != w.now.Unix() || p.Issuer != base64.RawURLEncoding.EncodeToString(id[:]) || len(p.LeafHash) != 43 {
		t.Errorf("promise %+v", p)
	}
	if in.Resource.Path != "disks/vm-1" || in.Resource.Policy != "disks" || in.Resource.Params["vm"] != "vm-1" || !slices.Equal(in.Request.Resources, a.req.Resources) ||
		in.Request.KeyAlgorithm != string(seal.X25519) || in.Request.PostQuantum || !in.Time.Equal(w.now) {
		t.Errorf("the policy was asked %+v", in)
	}
	if !w.store.until.Equal(w.now.Add(time.Minute)) {
		t.Errorf("the nonce is remembered until %s", w.store.until)
	}
	ev := w.events[0]
	if ev.Stage != broker.StageReply || ev.Outcome != broker.Released || ev.Type != attest.TypeSNP || ev.RecordID != r.ID || ev.Err != nil {
		t.Errorf("event %+v", ev)
	}
}

// TestInputs: what a guest sends with a resource reaches the source of that resource, and no other.
func TestInputs(t *testing.T) {
	w, a, _ := guestWithDevices(t, theCPU, nil, "")
	src := &keepGrant{}
	w.cfg.Sources = map[string]broker.Source{"local": src}
	catalog := w.Catalog()
	w.Broker, _ = broker.New(w.cfg)
	w.SetCatalog(catalog)
	send := func(inputs [][]byte, resources ...string) error {
		a = w.attempt(t)
		a.req.Resources, a.bind.Resources, a.req.Inputs, a.bind.Inputs = resources, resources, inputs, inputs
		d := a.bind.Digest64()
		a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: append([]byte{'c'}, d[:]...)}
		src.got = nil
		_, err := w.send(t, a)
		return err
	}
	if err := send([][]byte{nil, []byte("csr")}, "disks/a", "disks/b"); err != nil {
		t.Fatal(err)
	}
	if g := src.got; len(g) != 2 || g[0].Input != nil || string(g[1].Input) != "csr" || g[1].Claims.ChipID != theCPU.ChipID || g[1].PolicyDigest != anyPolicy ||
		g[1].DecisionID == "" || g[1].TTL != 5*time.Minute || !g[1].Now.Equal(w.now) || g[1].Recipient == nil || !slices.Equal(g[1].PublicKey, a.req.PublicKey) || g[1].Owner != nil || g[1].Entry.Key != "disks/b" {
		t.Errorf("granted %+v", g)
	}
	if err := send([][]byte{make([]byte, broker.MaxInput)}, "disks/a"); err != nil {
		t.Errorf("the largest input: %v", err)
	}
	for _, inputs := range [][][]byte{{}, {nil, nil}, {make([]byte, broker.MaxInput+1)}} {
		if err := send(inputs, "disks/a"); !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), "inputs") {
			t.Errorf("%d inputs: %v", len(inputs), err)
		}
	}
	if err := send(nil); !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), "resources") {
		t.Errorf("no resources: %v", err)
	}
}

type keepGrant struct{ got []broker.Granted }

func (k *keepGrant) Fetch(_ context.Context, g *broker.Grant) (broker.Secret, error) {
	w, err := g.Redeem()
	k.got = append(k.got, w)
	return broker.Secret{Value: []byte("x"), Version: "1"}, err
}

// activator believes one key.
type activator struct{ err error }

func (a activator) Activate(attest.TPMActivation, time.Time) (attest.TPMChallenge, error) {
	return attest.TPMChallenge{Ticket: []byte("ticket")}, a.err
}

// TestActivateTPM: a key that cannot be believed is denied, observed and recorded; a broker without TPMs says so.
func TestActivateTPM(t *testing.T) {
	bad := attest.Errorf("tpm.ek", attest.ReasonChain, "unknown manufacturer")
	for name, tt := range map[string]struct {
		a       broker.Activator
		want    error
		reason  attest.Reason
		records int
	}{
		"believed":     {activator{}, nil, "", 0},
		"not believed": {activator{bad}, broker.ErrDenied, attest.ReasonChain, 1},
		"no TPMs here": {nil, broker.ErrInvalid, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *broker.Config) { c.Activator = tt.a })
			ch, err := w.ActivateTPM(t.Context(), attest.TPMActivation{AKPublic: []byte("ak")})
			if !errors.Is(err, tt.want) || (err == nil) != (string(ch.Ticket) == "ticket") || len(w.log.records) != tt.records {
				t.Fatalf("got %+v, %v, %d records", ch, err, len(w.log.records))
			}
			if err == nil {
				if len(w.events) != 0 {
					t.Errorf("events %+v", w.events)
				}
				return
			}
			if ev := w.events[0]; ev.Stage != broker.StageVerify || ev.Outcome != broker.Denied || ev.Type != attest.TypeTPM || ev.Reason != tt.reason || ev.Err == nil {
				t.Errorf("event %+v", ev)
			}
			for _, r := range w.log.records {
				if !r.Unproven || r.Outcome != broker.Denied || r.EvidenceType != attest.TypeTPM || !strings.HasPrefix(r.EvidenceDigest, "sha256:") || r.ID == "" || r.Version != 1 || r.BrokerID == "" || !r.Time.Equal(w.now) || len(r.Resources) != 0 {
					t.Errorf("record %+v", r)
				}
			}
		})
	}
}

// TestAttest gives out one token, and nothing that is not one.
func TestAttest(t *testing.T) {
	w, _, _ := guestWithDevices(t, theCPU, nil, "")
	w.cfg.Sources["token"] = w.source
	var err error
	if w.Broker, err = broker.New(w.cfg); err != nil {
		t.Fatal(err)
	}
	c, err := broker.NewCatalog([]broker.CatalogEntry{
		{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks"},
		{Pattern: "tokens/{aud}", Source: "token", Kind: broker.KindEAR, Key: "{aud}", Policy: "disks"},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
	for want, resources := range map[error][]string{nil: {"tokens/x"}, broker.ErrDenied: {"disks/vm-1"}, broker.ErrInvalid: {"tokens/x", "tokens/y"}} {
		a := w.attempt(t)
		a.req.Resources, a.bind.Resources = resources, resources
		d := a.bind.Digest64()
		a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: append([]byte{'c'}, d[:]...)}
		resp, err := w.Attest(t.Context(), a.req)
		if !errors.Is(err, want) || (err == nil) != (len(resp.Secrets) == 1) {
			t.Errorf("%v: %v", resources, err)
		}
		if d, ok := errors.AsType[*broker.Denial](err); ok { // the proof is of what was asked for: a token, not a release
			payload, err := seal.Verify(w.Identity(), seal.TypeDenial, d.Statement)
			whole := a.bind.Whole(attest.PurposeAttest, a.req.Evidence)
			if err != nil || !strings.Contains(string(payload), base64.RawURLEncoding.EncodeToString(whole[:])) {
				t.Errorf("the denial says %s: %v", payload, err)
			}
		}
	}
	if r := w.records()[0]; w.source.touched != 1 || len(w.records()) != 2 {
		t.Errorf("%d reads, record %+v", w.source.touched, r)
	}
}

// TestUnusableEntry: what nobody knows the policy of is released to nobody, and is not the guest's fault.
func TestUnusableEntry(t *testing.T) {
	w := newWorld(t)
	c, _, err := broker.PlanCatalog(w.Catalog().Entries(), nil, map[string]error{"disks/vm-1": errors.New("does not decode")})
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
	if _, err := w.send(t, w.attempt(t)); !errors.Is(err, broker.ErrUnavailable) {
		t.Error(err)
	}
	if r := w.records()[0]; r.Outcome != broker.Failed || r.Resources[0].Reasons[0].Rule != "catalog_unusable" {
		t.Errorf("record %+v", r)
	}
}

// TestPolicyChangesBetweenTwoResources: one release, one policy.
func TestPolicyChangesBetweenTwoResources(t *testing.T) {
	n := 0
	w, a, _ := guestWithDevices(t, theCPU, nil, "", func(c *broker.Config) {
		c.Policy = policyFunc(func(broker.PolicyInput) (broker.Decision, error) {
			n++
			return broker.Decision{Allow: true, PolicyDigest: fmt.Sprintf("sha256:%d", n)}, nil
		})
	})
	a.req.Resources, a.bind.Resources = []string{"disks/a", "disks/b"}, []string{"disks/a", "disks/b"}
	d := a.bind.Digest64()
	a.req.Evidence.Report = append([]byte{'c'}, d[:]...)
	if _, err := w.send(t, a); !errors.Is(err, broker.ErrUnavailable) || w.source.touched != 0 {
		t.Error(err)
	}
}

type policyFunc func(broker.PolicyInput) (broker.Decision, error)

func (f policyFunc) Decide(_ context.Context, in broker.PolicyInput) (broker.Decision, error) {
	return f(in)
}

// TestPolicyErrors: an error of the policy denies, unless it is ours, and the record says what it was.
func TestPolicyErrors(t *testing.T) {
	for name, tt := range map[string]struct{ err, want error }{
		"evaluation": {errors.New("conflict"), broker.ErrDenied},
		"time":       {context.DeadlineExceeded, broker.ErrUnavailable},
		"none":       {fmt.Errorf("%w: no policy in force", broker.ErrUnavailable), broker.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *broker.Config) {
				c.Policy = policyFunc(func(broker.PolicyInput) (broker.Decision, error) { return broker.Decision{Allow: true}, tt.err })
			})
			if _, err := w.send(t, w.attempt(t)); !errors.Is(err, tt.want) || w.source.touched != 0 {
				t.Error(err)
			}
			if spent := len(w.store.spent) == 1; spent != (tt.want == broker.ErrDenied) { // only a denial is final
				t.Errorf("nonce spent: %v", spent)
			}
			if rs := w.records()[0].Resources[0].Reasons; len(rs) != 1 || rs[0].Rule != "policy_error" || rs[0].Message != tt.err.Error() {
				t.Errorf("reasons %+v", rs)
			}
		})
	}
	w := newWorld(t)
	a := w.attempt(t)
	a.options.Measurement = teesim.Measurement("evil")
	if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) || w.records()[0].PolicyDigest == "" {
		t.Errorf("%v; record %+v", err, w.records()[0])
	}
}

// TestSourceEndsTheSecret: a secret is not good for longer than its source says.
func TestSourceEndsTheSecret(t *testing.T) {
	for name, tt := range map[string]struct {
		in   time.Duration
		want int64
	}{"earlier": {time.Minute, 60}, "later": {time.Hour, 300}} {
		w := newWorld(t, func(c *broker.Config) {
			now := c.Now()
			c.Policy = keepInput{&broker.PolicyInput{}}
			c.Sources["local"] = sourceFunc(func() broker.Secret {
				return broker.Secret{Value: []byte("x"), Version: "1", Expires: now.Add(tt.in), ContentType: "text/plain", Lease: "l"}
			})
		})
		st, err := w.opened(t)
		if err != nil || st.Expires-st.IssuedAt != tt.want || st.ContentType != "text/plain" || st.Lease != "l" {
			t.Errorf("%s: %+v %v", name, st, err)
		}
	}
}

type sourceFunc func() broker.Secret

func (f sourceFunc) Fetch(_ context.Context, g *broker.Grant) (broker.Secret, error) {
	_, err := g.Redeem()
	return f(), err
}

// TestHangUpWhileVerifying: evidence that was not believed for want of time is no denial, and leaves no record.
func TestHangUpWhileVerifying(t *testing.T) {
	ctx, hangUp := context.WithCancel(t.Context())
	w := newWorld(t, func(c *broker.Config) { c.Verifiers = []attest.Verifier{interrupted{hangUp: hangUp}} })
	a := w.attempt(t)
	a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: []byte{1}}
	if _, err := w.Release(ctx, a.req); !errors.Is(err, broker.ErrUnavailable) || len(w.records()) != 0 {
		t.Errorf("%v, %d records", err, len(w.records()))
	}
}

// interrupted is a verifier whose guest hangs up.
type interrupted struct {
	panicking
	hangUp func()
}

func (v interrupted) Verify(ctx context.Context, _ attest.Evidence, _ attest.Binding, _ attest.Collateral, _ time.Time) (attest.Claims, error) {
	v.hangUp()
	return attest.Claims{}, attest.Errorf("snp", attest.ReasonChain, "%w", ctx.Err())
}

// TestOurFaultIsNoDenial: what the broker lacks is not held against the guest.
func TestOurFaultIsNoDenial(t *testing.T) {
	for reason, want := range map[attest.Reason]error{
		attest.ReasonCollateralMissing: broker.ErrUnavailable, attest.ReasonCollateralExpired: broker.ErrUnavailable, attest.ReasonCollateralInvalid: broker.ErrUnavailable,
		attest.ReasonInternal: broker.ErrUnavailable, attest.ReasonChain: broker.ErrDenied, attest.ReasonSignature: broker.ErrDenied, attest.ReasonRevoked: broker.ErrDenied,
	} {
		w := newWorld(t, func(c *broker.Config) { c.Verifiers = []attest.Verifier{refusing{reason: reason}} })
		a := w.attempt(t)
		a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: []byte{1}}
		_, err := w.send(t, a)
		if ev := w.events[0]; !errors.Is(err, want) || len(w.records()) > 0 != (want == broker.ErrDenied) || ev.Reason != reason || ev.Outcome == broker.Failed != (want == broker.ErrUnavailable) {
			t.Errorf("%s: %v, %d records, event %+v", reason, err, len(w.records()), ev)
		}
	}
}

type refusing struct {
	panicking
	reason attest.Reason
}

func (v refusing) Verify(context.Context, attest.Evidence, attest.Binding, attest.Collateral, time.Time) (attest.Claims, error) {
	return attest.Claims{}, attest.Errorf("snp", v.reason, "no")
}

// TestRevokedPolicy: what a revoked policy allows is not even read.
func TestRevokedPolicy(t *testing.T) {
	w, a, in := guestWithDevices(t, theCPU, nil, "")
	c, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks", Labels: map[string]string{"team": "pay"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
	w.revoked.add(broker.Subject{Kind: broker.RevokePolicy, Value: anyPolicy})
	if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), "revoked: policy") || w.source.touched != 0 {
		t.Errorf("%v, %d reads", err, w.source.touched)
	}
	if in.Resource.Labels["team"] != "pay" {
		t.Errorf("the policy was asked %+v", in.Resource)
	}
}

// TestSecretsAreWiped: what was read for a guest does not stay in memory, released or not; the second receipt is for the second record.
func TestSecretsAreWiped(t *testing.T) {
	value := []byte("in the clear")
	w := newWorld(t, func(c *broker.Config) {
		c.Sources["local"] = sourceFunc(func() broker.Secret { copy(value, "in the clear"); return broker.Secret{Value: value, Version: "1"} })
	})
	for i := range 2 {
		resp, err := w.send(t, w.attempt(t))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(value, func(b byte) bool { return b != 0 }) {
			t.Errorf("%q stays", value)
		}
		payload, err := seal.Verify(w.Identity(), seal.TypeReceipt, resp.Receipt.Promise)
		var p broker.Promise
		if err != nil || json.Unmarshal(payload, &p) != nil || p.Index != uint64(i) || resp.Receipt.LogIndex != uint64(i) {
			t.Errorf("receipt %+v at %d: %v", p, resp.Receipt.LogIndex, err)
		}
	}
}

// TestSettings are kept to where they are made.
func TestSettings(t *testing.T) {
	l := newLeaseWorld(t, func(c *broker.Config) { c.OwnerTTL, c.TTL, c.DenialTime = 30*time.Second, 7*time.Minute, 0 })
	a := l.guest(t, "logins/app")
	resp, err := l.send(t, a)
	if err != nil {
		t.Fatal(err)
	}
	if l.other.ttls[0] != 30*time.Second {
		t.Errorf("an owner for %s", l.other.ttls[0])
	}
	st, err := seal.Open(a.key, resp.Secrets[0].JWE, seal.Expect{Identity: l.Identity(), Resource: "logins/app", Nonce: a.req.Nonce, Now: time.Now(), Skew: time.Second})
	if err != nil || st.Expires-st.IssuedAt != 420 {
		t.Errorf("a secret is good for %d s: %v", st.Expires-st.IssuedAt, err)
	}
	start := time.Now()
	if _, err := l.send(t, l.guest(t, "none/x")); !errors.Is(err, broker.ErrDenied) || time.Since(start) < 24*time.Millisecond {
		t.Errorf("denied after %s: %v", time.Since(start), err)
	}
}
