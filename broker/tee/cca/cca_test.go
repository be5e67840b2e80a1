package cca_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/cose/cosetest"
	"github.com/claviger/claviger/broker/tee/cca"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// Labels of claims (RMM specification §A7.2.3).
const (
	profile = 265
	nonce   = 10

	implementation = 2396
	instance       = 256
	config         = 2401
	lifecycle      = 2395
	components     = 2399
	service        = 2400
	hashAlgorithm  = 2402

	personalization = 44235
	realmHash       = 44236
	publicKey       = 44237
	initial         = 44238
	extensible      = 44239
	publicKeyHash   = 44240
)

// sim is a simulated platform with a realm.
type sim struct {
	cpak, rak       *ecdsa.PrivateKey
	platform, realm map[any]any
	wrap            func(platform, realm []byte) any // nil: tag 399
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// newSim is of the profiles of the draft.
func newSim(t testing.TB) *sim {
	t.Helper()
	d := transcript.Digest64()
	s := &sim{cpak: cosetest.Key(t, elliptic.P256()), rak: cosetest.Key(t, elliptic.P384())}
	s.platform = map[any]any{
		profile: cca.ProfilePlatform, implementation: fill(0xaa, 32), instance: append([]byte{1}, fill(0xdd, 32)...), config: fill(0xcf, 4),
		lifecycle: 0x3003, hashAlgorithm: "sha-256", service: "https://verifier.example",
		components: []any{
			map[int]any{1: "RMM", 2: fill(1, 32), 4: "0.5", 5: fill(2, 32), 6: "sha-256"},
			map[int]any{1: "AP_BL31", 2: fill(3, 32), 5: fill(2, 32)},
		},
	}
	s.realm = map[any]any{
		profile: cca.ProfileRealm, nonce: d[:], personalization: fill(0x5a, 64), realmHash: "sha-512", initial: fill(0x10, 64),
		extensible: []any{fill(0, 64), fill(0x11, 64), fill(0x12, 64), fill(0x13, 64)}, publicKeyHash: "sha-256",
	}
	s.setKey(t, s.coseKey(t))
	return s
}

// newLegacySim is of RMM 1.0's first releases.
func newLegacySim(t testing.TB) *sim {
	t.Helper()
	s := newSim(t)
	s.platform[profile] = cca.ProfilePlatformLegacy
	delete(s.realm, profile)
	s.setKey(t, s.point(t))
	return s
}

func newCMWSim(t testing.TB) *sim {
	t.Helper()
	s := newSim(t)
	s.wrap = func(platform, realm []byte) any {
		return map[any]any{44234: []any{263, platform}, 44241: []any{263, realm}}
	}
	return s
}

func (s *sim) point(t testing.TB) []byte {
	t.Helper()
	b, err := s.rak.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *sim) coseKey(t testing.TB) []byte {
	t.Helper()
	p := s.point(t)
	return cosetest.Encode(t, map[int]any{1: 2, -1: 2, -2: p[1:49], -3: p[49:]})
}

// setKey has the realm show a key, and the platform vouch for it.
func (s *sim) setKey(t testing.TB, b []byte) {
	t.Helper()
	s.realm[publicKey] = b
	h := sha256.Sum256(b)
	s.platform[nonce] = h[:]
}

func (s *sim) platformToken(t testing.TB) []byte {
	return cosetest.Sign(t, s.cpak, cosetest.Encode(t, s.platform))
}
func (s *sim) realmToken(t testing.TB) []byte {
	return cosetest.Sign(t, s.rak, cosetest.Encode(t, s.realm))
}

func (s *sim) token(t testing.TB) []byte {
	t.Helper()
	return s.join(t, s.platformToken(t), s.realmToken(t))
}

func (s *sim) join(t testing.TB, platform, realm []byte) []byte {
	t.Helper()
	if s.wrap != nil {
		return append([]byte{0xd9, 0x03, 0x8b}, cosetest.Encode(t, s.wrap(platform, realm))...)
	}
	return append([]byte{0xd9, 0x01, 0x8f}, cosetest.Encode(t, map[int]any{44234: platform, 44241: realm})...)
}

func (s *sim) endorsement() arm.Endorsement {
	return arm.Endorsement{InstanceID: append([]byte{1}, fill(0xdd, 32)...), ImplementationID: fill(0xaa, 32), Key: &s.cpak.PublicKey}
}

func (s *sim) verifier(t testing.TB) *cca.Verifier {
	t.Helper()
	return newVerifier(t, cca.Config{Endorsements: []arm.Endorsement{s.endorsement()}})
}

func newVerifier(t testing.TB, cfg cca.Config) *cca.Verifier {
	t.Helper()
	v, err := cca.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func evidence(token []byte) attest.Evidence {
	return attest.Evidence{Type: attest.TypeCCA, Report: token}
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

var sims = map[string]func(testing.TB) *sim{"draft": newSim, "legacy": newLegacySim, "cmw": newCMWSim}

func TestConformance(t *testing.T) {
	cpak := newSim(t)
	s := teetest.Suite{New: func(t *testing.T) attest.Verifier { return cpak.verifier(t) }}
	for _, name := range []string{"draft", "legacy", "cmw"} {
		p := sims[name](t)
		p.cpak = cpak.cpak
		s.Good = append(s.Good, teetest.Vector{Name: name, Evidence: evidence(p.token(t)), Now: now, ReportData: p.realm[nonce].([]byte)})
	}
	teetest.Run(t, s)
}

func TestClaims(t *testing.T) {
	for name, newSim := range sims {
		s := newSim(t)
		cl, err := s.verifier(t).Verify(t.Context(), evidence(s.token(t)), attest.BindTo(transcript), nil, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		hexOf := func(b byte, n int) string { return hex.EncodeToString(fill(b, n)) }
		instance := "01" + hexOf(0xdd, 32)
		if !cl.Bound || cl.Debuggable || !cl.BoundToCPUTEE || cl.Simulated || cl.ChipID != instance || cl.HardwareModel != "CCA" || cl.HostData != hexOf(0x5a, 64) ||
			!maps.Equal(cl.Measurements, map[string]string{
				"rim": hexOf(0x10, 64), "rem0": hexOf(0, 64), "rem1": hexOf(0x11, 64), "rem2": hexOf(0x12, 64), "rem3": hexOf(0x13, 64),
				"platform_rmm": hexOf(1, 32), "platform_ap_bl31": hexOf(3, 32),
			}) {
			t.Errorf("%s: claims %+v", name, cl)
		}
		c := cl.CCA.(*cca.Claims)
		p, r := c.Platform, c.Realm
		if p.Profile != s.platform[profile] || p.InstanceID != instance || p.ImplementationID != hexOf(0xaa, 32) || p.Config != "cfcfcfcf" || p.Lifecycle != 0x3003 ||
			p.LifecycleState != arm.Secured || p.HashAlgorithm != "sha-256" || p.VerificationService != "https://verifier.example" || len(p.SoftwareComponents) != 2 ||
			len(p.Key) != 64 || p.KeyPublished != "" {
			t.Errorf("%s: platform %+v", name, p)
		}
		if (r.Profile == "") != (name == "legacy") || r.PersonalizationValue != cl.HostData || r.HashAlgorithm != "sha-512" || r.PublicKeyHashAlgorithm != "sha-256" ||
			r.PublicKey != hex.EncodeToString(s.realm[publicKey].([]byte)) || r.InitialMeasurement != hexOf(0x10, 64) || len(r.ExtensibleMeasurements) != 4 {
			t.Errorf("%s: realm %+v", name, r)
		}
	}
}

// TestAttacks: parts of real tokens put together in other ways, and keys of the attacker's.
func TestAttacks(t *testing.T) {
	type attack func(t *testing.T, s, other *sim) []byte
	for name, tc := range map[string]struct {
		token  attack
		check  string
		reason attest.Reason
	}{
		"a realm key that the platform does not name": {func(t *testing.T, s, other *sim) []byte {
			return s.join(t, s.platformToken(t), other.realmToken(t))
		}, "cca.binder", attest.ReasonChain},
		"a realm token by another key": {func(t *testing.T, s, other *sim) []byte {
			return s.join(t, s.platformToken(t), cosetest.Sign(t, other.rak, cosetest.Encode(t, s.realm)))
		}, "cca.realm_signature", attest.ReasonSignature},
		"a platform token by the realm's key": {func(t *testing.T, s, _ *sim) []byte {
			return s.join(t, cosetest.Sign(t, s.rak, cosetest.Encode(t, s.platform)), s.realmToken(t))
		}, "cca.platform_signature", attest.ReasonSignature},
		"a platform token by nobody's key": {func(t *testing.T, s, other *sim) []byte {
			return s.join(t, other.platformToken(t), other.realmToken(t))
		}, "cca.platform_signature", attest.ReasonSignature},
		"a realm token by the platform's key": {func(t *testing.T, s, _ *sim) []byte {
			return s.join(t, s.platformToken(t), cosetest.Sign(t, s.cpak, cosetest.Encode(t, s.realm)))
		}, "cca.realm_signature", attest.ReasonSignature},
		"the tokens exchanged": {func(t *testing.T, s, _ *sim) []byte {
			return s.join(t, s.realmToken(t), s.platformToken(t))
		}, "cca.format", attest.ReasonUnsupported}, // the realm's profile is no platform's
		"the challenge cut to half its hash": {func(t *testing.T, s, _ *sim) []byte {
			h := sha512.Sum512(s.realm[publicKey].([]byte))
			s.platform[nonce], s.realm[publicKeyHash] = h[:32], "sha-512"
			return s.token(t)
		}, "cca.binder", attest.ReasonChain},
		"the hash of another algorithm": {func(t *testing.T, s, _ *sim) []byte {
			s.realm[publicKeyHash] = "sha-384"
			return s.token(t)
		}, "cca.binder", attest.ReasonChain},
		"the hash of the key in its other encoding": {func(t *testing.T, s, _ *sim) []byte {
			s.setKey(t, s.point(t))
			s.realm[publicKey] = s.coseKey(t)
			return s.token(t)
		}, "cca.binder", attest.ReasonChain},
		"another request": {func(t *testing.T, s, _ *sim) []byte {
			s.realm[nonce] = fill(9, 64)
			return s.token(t)
		}, "cca.binding", attest.ReasonBinding},
		"32 bytes of the digest": {func(t *testing.T, s, _ *sim) []byte {
			d := transcript.Digest32()
			s.realm[nonce] = append(d[:], make([]byte, 32)...)
			return s.token(t)
		}, "cca.binding", attest.ReasonBinding},
		"another instance": {func(t *testing.T, s, _ *sim) []byte {
			s.platform[instance] = append([]byte{1}, fill(0xde, 32)...)
			return s.token(t)
		}, "cca.key", attest.ReasonChain},
	} {
		t.Run(name, func(t *testing.T) {
			s, other := newSim(t), newSim(t)
			v := s.verifier(t)
			// A platform token that has verified opens no door to others.
			if _, err := v.Verify(t.Context(), evidence(s.token(t)), attest.BindTo(transcript), nil, now); err != nil {
				t.Fatal(err)
			}
			cl, err := v.Verify(t.Context(), evidence(tc.token(t, s, other)), attest.BindTo(transcript), nil, now)
			wantError(t, err, tc.check, tc.reason)
			if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Outcome != attest.Failed || cl.Checks[n-1].Name != tc.check {
				t.Errorf("checks %+v do not end with %s", cl.Checks, tc.check)
			}
		})
	}
}

// TestStates: whatever is not secured is debuggable, for the baseline to deny.
func TestStates(t *testing.T) {
	for state, debuggable := range map[int]bool{0: true, 0x1000: true, 0x2000: true, 0x3000: false, 0x30ff: false, 0x4000: true, 0x5000: true, 0x6000: true} {
		s := newSim(t)
		s.platform[lifecycle] = state
		cl, err := s.verifier(t).Verify(t.Context(), evidence(s.token(t)), attest.BindTo(transcript), nil, now)
		if err != nil || cl.Debuggable != debuggable {
			t.Errorf("%#x: debuggable %v, %v", state, cl.Debuggable, err)
		}
	}
}

// TestMalformed: each claim in a form that it does not have, rightly signed.
func TestMalformed(t *testing.T) {
	without := func(m func(*sim) map[any]any, label int) func(*sim) { return func(s *sim) { delete(m(s), label) } }
	with := func(m func(*sim) map[any]any, label int, v any) func(*sim) { return func(s *sim) { m(s)[label] = v } }
	platform := func(s *sim) map[any]any { return s.platform }
	realm := func(s *sim) map[any]any { return s.realm }
	point := newSim(t).point(t)
	key := func(typ, curve any, x, y any) []byte {
		return cosetest.Encode(t, map[int]any{1: typ, -1: curve, -2: x, -3: y})
	}
	for name, tc := range map[string]struct {
		change      func(*sim)
		unsupported bool
	}{
		"unknown platform profile":   {with(platform, profile, "http://arm.com/PSA-SSD/1.0.0"), true},
		"unknown realm profile":      {with(realm, profile, "tag:arm.com,2023:realm#2.0.0"), true},
		"unknown key hash":           {with(realm, publicKeyHash, "sha-1"), true},
		"key hash by number":         {with(realm, publicKeyHash, 1), false},
		"key on P-256":               {with(realm, publicKey, key(2, 1, point[1:33], point[33:65])), true},
		"key of another type":        {with(realm, publicKey, key(1, 2, point[1:49], point[49:])), true},
		"compressed key":             {with(realm, publicKey, key(2, 2, point[1:49], true)), false},
		"short coordinate":           {with(realm, publicKey, key(2, 2, point[1:48], point[49:])), true},
		"point off the curve":        {with(realm, publicKey, key(2, 2, point[1:49], fill(1, 48))), false},
		"point at infinity":          {with(realm, publicKey, key(2, 2, fill(0, 48), fill(0, 48))), false},
		"bare point under a profile": {with(realm, publicKey, point), false},
		"COSE_Key without a profile": {without(realm, profile), false},
		"profile of null":            {with(platform, profile, nil), false},
		"two challenges":             {with(platform, nonce, []any{fill(1, 32), fill(2, 32)}), false},
		"challenge of numbers":       {with(realm, nonce, make([]int, 64)), false},
		"short challenge":            {with(realm, nonce, fill(1, 32)), false},
		"long challenge":             {with(realm, nonce, fill(1, 65)), false},
		"short platform challenge":   {with(platform, nonce, fill(1, 31)), false},
		"instance of another type":   {with(platform, instance, fill(2, 33)), false},
		"long implementation":        {with(platform, implementation, fill(2, 33)), false},
		"empty config":               {with(platform, config, []byte{}), false},
		"lifecycle between states":   {with(platform, lifecycle, 0x3100), false},
		"negative lifecycle":         {with(platform, lifecycle, -1), false},
		"no components":              {with(platform, components, []any{}), false},
		"component without value":    {with(platform, components, []any{map[int]any{5: fill(1, 32)}}), false},
		"component without signer":   {with(platform, components, []any{map[int]any{2: fill(1, 32)}}), false},
		"endless service":            {with(platform, service, strings.Repeat("a", 4096)), false},
		"unknown platform hash":      {with(platform, hashAlgorithm, "none"), true},
		"unknown realm hash":         {with(realm, realmHash, "md5"), true},
		"short personalization":      {with(realm, personalization, fill(1, 63)), false},
		"initial measurement of 20":  {with(realm, initial, fill(1, 20)), false},
		"three extensible ones":      {with(realm, extensible, []any{fill(1, 32), fill(1, 32), fill(1, 32)}), false},
		"five extensible ones":       {with(realm, extensible, []any{fill(1, 32), fill(1, 32), fill(1, 32), fill(1, 32), fill(1, 32)}), false},
		"an extensible one of null":  {with(realm, extensible, []any{fill(1, 32), fill(1, 32), nil, fill(1, 32)}), false},
		"an extensible one of 96":    {with(realm, extensible, []any{fill(1, 32), fill(1, 32), fill(1, 96), fill(1, 32)}), false},
		"too many claims in the realm": {func(s *sim) {
			for i := range 100 {
				s.realm[100000+i] = i
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t)
			tc.change(s)
			want := attest.ReasonMalformed
			if tc.unsupported {
				want = attest.ReasonUnsupported
			}
			_, err := s.verifier(t).Verify(t.Context(), evidence(s.token(t)), attest.Unbound(), nil, now)
			wantError(t, err, "cca.format", want)
		})
	}
}

// TestMandatory: no claim may be missing, but for the verification service and the realm's profile.
func TestMandatory(t *testing.T) {
	for token, labels := range map[string][]int{
		"platform": {profile, nonce, implementation, instance, config, lifecycle, components, hashAlgorithm},
		"realm":    {nonce, personalization, realmHash, publicKey, initial, extensible, publicKeyHash},
	} {
		for _, label := range labels {
			s := newSim(t)
			delete(map[string]map[any]any{"platform": s.platform, "realm": s.realm}[token], label)
			_, err := s.verifier(t).Verify(t.Context(), evidence(s.token(t)), attest.Unbound(), nil, now)
			if err == nil {
				t.Errorf("%s without %d: accepted", token, label)
				continue
			}
			wantError(t, err, "cca.format", attest.ReasonMalformed)
		}
	}
	s := newSim(t)
	delete(s.platform, service)
	s.platform["text"], s.realm[99999] = 1, []int{1} // nobody's claims
	if _, err := s.verifier(t).Verify(t.Context(), evidence(s.token(t)), attest.BindTo(transcript), nil, now); err != nil {
		t.Errorf("without a verification service: %v", err)
	}
}

// TestEnvelope: what holds the two tokens, and is signed by nobody.
func TestEnvelope(t *testing.T) {
	s := newSim(t)
	v, p, r := s.verifier(t), s.platformToken(t), s.realmToken(t)
	tagged := func(tag byte, m any) []byte {
		high := map[byte]byte{0x8f: 1, 0x8b: 3, 0x90: 1}[tag]
		return append([]byte{0xd9, high, tag}, cosetest.Encode(t, m)...)
	}
	for name, tc := range map[string]struct {
		token []byte
		ok    bool
	}{
		"tag 399":                 {tagged(0x8f, map[int]any{44234: p, 44241: r}), true},
		"tag 907":                 {tagged(0x8b, map[int]any{44234: []any{263, p}, 44241: []any{263, r}}), true},
		"a type of collection":    {tagged(0x8b, map[any]any{"__cmwc_t": "tag:x", 44234: []any{263, p}, 44241: []any{263, r}}), true},
		"device claims beside it": {tagged(0x8b, map[any]any{44258: []any{601, []byte{0xa0}}, 44234: []any{263, p}, 44241: []any{263, r}}), true},
		"records under tag 399":   {tagged(0x8f, map[int]any{44234: []any{263, p}, 44241: []any{263, r}}), false},
		"tokens under tag 907":    {tagged(0x8b, map[int]any{44234: p, 44241: r}), false},
		"another content format":  {tagged(0x8b, map[int]any{44234: []any{263, p}, 44241: []any{601, r}}), false},
		"a record of three":       {tagged(0x8b, map[int]any{44234: []any{263, p, 4}, 44241: []any{263, r}}), false},
		"a record of null":        {tagged(0x8b, map[int]any{44234: nil, 44241: []any{263, r}}), false},
		"another tag":             {tagged(0x90, map[int]any{44234: p, 44241: r}), false},
		"no tag":                  {cosetest.Encode(t, map[int]any{44234: p, 44241: r}), false},
		"no platform":             {tagged(0x8f, map[int]any{44241: r}), false},
		"no realm":                {tagged(0x8f, map[int]any{44234: p}), false},
		"the platform twice":      {append([]byte{0xd9, 1, 0x8f, 0xa3}, bytes.Repeat(append([]byte{0x19, 0xac, 0xca}, cosetest.Encode(t, p)...), 3)...), false},
		"a byte behind it":        {append(tagged(0x8f, map[int]any{44234: p, 44241: r}), 0), false},
		"nothing":                 {nil, false},
		"only a tag":              {[]byte{0xd9, 1, 0x8f}, false},
	} {
		_, err := v.Verify(t.Context(), evidence(tc.token), attest.BindTo(transcript), nil, now)
		if tc.ok && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !tc.ok {
			wantError(t, err, "cca.format", attest.ReasonMalformed)
		}
	}
	big := evidence(append(tagged(0x8f, map[int]any{44234: p, 44241: r}), make([]byte, attest.MaxReportSize)...))
	_, err := v.Verify(t.Context(), big, attest.BindTo(transcript), nil, now)
	wantError(t, err, "cca.format", attest.ReasonMalformed)
}

// TestTrust: who vouches for which key.
func TestTrust(t *testing.T) {
	s, stranger := newSim(t), newSim(t)
	other := s.endorsement()
	other.InstanceID = append([]byte{1}, fill(0xde, 32)...)
	class := s.endorsement()
	class.InstanceID = nil
	wrongCurve := s.endorsement()
	wrongCurve.Key = &s.rak.PublicKey
	for name, tc := range map[string]struct {
		cfg       cca.Config
		check     string
		reason    attest.Reason
		simulated bool
	}{
		"own key":           {cfg: cca.Config{Endorsements: []arm.Endorsement{s.endorsement()}}},
		"key of its make":   {cfg: cca.Config{Endorsements: []arm.Endorsement{class}}},
		"test key":          {cfg: cca.Config{TestEndorsements: []arm.Endorsement{s.endorsement()}}, simulated: true},
		"nothing endorsed":  {check: "cca.key", reason: attest.ReasonChain},
		"another instance":  {cfg: cca.Config{Endorsements: []arm.Endorsement{other}}, check: "cca.key", reason: attest.ReasonChain},
		"another's key":     {cfg: cca.Config{Endorsements: []arm.Endorsement{stranger.endorsement()}}, check: "cca.platform_signature", reason: attest.ReasonSignature},
		"key of wrong kind": {cfg: cca.Config{Endorsements: []arm.Endorsement{wrongCurve}}, check: "cca.platform_signature", reason: attest.ReasonSignature},
		"unendorsed, bound": {cfg: cca.Config{Unendorsed: true}, check: "cca.key", reason: attest.ReasonChain},
		"unendorsed, and a key that is not its own": {
			cfg: cca.Config{Unendorsed: true, Endorsements: []arm.Endorsement{stranger.endorsement()}}, check: "cca.platform_signature", reason: attest.ReasonSignature,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cl, err := newVerifier(t, tc.cfg).Verify(t.Context(), evidence(s.token(t)), attest.BindTo(transcript), nil, now)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil || cl.Simulated != tc.simulated {
				t.Errorf("simulated %v, %v", cl.Simulated, err)
			}
		})
	}
	// Looking at a token whose platform nobody knows: the rest is still checked.
	look := newVerifier(t, cca.Config{Unendorsed: true})
	cl, err := look.Verify(t.Context(), evidence(s.token(t)), attest.Unbound(), nil, now)
	if err != nil || cl.Bound || !cl.Simulated || cl.Collateral.State != attest.CollateralExpired || cl.CCA.(*cca.Claims).Platform.Key != "" {
		t.Errorf("unendorsed: %+v, %v", cl, err)
	}
	_, err = look.Verify(t.Context(), evidence(s.join(t, s.platformToken(t), stranger.realmToken(t))), attest.Unbound(), nil, now)
	wantError(t, err, "cca.binder", attest.ReasonChain)
	if _, err := cca.New(cca.Config{Endorsements: []arm.Endorsement{{Key: &s.cpak.PublicKey}}}); err == nil {
		t.Error("a key of nobody was taken")
	}
}

// TestEveryByte: no flipped bit of a token is accepted, and no cut.
func TestEveryByte(t *testing.T) {
	if testing.Short() {
		t.Skip("some thousands of signatures")
	}
	s := newCMWSim(t)
	v, token := s.verifier(t), s.token(t)
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
	for _, newSim := range sims {
		f.Add(newSim(f).token(f))
	}
	look := newVerifier(f, cca.Config{Unendorsed: true})
	strict := newSim(f).verifier(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		cl, err := look.Verify(t.Context(), evidence(b), attest.Unbound(), nil, now)
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
	s := benchSim(b)
	v := s.verifier(b)
	benchmark(b, s, func() *cca.Verifier { return v })
}

// BenchmarkVerifyCold has the platform's signature beside the realm's.
func BenchmarkVerifyCold(b *testing.B) {
	s := benchSim(b)
	benchmark(b, s, func() *cca.Verifier { return s.verifier(b) })
}

// benchSim has P-384 for both keys.
func benchSim(b *testing.B) *sim {
	s := newSim(b)
	s.cpak = cosetest.Key(b, elliptic.P384())
	return s
}

func benchmark(b *testing.B, s *sim, verifier func() *cca.Verifier) {
	ev := evidence(s.token(b))
	benchtest.Loop(b, func() error {
		_, err := verifier().Verify(b.Context(), ev, attest.BindTo(transcript), nil, now)
		return err
	})
}

// BenchmarkFloor: the realm's signature; the platform's is remembered.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.P384) }
