package keystone_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha3"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/edwards25519"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/keystone"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// shared reads a file under ../shared/evidence/keystone/keystone, or skips the test.
func shared(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "shared", "evidence", "keystone", "keystone", path))
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	return b
}

func newVerifier(t testing.TB, cfg keystone.Config) *keystone.Verifier {
	t.Helper()
	v, err := keystone.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

func evidence(report []byte) attest.Evidence {
	return attest.Evidence{Type: attest.TypeKeystone, Report: report}
}

// TestSharedEvidence: each file that INDEX.md names under keystone. They were
// made as upstream's boot ROM does, so that the monitor's key is weak in the good ones too.
func TestSharedEvidence(t *testing.T) {
	device := [32]byte(shared(t, "synthetic/dev_test_pub.bin"))
	nonce := shared(t, "synthetic/nonce.bin")
	monitor := [64]byte(shared(t, "synthetic/sm_hash.bin"))
	enclave := hex.EncodeToString(shared(t, "synthetic/enclave_hash.bin"))
	for _, tc := range []struct {
		file   string
		check  string
		reason attest.Reason
	}{
		{file: "synthetic/report_good.bin"},
		{file: "synthetic/report_good.compact.bin"},
		{file: "synthetic/report_good.json"},
		// Its signatures hold, though somebody else than the monitor made them.
		{file: "synthetic/forged_via_weak_sm_key.bin"},
		// Upstream takes it: it does not look behind data_len, nor does it stop others from doing so.
		{"synthetic/unsigned_tail_modified.bin", "keystone.format", attest.ReasonMalformed},
		{"synthetic/neg_datalen_2000.bin", "keystone.format", attest.ReasonMalformed},
		{"synthetic/neg_attacker_device_key.bin", "keystone.device", attest.ReasonChain},
		{"synthetic/neg_enclave_hash_flipped.bin", "keystone.enclave_signature", attest.ReasonSignature},
		{"synthetic/neg_enclave_signature_flipped.bin", "keystone.enclave_signature", attest.ReasonSignature},
		{"synthetic/neg_nonce_flipped.bin", "keystone.enclave_signature", attest.ReasonSignature},
		{"synthetic/neg_sm_key_not_endorsed.bin", "keystone.monitor_signature", attest.ReasonSignature},
		{"synthetic/neg_sm_signature_flipped.bin", "keystone.monitor_signature", attest.ReasonSignature},
		{"issue-361/report_zero_sm.json", "keystone.device", attest.ReasonChain},
	} {
		t.Run(tc.file, func(t *testing.T) {
			v := newVerifier(t, keystone.Config{DeviceKeys: [][32]byte{device}, Monitors: [][64]byte{monitor}})
			cl, err := v.Verify(t.Context(), evidence(shared(t, tc.file)), attest.Unbound(), nil, now)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := cl.Keystone.(*keystone.Claims)
			forged := strings.Contains(tc.file, "forged")
			if !c.WeakSMKey || !cl.Debuggable || !c.DevEndorsed || !cl.Simulated || !c.SMEndorsed || !cl.BoundToCPUTEE || (c.EnclaveHash == enclave) == forged {
				t.Errorf("claims %+v, %+v", cl, c)
			}
			if forged {
				return
			}
			if cl, err := v.Verify(t.Context(), evidence(shared(t, tc.file)), attest.BindExact(nonce), nil, now); err != nil || !cl.Bound {
				t.Errorf("bound to its nonce: %v", err)
			}
		})
	}
}

// TestZeroKeys: all zeros is a point of order 4, and no key, even where no device needs to be endorsed.
func TestZeroKeys(t *testing.T) {
	_, err := newVerifier(t, keystone.Config{Unendorsed: true}).Verify(t.Context(), evidence(shared(t, "issue-361/report_zero_sm.json")), attest.Unbound(), nil, now)
	wantError(t, err, "keystone.monitor_signature", attest.ReasonSignature)
}

// key is a key pair of Keystone's signatures, made and used as its C does.
type key struct {
	s      *edwards25519.Scalar
	prefix []byte
	public [32]byte
}

func newKey(seed []byte) key {
	h := sha3.Sum512(seed)
	s, err := new(edwards25519.Scalar).SetBytesWithClamping(h[:32])
	if err != nil {
		panic(err)
	}
	return key{s, h[32:], [32]byte(new(edwards25519.Point).ScalarBaseMult(s).Bytes())}
}

func (k key) sign(message []byte) []byte {
	r := uniform(k.prefix, message)
	point := new(edwards25519.Point).ScalarBaseMult(r).Bytes()
	c := uniform(point, k.public[:], message)
	return append(point, new(edwards25519.Scalar).MultiplyAdd(c, k.s, r).Bytes()...)
}

func uniform(parts ...[]byte) *edwards25519.Scalar {
	h := sha3.New512()
	for _, p := range parts {
		h.Write(p)
	}
	s, err := new(edwards25519.Scalar).SetUniformBytes(h.Sum(nil))
	if err != nil {
		panic(err)
	}
	return s
}

// sim is a simulated device: a boot ROM, a monitor and an enclave.
type sim struct {
	device, monitor          key
	smHash, enclaveHash      []byte
	data                     []byte
	smSignature, enclaveSign []byte // made by report if nil
}

func newSim() *sim {
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // never fails
	d := transcript.Digest64()
	return &sim{
		device: newKey(append(seed, 1)), monitor: newKey(append(seed, 2)),
		smHash: bytes.Repeat([]byte{0x5a}, 64), enclaveHash: bytes.Repeat([]byte{0xe0}, 64), data: d[:],
	}
}

// report is the struct, or with compact the struct without the unused part of data.
func (s *sim) report(compact bool) []byte {
	signed := append(binary.LittleEndian.AppendUint64(slices.Clone(s.enclaveHash), uint64(len(s.data))), s.data...)
	enclave, monitor := s.enclaveSign, s.smSignature
	if enclave == nil {
		enclave = s.monitor.sign(signed)
	}
	if monitor == nil {
		monitor = s.device.sign(slices.Concat(s.smHash, s.monitor.public[:]))
	}
	b := signed
	if !compact {
		b = append(b, make([]byte, 1024-len(s.data))...)
	}
	return slices.Concat(b, enclave, s.smHash, s.monitor.public[:], monitor, s.device.public[:])
}

func (s *sim) json(t testing.TB) []byte {
	t.Helper()
	b := s.report(true)
	n := len(s.data)
	cut := func(size int) string {
		x := hex.EncodeToString(b[:size])
		b = b[size:]
		return x
	}
	hash := cut(64)
	b = b[8:]
	data, sig := cut(n), cut(64)
	doc := map[string]any{
		"enclave":          map[string]any{"hash": hash, "datalen": n, "data": data, "signature": sig},
		"security_monitor": map[string]any{"hash": cut(64), "pubkey": cut(32), "signature": cut(64)},
		"device_pubkey":    cut(32),
	}
	out, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *sim) config() keystone.Config {
	return keystone.Config{DeviceKeys: [][32]byte{s.device.public}, Monitors: [][64]byte{[64]byte(s.smHash)}}
}

func TestConformance(t *testing.T) {
	s := newSim()
	suite := teetest.Suite{New: func(t *testing.T) attest.Verifier { return newVerifier(t, s.config()) }}
	for name, report := range map[string][]byte{"struct": s.report(false), "compact": s.report(true), "json": s.json(t)} {
		v := teetest.Vector{Name: name, Evidence: evidence(report), Now: now, ReportData: s.data}
		if name == "json" { // upper case of a hex digit and of a name
			v.Unsigned = func(teetest.Part, int) bool { return true }
		}
		suite.Good = append(suite.Good, v)
	}
	teetest.Run(t, suite)
}

// TestEveryBit: no flipped bit of a report is accepted, and no cut.
func TestEveryBit(t *testing.T) {
	s := newSim()
	v := newVerifier(t, s.config())
	report := s.report(false)
	for bit := range 8 * len(report) {
		report[bit/8] ^= 1 << (bit % 8)
		if _, err := v.Verify(t.Context(), evidence(report), attest.Unbound(), nil, now); err == nil {
			t.Errorf("bit %d: accepted", bit)
		}
		report[bit/8] ^= 1 << (bit % 8)
	}
	for n := range report {
		if _, err := v.Verify(t.Context(), evidence(report[:n]), attest.Unbound(), nil, now); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
}

func TestClaims(t *testing.T) {
	s := newSim()
	for name, report := range map[string][]byte{"struct": s.report(false), "compact": s.report(true), "json": s.json(t)} {
		cl, err := newVerifier(t, s.config()).Verify(t.Context(), evidence(report), attest.BindTo(transcript), nil, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c := cl.Keystone.(*keystone.Claims)
		if !cl.Bound || cl.Debuggable || cl.Simulated || !cl.BoundToCPUTEE || cl.TCB.Status != attest.TCBUnknown || cl.ChipID != hex.EncodeToString(s.device.public[:]) ||
			cl.Measurements["enclave_hash"] != hex.EncodeToString(s.enclaveHash) || cl.Measurements["sm_hash"] != hex.EncodeToString(s.smHash) || cl.ReportData != hex.EncodeToString(s.data) {
			t.Errorf("%s: claims %+v", name, cl)
		}
		if c.WeakSMKey || !c.SMEndorsed || !c.DevEndorsed || c.SMPublicKey != hex.EncodeToString(s.monitor.public[:]) {
			t.Errorf("%s: Keystone claims %+v", name, c)
		}
	}
	// A device signs for any monitor.
	cfg := s.config()
	cfg.Monitors = nil
	cl, err := newVerifier(t, cfg).Verify(t.Context(), evidence(s.report(false)), attest.BindTo(transcript), nil, now)
	if err != nil || cl.BoundToCPUTEE || cl.Keystone.(*keystone.Claims).SMEndorsed {
		t.Errorf("a monitor that nobody endorsed: %+v, %v", cl, err)
	}
	// Looked at from a file.
	cl, err = newVerifier(t, keystone.Config{Unendorsed: true}).Verify(t.Context(), evidence(s.report(false)), attest.Unbound(), nil, now)
	if err != nil || !cl.Simulated || cl.BoundToCPUTEE || cl.Bound || cl.Keystone.(*keystone.Claims).DevEndorsed {
		t.Errorf("a device that nobody endorsed: %+v, %v", cl, err)
	}
	_, err = newVerifier(t, keystone.Config{Unendorsed: true}).Verify(t.Context(), evidence(s.report(false)), attest.BindTo(transcript), nil, now)
	wantError(t, err, "keystone.device", attest.ReasonChain)
}

// TestWeakKey: a monitor's key from upstream's derivation is found out, for each
// first byte of the device's secret, and only under its own monitor's hash.
func TestWeakKey(t *testing.T) {
	s := newSim()
	v := newVerifier(t, s.config())
	for _, secret0 := range []byte{0, 8, 0x7f, 0xff} {
		for _, tc := range []struct {
			hash0 byte
			weak  bool
		}{{s.smHash[0], true}, {s.smHash[0] + 1, false}} {
			seed := sha3.Sum512([]byte{secret0, tc.hash0})
			s.monitor = newKey(seed[:32])
			cl, err := v.Verify(t.Context(), evidence(s.report(false)), attest.BindTo(transcript), nil, now)
			if err != nil || cl.Keystone.(*keystone.Claims).WeakSMKey != tc.weak || cl.Debuggable != tc.weak {
				t.Errorf("secret %#x, hash %#x: weak %t, %v", secret0, tc.hash0, cl.Debuggable, err)
			}
		}
	}
}

// TestForgeries: what an attacker can have, put together in every wrong way.
func TestForgeries(t *testing.T) {
	report := func(edit func(*sim)) func(*sim) []byte {
		return func(s *sim) []byte { edit(s); return s.report(false) }
	}
	// order4 is a point of order 4 (all zeros). Under it, R = S·B - k·A holds for a quarter of all messages.
	var order4 [32]byte
	identity := edwards25519.NewIdentityPoint().Bytes()
	for name, tc := range map[string]struct {
		report func(*sim) []byte
		check  string
		reason attest.Reason
	}{
		"of another request":       {report(func(s *sim) { s.data = make([]byte, 64) }), "keystone.binding", attest.ReasonBinding},
		"data with a tail":         {report(func(s *sim) { s.data = append(s.data, 0) }), "keystone.binding", attest.ReasonBinding},
		"no data":                  {report(func(s *sim) { s.data = nil }), "keystone.binding", attest.ReasonBinding},
		"another device":           {report(func(s *sim) { s.device = newSim().device }), "keystone.device", attest.ReasonChain},
		"another device's name":    {report(func(s *sim) { o := s.device.public; s.device = newSim().device; s.device.public = o }), "keystone.monitor_signature", attest.ReasonSignature},
		"another device's monitor": {report(func(s *sim) { s.smSignature = newSim().device.sign(slices.Concat(s.smHash, s.monitor.public[:])) }), "keystone.monitor_signature", attest.ReasonSignature},
		"a monitor that was not booted": {func(s *sim) []byte {
			s.smSignature = s.device.sign(slices.Concat(s.smHash, s.monitor.public[:]))
			s.smHash = bytes.Repeat([]byte{0x5b}, 64)
			return s.report(false)
		}, "keystone.monitor_signature", attest.ReasonSignature},
		"a key that is not the monitor's": {func(s *sim) []byte {
			s.smSignature = s.device.sign(slices.Concat(s.smHash, s.monitor.public[:]))
			s.monitor = newSim().monitor
			return s.report(false)
		}, "keystone.monitor_signature", attest.ReasonSignature},
		"signed by the device alone": {report(func(s *sim) { s.enclaveSign = s.device.sign(slices.Concat(s.enclaveHash, s.data)) }), "keystone.enclave_signature", attest.ReasonSignature},
		"two signatures exchanged": {report(func(s *sim) {
			s.enclaveSign = s.device.sign(slices.Concat(s.smHash, s.monitor.public[:]))
		}), "keystone.enclave_signature", attest.ReasonSignature},
		"zeros for a signature": {report(func(s *sim) { s.enclaveSign = make([]byte, 64) }), "keystone.enclave_signature", attest.ReasonSignature},
		// S + L is the same number modulo the group's order.
		"S not reduced":              {report(func(s *sim) { s.enclaveSign = addOrder(s.monitor.sign(signed(s))) }), "keystone.enclave_signature", attest.ReasonSignature},
		"S of the device unreduced":  {report(func(s *sim) { s.smSignature = addOrder(s.device.sign(slices.Concat(s.smHash, s.monitor.public[:]))) }), "keystone.monitor_signature", attest.ReasonSignature},
		"a monitor's key of order 4": {report(func(s *sim) { s.monitor.public = order4 }), "keystone.monitor_signature", attest.ReasonSignature},
		"the identity for a key":     {report(func(s *sim) { s.monitor.public = [32]byte(identity) }), "keystone.monitor_signature", attest.ReasonSignature},
		// y = p+1 is another encoding of y = 1.
		"a key not reduced": {report(func(s *sim) {
			s.monitor.public = [32]byte(append([]byte{0xee}, append(bytes.Repeat([]byte{0xff}, 30), 0x7f)...))
		}), "keystone.monitor_signature", attest.ReasonSignature},
		"no point for a key":     {report(func(s *sim) { s.monitor.public = [32]byte{2} }), "keystone.monitor_signature", attest.ReasonSignature},
		"RFC 8032's Ed25519":     {standardEd25519, "keystone.enclave_signature", attest.ReasonSignature},
		"data_len of 1025":       {func(s *sim) []byte { return withLength(s.report(false), 1025) }, "keystone.format", attest.ReasonMalformed},
		"data_len of 2^64-1":     {func(s *sim) []byte { return withLength(s.report(false), 1<<64-1) }, "keystone.format", attest.ReasonMalformed},
		"data_len cut short":     {func(s *sim) []byte { return withLength(s.report(false), 63) }, "keystone.format", attest.ReasonMalformed},
		"data_len over the data": {func(s *sim) []byte { return withLength(s.report(false), 65) }, "keystone.binding", attest.ReasonBinding},
		"compact, too long":      {func(s *sim) []byte { return withLength(s.report(true), 65) }, "keystone.format", attest.ReasonMalformed},
		"too short":              {func(s *sim) []byte { return s.report(true)[:327] }, "keystone.format", attest.ReasonMalformed},
		"an unsigned tail":       {func(s *sim) []byte { b := s.report(false); b[72+1023] = 1; return b }, "keystone.format", attest.ReasonMalformed},
		"JSON that is none":      {func(*sim) []byte { return []byte("{") }, "keystone.format", attest.ReasonMalformed},
		"empty JSON":             {func(*sim) []byte { return []byte("{}") }, "keystone.format", attest.ReasonMalformed},
		"JSON without end":       {func(*sim) []byte { return append([]byte("{"), make([]byte, 9000)...) }, "keystone.format", attest.ReasonMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim()
			v := newVerifier(t, s.config())
			cl, err := v.Verify(t.Context(), evidence(tc.report(s)), attest.BindTo(transcript), nil, now)
			wantError(t, err, tc.check, tc.reason)
			if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Outcome != attest.Failed || cl.Checks[n-1].Name != tc.check {
				t.Errorf("checks %+v do not end with %s", cl.Checks, tc.check)
			}
		})
	}
}

// TestJSON: lengths in the JSON form are those of the struct.
func TestJSON(t *testing.T) {
	s := newSim()
	good := string(s.json(t))
	v := newVerifier(t, s.config())
	for name, bad := range map[string]string{
		"datalen":    strings.Replace(good, `"datalen":64`, `"datalen":63`, 1),
		"no datalen": strings.Replace(good, `"datalen":64`, `"datalen":-1`, 1),
		"odd hash":   strings.Replace(good, hex.EncodeToString(s.smHash), hex.EncodeToString(s.smHash)[1:], 1),
		"short hash": strings.Replace(good, hex.EncodeToString(s.smHash), hex.EncodeToString(s.smHash)[2:], 1),
		"long key":   strings.Replace(good, hex.EncodeToString(s.device.public[:]), "00"+hex.EncodeToString(s.device.public[:]), 1),
		"twice":      strings.Replace(good, `"datalen":64`, `"datalen":64,"datalen":64`, 1),
		"other case": strings.Replace(good, `"datalen":64`, `"DataLen":64`, 1),
		"trailing":   good + "{}",
		"NUL":        strings.Replace(good, `"datalen":64`, `"datalen":64,"data\u0000":""`, 1),
		"no hex":     strings.Replace(good, hex.EncodeToString(s.data), strings.Repeat("zz", 64), 1),
	} {
		if bad == good {
			t.Fatalf("%s: nothing was changed", name)
		}
		_, err := v.Verify(t.Context(), evidence([]byte(bad)), attest.BindTo(transcript), nil, now)
		wantError(t, err, "keystone.format", attest.ReasonMalformed)
	}
}

// standardEd25519 is a report whose monitor signs as RFC 8032 has it.
func standardEd25519(s *sim) []byte {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	s.monitor.public = [32]byte(public)
	s.enclaveSign = ed25519.Sign(private, signed(s))
	return s.report(false)
}

func signed(s *sim) []byte { return s.report(true)[:72+len(s.data)] }

// addOrder adds L, the order of the group, to S.
func addOrder(signature []byte) []byte {
	l, err := hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	if err != nil {
		panic(err)
	}
	out, carry := slices.Clone(signature), 0
	for i, b := range l {
		carry += int(out[32+i]) + int(b)
		out[32+i], carry = byte(carry), carry>>8
	}
	return out
}

func withLength(report []byte, n uint64) []byte {
	binary.LittleEndian.PutUint64(report[64:], n)
	return report
}

// TestConfig: no key under which everybody can sign is taken for a device's.
func TestConfig(t *testing.T) {
	for name, k := range map[string][32]byte{"zeros": {}, "the identity": {1}, "no point": {2}} {
		if _, err := keystone.New(keystone.Config{DeviceKeys: [][32]byte{k}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// y+p is another encoding of y; of those below 19, some are points of large order.
	tried := 0
	for y := range 19 {
		k := [32]byte(slices.Concat([]byte{byte(0xed + y)}, bytes.Repeat([]byte{0xff}, 30), []byte{0x7f}))
		p, err := new(edwards25519.Point).SetBytes(k[:])
		if err != nil || new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1 {
			continue
		}
		tried++
		if _, err := keystone.New(keystone.Config{DeviceKeys: [][32]byte{[32]byte(p.Bytes())}}); err != nil {
			t.Errorf("y = %d: %v", y, err)
		}
		if _, err := keystone.New(keystone.Config{DeviceKeys: [][32]byte{k}}); err == nil {
			t.Errorf("y = %d + p: accepted", y)
		}
	}
	if tried == 0 {
		t.Error("no such point was found: nothing was tested")
	}
	s := newSim()
	_, err := newVerifier(t, keystone.Config{}).Verify(t.Context(), evidence(s.report(false)), attest.Unbound(), nil, now)
	wantError(t, err, "keystone.device", attest.ReasonChain)
}

// FuzzVerify: whatever the bytes, no panic, and nothing is believed that was not signed.
func FuzzVerify(f *testing.F) {
	s := newSim()
	s.device, s.monitor = newKey([]byte("device")), newKey([]byte("monitor")) // the same in each process
	v := newVerifier(f, s.config())
	f.Add(s.report(false))
	f.Add(s.report(true))
	f.Add(s.json(f))
	f.Add(withLength(s.report(false), 2000))
	f.Fuzz(func(t *testing.T, report []byte) {
		cl, err := v.Verify(t.Context(), evidence(report), attest.Unbound(), nil, now)
		if err == nil && (cl.Measurements["enclave_hash"] != hex.EncodeToString(s.enclaveHash) || cl.ReportData != hex.EncodeToString(s.data)) {
			t.Errorf("a forged report was believed: %+v", cl)
		}
		if err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Errorf("refused without a reason: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := newSim()
	v := newVerifier(b, s.config())
	benchmark(b, s, func() *keystone.Verifier { return v })
}

// BenchmarkVerifyCold has two signatures, and 256 derivations of weak keys.
func BenchmarkVerifyCold(b *testing.B) {
	s := newSim()
	benchmark(b, s, func() *keystone.Verifier { return newVerifier(b, s.config()) })
}

func benchmark(b *testing.B, s *sim, verifier func() *keystone.Verifier) {
	ev := evidence(s.report(false))
	benchtest.Loop(b, func() error {
		_, err := verifier().Verify(b.Context(), ev, attest.BindTo(transcript), nil, now)
		return err
	})
}

// BenchmarkFloor: the monitor's signature over the enclave; the device's over the monitor is
// remembered. It is the standard library's Ed25519: with SHA-512, and the quicker check.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.Ed25519) }
