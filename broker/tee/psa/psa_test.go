package psa_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/cose/cosetest"
	"github.com/claviger/claviger/broker/tee/psa"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// labels of the claims, by profile (RFC 9783 §4.7, and the drafts before it).
var labels = map[string]map[string]int{
	psa.Profile1: {
		"profile": -75000, "client": -75001, "lifecycle": -75002, "implementation": -75003, "seed": -75004, "certification": -75005,
		"components": -75006, "none": -75007, "nonce": -75008, "instance": -75009, "service": -75010,
	},
	psa.Profile2: {
		"profile": 265, "client": 2394, "lifecycle": 2395, "implementation": 2396, "seed": 2397, "certification": 2398,
		"components": 2399, "nonce": 10, "instance": 256, "service": 2400,
	},
	psa.ProfileRFC: {
		"profile": 265, "client": 2394, "lifecycle": 2395, "implementation": 2396, "seed": 268, "certification": 2398,
		"components": 2399, "nonce": 10, "instance": 256, "service": 2400,
	},
}

// device is a simulated device.
type device struct {
	key     *ecdsa.PrivateKey
	profile string
	claims  map[string]any // by the names of labels
	extra   map[any]any    // under labels of their own
}

func hash(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func newDevice(t testing.TB, profile string) *device {
	d := transcript.Digest32()
	return &device{key: cosetest.Key(t, elliptic.P256()), profile: profile, claims: map[string]any{
		"profile": profile, "client": 17, "lifecycle": 0x3000, "implementation": hash(0xaa), "seed": hash(0x5e), "certification": "0604565272829-10010",
		"components": []any{
			map[int]any{1: "SPE", 2: hash(1), 4: "1.6.0", 5: hash(2), 6: "SHA256"},
			map[int]any{1: "NSPE", 2: hash(3), 5: hash(4)},
		},
		"nonce": d[:], "instance": append([]byte{1}, hash(0xdd)...), "service": "psa.example",
	}}
}

func (d *device) token(t testing.TB) []byte {
	t.Helper()
	m := map[any]any{}
	for name, v := range d.claims {
		m[labels[d.profile][name]] = v
	}
	maps.Copy(m, d.extra)
	return cosetest.Sign(t, d.key, cosetest.Encode(t, m))
}

func (d *device) endorsement() arm.Endorsement {
	return arm.Endorsement{InstanceID: append([]byte{1}, hash(0xdd)...), ImplementationID: hash(0xaa), Key: &d.key.PublicKey}
}

func (d *device) verifier(t testing.TB) *psa.Verifier {
	t.Helper()
	return newVerifier(t, psa.Config{Endorsements: []arm.Endorsement{d.endorsement()}})
}

func newVerifier(t testing.TB, cfg psa.Config) *psa.Verifier {
	t.Helper()
	v, err := psa.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func evidence(token []byte) attest.Evidence {
	return attest.Evidence{Type: attest.TypePSA, Report: token}
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

var profiles = []string{psa.Profile1, psa.Profile2, psa.ProfileRFC}

func TestConformance(t *testing.T) {
	d := newDevice(t, psa.ProfileRFC)
	s := teetest.Suite{New: func(t *testing.T) attest.Verifier { return d.verifier(t) }}
	for _, p := range profiles {
		other := newDevice(t, p)
		other.key = d.key
		s.Good = append(s.Good, teetest.Vector{Name: p, Evidence: evidence(other.token(t)), Now: now, ReportData: other.claims["nonce"].([]byte)})
	}
	teetest.Run(t, s)
}

func TestClaims(t *testing.T) {
	for _, p := range profiles {
		d := newDevice(t, p)
		cl, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.BindTo(transcript), nil, now)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		instance := "01" + strings.Repeat("dd", 32)
		if !cl.Bound || cl.Debuggable || !cl.BoundToCPUTEE || cl.Simulated || cl.ChipID != instance || cl.HardwareModel != "PSA" ||
			!maps.Equal(cl.Measurements, map[string]string{"spe": hex.EncodeToString(hash(1)), "nspe": hex.EncodeToString(hash(3))}) {
			t.Errorf("%s: claims %+v", p, cl)
		}
		c := cl.PSA.(*psa.Claims)
		if c.Profile != p || c.ClientID != 17 || c.InstanceID != instance || c.SecurityLifecycle != 0x3000 || c.LifecycleState != arm.Secured ||
			c.BootSeed != hex.EncodeToString(hash(0x5e)) || c.CertificationReference != "0604565272829-10010" || c.VerificationServiceIndicator != "psa.example" ||
			len(c.SoftwareComponents) != 2 || c.SoftwareComponents[0].Version != "1.6.0" || len(c.Key) != 64 || c.KeyPublished != "" {
			t.Errorf("%s: claims %+v", p, c)
		}
	}
}

// TestNonce: each size has its own digest, and no size serves as a part of another.
func TestNonce(t *testing.T) {
	d := newDevice(t, psa.ProfileRFC)
	d32, d48, d64 := transcript.Digest32(), transcript.Digest48(), transcript.Digest64()
	for _, nonce := range [][]byte{d32[:], d48[:], d64[:]} {
		d.claims["nonce"] = nonce
		if cl, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.BindTo(transcript), nil, now); err != nil || !cl.Bound {
			t.Errorf("%d bytes: %v", len(nonce), err)
		}
	}
	d.claims["nonce"] = d64[:32]
	_, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.BindTo(transcript), nil, now)
	wantError(t, err, "psa.binding", attest.ReasonBinding)
}

// TestStates: what is debuggable, and what no TEE holds, is claimed, for the baseline to deny.
func TestStates(t *testing.T) {
	for name, tc := range map[string]struct {
		claim             string
		value             any
		debuggable, inTEE bool
	}{
		"secured":      {"lifecycle", 0x30ff, false, true},
		"unknown":      {"lifecycle", 0, true, true},
		"assembly":     {"lifecycle", 0x1000, true, true},
		"provisioning": {"lifecycle", 0x2000, true, true},
		"other debug":  {"lifecycle", 0x4000, true, true},
		"recoverable":  {"lifecycle", 0x5000, true, true},
		"scrapped":     {"lifecycle", 0x6000, true, true},
		"non-secure":   {"client", -1, false, false},
		"partition":    {"client", 1<<31 - 1, false, true},
	} {
		d := newDevice(t, psa.ProfileRFC)
		d.claims[tc.claim] = tc.value
		cl, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.BindTo(transcript), nil, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if cl.Debuggable != tc.debuggable || cl.BoundToCPUTEE != tc.inTEE {
			t.Errorf("%s: debuggable %v, bound to a TEE %v", name, cl.Debuggable, cl.BoundToCPUTEE)
		}
	}
}

// TestMalformed: each claim in a form that its profile does not have, rightly signed.
func TestMalformed(t *testing.T) {
	component := func(change func(map[int]any)) any {
		c := map[int]any{1: "SPE", 2: hash(1), 5: hash(2)}
		change(c)
		return []any{c}
	}
	for _, p := range profiles {
		for name, change := range map[string]func(*device){
			"no nonce":                   func(d *device) { delete(d.claims, "nonce") },
			"null nonce":                 func(d *device) { d.claims["nonce"] = nil },
			"nonce of numbers":           func(d *device) { d.claims["nonce"] = make([]int, 32) },
			"two nonces":                 func(d *device) { d.claims["nonce"] = []any{hash(1), hash(2)} },
			"short nonce":                func(d *device) { d.claims["nonce"] = hash(1)[:31] },
			"long nonce":                 func(d *device) { d.claims["nonce"] = make([]byte, 65) },
			"no instance":                func(d *device) { delete(d.claims, "instance") },
			"instance of another type":   func(d *device) { d.claims["instance"] = append([]byte{2}, hash(0xdd)...) },
			"short instance":             func(d *device) { d.claims["instance"] = append([]byte{1}, hash(0xdd)[:31]...) },
			"no implementation":          func(d *device) { delete(d.claims, "implementation") },
			"long implementation":        func(d *device) { d.claims["implementation"] = make([]byte, 33) },
			"no client":                  func(d *device) { delete(d.claims, "client") },
			"client 0":                   func(d *device) { d.claims["client"] = 0 },
			"client of 33 bits":          func(d *device) { d.claims["client"] = int64(1) << 32 },
			"client of text":             func(d *device) { d.claims["client"] = "17" },
			"no lifecycle":               func(d *device) { delete(d.claims, "lifecycle") },
			"null lifecycle":             func(d *device) { d.claims["lifecycle"] = nil },
			"negative lifecycle":         func(d *device) { d.claims["lifecycle"] = -1 },
			"lifecycle between states":   func(d *device) { d.claims["lifecycle"] = 0x3100 },
			"lifecycle behind all":       func(d *device) { d.claims["lifecycle"] = 0x7000 },
			"lifecycle of floats":        func(d *device) { d.claims["lifecycle"] = 12288.0 },
			"short seed":                 func(d *device) { d.claims["seed"] = hash(1)[:7] },
			"long seed":                  func(d *device) { d.claims["seed"] = make([]byte, 33) },
			"certification in letters":   func(d *device) { d.claims["certification"] = "a604565272829-10010" },
			"certification and a line":   func(d *device) { d.claims["certification"] = "0604565272829-10010\n" },
			"no components":              func(d *device) { delete(d.claims, "components") },
			"empty components":           func(d *device) { d.claims["components"] = []any{} },
			"components in a map":        func(d *device) { d.claims["components"] = map[int]any{1: 2} },
			"component without value":    func(d *device) { d.claims["components"] = component(func(c map[int]any) { delete(c, 2) }) },
			"component without signer":   func(d *device) { d.claims["components"] = component(func(c map[int]any) { delete(c, 5) }) },
			"component of short value":   func(d *device) { d.claims["components"] = component(func(c map[int]any) { c[2] = hash(1)[:20] }) },
			"component of numbered type": func(d *device) { d.claims["components"] = component(func(c map[int]any) { c[1] = 1 }) },
			"empty service":              func(d *device) { d.claims["service"] = "" },
			"endless service":            func(d *device) { d.claims["service"] = strings.Repeat("a", 4096) },
			"too many claims": func(d *device) {
				d.extra = map[any]any{}
				for i := range 100 {
					d.extra[i+100000] = i
				}
			},
			"two profiles": func(d *device) { d.extra = map[any]any{265: p, -75000: p} },
		} {
			d := newDevice(t, p)
			change(d)
			_, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.Unbound(), nil, now)
			if err == nil {
				t.Errorf("%s, %s: accepted", p, name)
				continue
			}
			wantError(t, err, "psa.format", attest.ReasonMalformed)
		}
	}
	for name, d := range map[string]*device{"1": newDevice(t, psa.Profile1), "2": newDevice(t, psa.Profile2)} {
		d.claims["profile"] = "http://example.com/psa"
		_, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.Unbound(), nil, now)
		if e, ok := errors.AsType[*attest.Error](err); !ok || e.Reason != attest.ReasonUnsupported {
			t.Errorf("unknown profile under the label of %s: %v", name, err)
		}
	}
}

// TestOptional: what a profile lets be absent, and what is nobody's claim.
func TestOptional(t *testing.T) {
	for _, p := range profiles {
		d := newDevice(t, p)
		delete(d.claims, "service")
		delete(d.claims, "certification")
		d.extra = map[any]any{"text": 1, 99999: []int{1}}
		if p == psa.Profile1 {
			delete(d.claims, "profile") // as its first devices do
			delete(d.claims, "components")
			d.claims["none"] = 1
		} else {
			delete(d.claims, "seed")
		}
		cl, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.BindTo(transcript), nil, now)
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		if n := len(cl.Measurements); (n == 0) != (p == psa.Profile1) || cl.PSA.(*psa.Claims).Profile != p {
			t.Errorf("%s: claims %+v", p, cl)
		}
	}
	// Neither measured nor said to be unmeasured, or both.
	for _, none := range []any{0, 2, 1, nil} {
		d := newDevice(t, psa.Profile1)
		d.claims["none"] = none
		if none == nil {
			delete(d.claims, "components")
		}
		_, err := d.verifier(t).Verify(t.Context(), evidence(d.token(t)), attest.Unbound(), nil, now)
		wantError(t, err, "psa.format", attest.ReasonMalformed)
	}
}

// TestTrust: who vouches for which key.
func TestTrust(t *testing.T) {
	d := newDevice(t, psa.ProfileRFC)
	stranger := newDevice(t, psa.ProfileRFC)
	other := d.endorsement()
	other.InstanceID = append([]byte{1}, hash(0xde)...)
	class := d.endorsement()
	class.InstanceID = nil
	wrongCurve := d.endorsement()
	wrongCurve.Key = &cosetest.Key(t, elliptic.P384()).PublicKey
	for name, tc := range map[string]struct {
		cfg       psa.Config
		check     string
		reason    attest.Reason
		simulated bool
	}{
		"own key":           {cfg: psa.Config{Endorsements: []arm.Endorsement{d.endorsement()}}},
		"key of its make":   {cfg: psa.Config{Endorsements: []arm.Endorsement{class}}},
		"test key":          {cfg: psa.Config{TestEndorsements: []arm.Endorsement{d.endorsement()}}, simulated: true},
		"nothing endorsed":  {check: "psa.key", reason: attest.ReasonChain},
		"another instance":  {cfg: psa.Config{Endorsements: []arm.Endorsement{other}}, check: "psa.key", reason: attest.ReasonChain},
		"another's key":     {cfg: psa.Config{Endorsements: []arm.Endorsement{stranger.endorsement()}}, check: "psa.signature", reason: attest.ReasonSignature},
		"key of wrong kind": {cfg: psa.Config{Endorsements: []arm.Endorsement{wrongCurve}}, check: "psa.signature", reason: attest.ReasonSignature},
		"unendorsed, bound": {cfg: psa.Config{Unendorsed: true}, check: "psa.key", reason: attest.ReasonChain},
		"unendorsed, and a key that is not its own": {
			cfg: psa.Config{Unendorsed: true, Endorsements: []arm.Endorsement{stranger.endorsement()}}, check: "psa.signature", reason: attest.ReasonSignature,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cl, err := newVerifier(t, tc.cfg).Verify(t.Context(), evidence(d.token(t)), attest.BindTo(transcript), nil, now)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cl.Simulated != tc.simulated {
				t.Errorf("simulated %v", cl.Simulated)
			}
		})
	}
	// Looking at a token whose device nobody knows.
	cl, err := newVerifier(t, psa.Config{Unendorsed: true}).Verify(t.Context(), evidence(d.token(t)), attest.Unbound(), nil, now)
	if err != nil || cl.Bound || !cl.Simulated || cl.Collateral.State != attest.CollateralExpired || cl.PSA.(*psa.Claims).Key != "" {
		t.Errorf("unendorsed: %+v, %v", cl, err)
	}
	if _, err := psa.New(psa.Config{Endorsements: []arm.Endorsement{{Key: &d.key.PublicKey}}}); err == nil {
		t.Error("a key of nobody was taken")
	}
}

// TestEveryByte: no flipped bit of a token is accepted, and no cut.
func TestEveryByte(t *testing.T) {
	if testing.Short() {
		t.Skip("some thousands of signatures")
	}
	d := newDevice(t, psa.ProfileRFC)
	v, token := d.verifier(t), d.token(t)
	for bit := range 8 * len(token) {
		token[bit/8] ^= 1 << (bit % 8)
		if _, err := v.Verify(t.Context(), evidence(token), attest.Unbound(), nil, now); err == nil {
			t.Errorf("bit %d: accepted", bit)
		}
		token[bit/8] ^= 1 << (bit % 8)
	}
	for n := range token {
		if _, err := v.Verify(t.Context(), evidence(token[:n]), attest.Unbound(), nil, now); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, p := range profiles {
		f.Add(newDevice(f, p).token(f))
	}
	v := newVerifier(f, psa.Config{Unendorsed: true})
	strict := newDevice(f, psa.ProfileRFC).verifier(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		cl, err := v.Verify(t.Context(), evidence(b), attest.Unbound(), nil, now)
		if err == nil && (!cl.Simulated || cl.Bound) {
			t.Error("claims of a token that nobody checked say neither simulated nor unbound")
		}
		if e, ok := errors.AsType[*attest.Error](err); err != nil && (!ok || e.Reason == attest.ReasonInternal) {
			t.Errorf("%v", err)
		}
		if _, err := strict.Verify(t.Context(), evidence(b), attest.Unbound(), nil, now); err == nil {
			t.Error("accepted under a key that was made just now")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	d := newDevice(b, psa.ProfileRFC)
	v, ev := d.verifier(b), evidence(d.token(b))
	benchtest.Loop(b, func() error {
		_, err := v.Verify(b.Context(), ev, attest.BindTo(transcript), nil, now)
		return err
	})
}

// BenchmarkFloor: the token's signature. Nothing is remembered, so cold is warm.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.P256) }
