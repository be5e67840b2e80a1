package gce_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/tee/gce"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/broker/tpmquote"
	"github.com/claviger/claviger/broker/tpmquote/tpmquotetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// vtpmKey is one key for all tests: RSA keys take their time.
var vtpmKey = sync.OnceValues(tpmquotetest.NewKey)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

var bootLog, bootPCRs = tpmquotetest.Log(
	tpmquotetest.Event{PCR: 4, Type: 0x80000003, Data: "a boot loader"},
	tpmquotetest.Event{PCR: 8, Type: 0x0d, Data: "kernel_cmdline: /vmlinuz quiet\x00"},
)

// authority is a simulated CA of Google's.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issue(t testing.TB, tmpl *x509.Certificate, public crypto.PublicKey, parent *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if public == nil {
		public = &key.PublicKey
	}
	tmpl.SerialNumber = big.NewInt(int64(len(tmpl.Subject.CommonName)) + 7)
	tmpl.BasicConstraintsValid = true
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = now.AddDate(0, 0, -1), now.AddDate(10, 0, 0)
	}
	issuer, signer := tmpl, crypto.Signer(key)
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

func newCA(t testing.TB, name string, parent *authority) *authority {
	t.Helper()
	c, key := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "TEST SIMULATED " + name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, nil, parent)
	return &authority{c, key}
}

// property is a field of the security properties.
func property(tag int, v any) asn1.RawValue {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: der}
}

type instanceInfo struct {
	Zone          string `asn1:"utf8"`
	ProjectNumber int64
	ProjectID     string `asn1:"utf8"`
	InstanceID    int64
	InstanceName  string          `asn1:"utf8"`
	Security      []asn1.RawValue `asn1:"explicit,tag:0,optional"`
}

// sim is an SNP and a TDX machine, and the vTPM beside both.
type sim struct {
	ak           tpmquotetest.Key
	root, inter  *authority
	ark          *x509.Certificate // AMD's
	device       *teesim.Device
	platform     *dcaptest.Platform
	collateral   teetest.MapCollateral
	config       gce.Config
	info         instanceInfo
	leaf         x509.Certificate // of the attestation key, but for the extension
	reportData   [64]byte
	extra        []byte
	rawExtension []byte // in place of info
}

func newSim(t testing.TB) *sim {
	t.Helper()
	d32 := transcript.Digest32()
	s := &sim{
		root: newCA(t, "EK/AK CA Root", nil), reportData: transcript.Digest64(), extra: d32[:],
		info: instanceInfo{"us-central1-a", 101, "project-1", 218557372616137117, "vm-1", []asn1.RawValue{property(0, 3), property(1, true), property(2, true)}},
		leaf: x509.Certificate{Subject: pkix.Name{CommonName: "218557372616137117"}, KeyUsage: x509.KeyUsageDigitalSignature},
	}
	s.inter = newCA(t, "EK/AK CA Intermediate", s.root)
	root, err := teesim.NewRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	if s.device, err = root.NewDevice(teesim.DeviceOptions{NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(5, 0, 0)}); err != nil {
		t.Fatal(err)
	}
	if s.collateral, err = root.Collateral(now); err != nil {
		t.Fatal(err)
	}
	if s.platform, err = dcaptest.New(now); err != nil {
		t.Fatal(err)
	}
	intel, err := s.platform.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	for ref, it := range intel {
		s.collateral[ref] = it
	}
	if s.ak, err = vtpmKey(); err != nil {
		t.Fatal(err)
	}
	s.ark = root.ARK()
	s.config.AKRoots = []*x509.Certificate{s.root.cert}
	s.forget(t)
	return s
}

// forget replaces the verifiers of hardware by such as have seen nothing yet.
func (s *sim) forget(t testing.TB) {
	t.Helper()
	v, err := snp.New(snp.Config{TestRoots: []snp.TestRoot{{Product: "Milan", ARK: s.ark}}})
	if err != nil {
		t.Fatal(err)
	}
	s.config.SNP, s.config.TDX = v, tdx.New(tdx.Config{TestRoots: []*x509.Certificate{s.platform.Root.Certificate}})
}

// certificate is that of the attestation key.
func (s *sim) certificate(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der := s.rawExtension
	if der == nil {
		var err error
		if der, err = asn1.Marshal(s.info); err != nil {
			t.Fatal(err)
		}
	}
	tmpl := s.leaf
	if len(der) > 0 {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 1, 21}, Value: der}}
	}
	c, _ := issue(t, &tmpl, public, s.inter)
	return c.Raw
}

// parts are evidence before it is encoded.
type parts struct {
	report       attest.GCEReport
	endorsements []byte
	log          []byte
}

func (p parts) evidence(t testing.TB) attest.Evidence {
	t.Helper()
	raw, err := p.report.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return attest.Evidence{Type: attest.TypeGCE, Report: raw, Endorsements: p.endorsements, EventLog: p.log}
}

func (s *sim) parts(t testing.TB, hardware attest.Type) parts {
	t.Helper()
	p := parts{log: bootLog, report: attest.GCEReport{
		Hardware: hardware, AKCertificates: [][]byte{s.certificate(t, &s.ak.PublicKey), s.inter.cert.Raw},
	}}
	for _, pcr := range bootPCRs {
		p.report.PCRs = append(p.report.PCRs, attest.PCR{Index: pcr.Index, Digest: bytes.Clone(pcr.Digest)})
	}
	var err error
	if p.report.Quote, p.report.Signature, err = s.ak.Quote(s.extra, bootPCRs); err != nil {
		t.Fatal(err)
	}
	switch hardware {
	case attest.TypeSNP:
		ev, err := s.device.Evidence(s.reportData, teesim.ReportOptions{Measurement: teesim.Measurement("gce")})
		if err != nil {
			t.Fatal(err)
		}
		p.report.HardwareReport, p.endorsements = ev.Report, ev.Endorsements
	case attest.TypeTDX:
		td := s.platform.TD()
		td.REPORTDATA = s.reportData
		if p.report.HardwareReport, err = s.platform.QuoteTD(4, td); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (s *sim) verify(t testing.TB, ev attest.Evidence) (attest.Claims, error) {
	t.Helper()
	return gce.New(s.config).Verify(t.Context(), ev, attest.BindTo(transcript), s.collateral, now)
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

func TestConformance(t *testing.T) {
	s := newSim(t)
	// The suite binds to given bytes, the same in both fields; a request has a digest for each (TestClaims).
	s.extra = s.reportData[:]
	var good []teetest.Vector
	for hardware, needs := range map[attest.Type][]attest.CollateralKind{
		attest.TypeSNP: {attest.SNPCRL},
		attest.TypeTDX: {attest.TDXTCBInfo, attest.TDXQEID, attest.PCKCRL, attest.IntelRootCRL},
	} {
		p := s.parts(t, hardware)
		p.log = nil // types of events are not measured
		good = append(good, teetest.Vector{
			Name: string(hardware), Evidence: p.evidence(t), Collateral: s.collateral, Now: now, ReportData: s.reportData[:],
			NotYetValid: now.AddDate(0, 0, -2), Expired: now.AddDate(11, 0, 0), Needs: needs,
			// JSON, padded certificates: flips may be accepted if no claim changes. TestFlips looks closer.
			Unsigned: func(teetest.Part, int) bool { return true },
		})
	}
	teetest.Run(t, teetest.Suite{New: func(*testing.T) attest.Verifier { return gce.New(s.config) }, Good: good})
}

func TestClaims(t *testing.T) {
	s := newSim(t)
	for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		ev := s.parts(t, hardware).evidence(t)
		cl, err := s.verify(t, ev)
		if err != nil {
			t.Fatal(err)
		}
		c, tpm := cl.GCE.(*gce.Claims), cl.TPM.(*tpmquote.Claims)
		if !cl.Bound || !cl.BoundToCPUTEE || !cl.Simulated || cl.Debuggable || cl.Measurements["measurement"]+cl.Measurements["mrtd"] == "" ||
			cl.Measurements["pcr4"] != "" || cl.Measurements["vtpm_pcr4"] != hex.EncodeToString(bootPCRs[0].Digest) || cl.ReportData != hex.EncodeToString(s.reportData[:]) {
			t.Errorf("claims %+v", cl)
		}
		if tpm.EventLog != tpmquote.EventLogVerified || tpm.AK.Trust != tpmquote.TrustCertificate || tpm.AK.Algorithm != "RSA-2048" {
			t.Errorf("TPM claims %+v", tpm)
		}
		want := gce.Instance{Zone: "us-central1-a", ProjectID: "project-1", ProjectNumber: "101", ID: "218557372616137117", Name: "vm-1", SecurityVersion: 3}
		if c.Hardware != hardware || c.Instance == nil || *c.Instance != want {
			t.Errorf("GCE claims %+v", c)
		}
		// Looked at from a file, where no CA is known.
		s2 := *s
		s2.config.AKRoots = nil
		if _, err := gce.New(s2.config).Verify(t.Context(), ev, attest.Unbound(), s.collateral, now); attest.ReasonOf(err) != attest.ReasonChain {
			t.Errorf("a key for which nobody vouches: %v", err)
		}
		s2.config.Unvouched = true
		cl, err = gce.New(s2.config).Verify(t.Context(), ev, attest.Unbound(), s.collateral, now)
		if err != nil || cl.GCE.(*gce.Claims).Instance != nil || cl.TPM.(*tpmquote.Claims).AK.Trust != tpmquote.TrustNone || cl.Bound {
			t.Errorf("unbound, without CAs: %+v, %v", cl, err)
		}
	}
}

// TestForgeries: what an attacker can have, put together in every wrong way.
func TestForgeries(t *testing.T) {
	evil, err := tpmquotetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	requote := func(t *testing.T, p *parts, k tpmquotetest.Key, extra []byte) {
		t.Helper()
		var err error
		if p.report.Quote, p.report.Signature, err = k.Quote(extra, bootPCRs); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		before func(t *testing.T, s *sim)
		after  func(t *testing.T, s *sim, p *parts)
		check  string
		reason attest.Reason
	}{
		"quote of another request":  {before: func(_ *testing.T, s *sim) { s.extra = make([]byte, 32) }, check: "gce.binding", reason: attest.ReasonBinding},
		"report of another request": {before: func(_ *testing.T, s *sim) { s.reportData[0] ^= 1 }, check: "inner binding", reason: attest.ReasonBinding},
		// A TPM in software under a genuine report.
		"quote by another key": {after: func(t *testing.T, s *sim, p *parts) { requote(t, p, evil, s.extra) }, check: "gce.quote_signature", reason: attest.ReasonSignature},
		"with a certificate of its own": {after: func(t *testing.T, s *sim, p *parts) {
			requote(t, p, evil, s.extra)
			s.inter = newCA(t, "EK/AK CA Intermediate", newCA(t, "EK/AK CA Root", nil))
			p.report.AKCertificates = [][]byte{s.certificate(t, &evil.PublicKey), s.inter.cert.Raw}
		}, check: "gce.ak_certificate", reason: attest.ReasonChain},
		"an endorsement key's certificate": {before: func(_ *testing.T, s *sim) { s.leaf.KeyUsage = x509.KeyUsageKeyEncipherment }, check: "gce.ak_certificate", reason: attest.ReasonChain},
		"a CA":                             {before: func(_ *testing.T, s *sim) { s.leaf.IsCA, s.leaf.KeyUsage = true, x509.KeyUsageCertSign }, check: "gce.ak_certificate", reason: attest.ReasonChain},
		"expired": {before: func(_ *testing.T, s *sim) {
			s.leaf.NotBefore, s.leaf.NotAfter = now.AddDate(0, -2, 0), now.AddDate(0, -1, 0)
		}, check: "gce.ak_certificate", reason: attest.ReasonValidity},
		"not yet valid": {before: func(_ *testing.T, s *sim) {
			s.leaf.NotBefore, s.leaf.NotAfter = now.AddDate(0, 1, 0), now.AddDate(0, 2, 0)
		}, check: "gce.ak_certificate", reason: attest.ReasonValidity},
		"no intermediate":            {after: func(_ *testing.T, _ *sim, p *parts) { p.report.AKCertificates = p.report.AKCertificates[:1] }, check: "gce.ak_certificate", reason: attest.ReasonChain},
		"no CA configured":           {before: func(_ *testing.T, s *sim) { s.config.AKRoots = nil }, check: "gce.ak_certificate", reason: attest.ReasonChain},
		"junk for a certificate":     {after: func(_ *testing.T, _ *sim, p *parts) { p.report.AKCertificates[0] = []byte("junk") }, check: "gce.format", reason: attest.ReasonMalformed},
		"no certificate":             {after: func(_ *testing.T, _ *sim, p *parts) { p.report.AKCertificates = nil }, check: "gce.format", reason: attest.ReasonMalformed},
		"no instance":                {before: func(_ *testing.T, s *sim) { s.rawExtension = []byte{} }, check: "gce.instance", reason: attest.ReasonUnsupported},
		"junk for an instance":       {before: func(_ *testing.T, s *sim) { s.rawExtension = []byte{0x30, 0x03, 0x0c, 0x01} }, check: "gce.instance", reason: attest.ReasonMalformed},
		"a test machine of Google's": {before: func(_ *testing.T, s *sim) { s.info.Security[1] = property(1, false) }, check: "gce.instance", reason: attest.ReasonUnsupported},
		"no word on production":      {before: func(_ *testing.T, s *sim) { s.info.Security = nil }, check: "gce.instance", reason: attest.ReasonUnsupported},
		"production is a number":     {before: func(_ *testing.T, s *sim) { s.info.Security[1] = property(1, 1) }, check: "gce.instance", reason: attest.ReasonMalformed},
		"PCRs that were not quoted":  {after: func(_ *testing.T, _ *sim, p *parts) { p.report.PCRs[0].Digest[0] ^= 1 }, check: "gce.pcrs", reason: attest.ReasonMismatch},
		"a log of another boot": {after: func(_ *testing.T, _ *sim, p *parts) {
			p.log, _ = tpmquotetest.Log(tpmquotetest.Event{PCR: 4, Type: 0x80000003, Data: "another boot loader"})
		}, check: "gce.event_log", reason: attest.ReasonMismatch},
		"hardware of no type":  {after: func(_ *testing.T, _ *sim, p *parts) { p.report.Hardware = attest.TypeTPM }, check: "gce.format", reason: attest.ReasonUnsupported},
		"no verifier for it":   {before: func(_ *testing.T, s *sim) { s.config.SNP, s.config.TDX = nil, nil }, check: "gce.format", reason: attest.ReasonUnsupported},
		"oversized log":        {after: func(_ *testing.T, _ *sim, p *parts) { p.log = make([]byte, attest.MaxEventLogSize+1) }, check: "gce.format", reason: attest.ReasonMalformed},
		"quote that is no TPM": {after: func(_ *testing.T, _ *sim, p *parts) { p.report.Quote[0] ^= 1 }, check: "gce.format", reason: attest.ReasonMalformed},
	} {
		for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
			t.Run(name+" "+string(hardware), func(t *testing.T) {
				s := newSim(t)
				if tc.before != nil {
					tc.before(t, s)
				}
				p := s.parts(t, hardware)
				if tc.after != nil {
					tc.after(t, s, &p)
				}
				check := tc.check
				if check == "inner binding" {
					check = map[attest.Type]string{attest.TypeSNP: "snp.report_data", attest.TypeTDX: "tdx.binding"}[hardware]
				}
				cl, err := s.verify(t, p.evidence(t))
				wantError(t, err, check, tc.reason)
				if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Outcome != attest.Failed || cl.Checks[n-1].Name != check {
					t.Errorf("checks %+v do not end with %s", cl.Checks, check)
				}
			})
		}
	}
}

// TestFlips: no flipped bit in what is signed is accepted.
func TestFlips(t *testing.T) {
	s := newSim(t)
	v := gce.New(s.config)
	for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		p := s.parts(t, hardware)
		signed := map[string][]byte{
			"quote": p.report.Quote, "signature": p.report.Signature, "certificate": p.report.AKCertificates[0], "PCR": p.report.PCRs[0].Digest,
			"report": p.report.HardwareReport[:0x2a0],
		}
		if hardware == attest.TypeTDX {
			signed["report"] = p.report.HardwareReport[:48+584]
		}
		for name, b := range signed {
			for bit := 0; bit < 8*len(b); bit += 7 {
				b[bit/8] ^= 1 << (bit % 8)
				if _, err := v.Verify(t.Context(), p.evidence(t), attest.Unbound(), s.collateral, now); err == nil {
					t.Errorf("%s: %s: bit %d: accepted", hardware, name, bit)
				}
				b[bit/8] ^= 1 << (bit % 8)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	s := newSim(f)
	for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		ev := s.parts(f, hardware).evidence(f)
		f.Add(ev.Report, ev.Endorsements, ev.EventLog)
	}
	f.Fuzz(func(t *testing.T, report, endorsements, log []byte) {
		cl, err := s.verify(t, attest.Evidence{Type: attest.TypeGCE, Report: report, Endorsements: endorsements, EventLog: log})
		if err == nil && cl.Measurements["vtpm_pcr4"] != hex.EncodeToString(bootPCRs[0].Digest) {
			t.Errorf("a forged quote was believed: %+v", cl)
		}
		if err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Errorf("refused without a reason: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	each(b, func(b *testing.B, s *sim, hardware attest.Type) {
		v, ev := gce.New(s.config), s.parts(b, hardware).evidence(b)
		benchtest.Loop(b, func() error {
			_, err := v.Verify(b.Context(), ev, attest.BindTo(transcript), s.collateral, now)
			return err
		})
	})
}

// BenchmarkVerifyCold has all signatures that the hardware's report needs when cold and those of the AK certificates.
func BenchmarkVerifyCold(b *testing.B) {
	each(b, func(b *testing.B, s *sim, hardware attest.Type) {
		ev := s.parts(b, hardware).evidence(b)
		benchtest.Loop(b, func() error {
			s.forget(b)
			_, err := gce.New(s.config).Verify(b.Context(), ev, attest.BindTo(transcript), s.collateral, now)
			return err
		})
	})
}

// BenchmarkFloor: the quote's signature by the vTPM (RSA-2048), and that of the hardware's report.
func BenchmarkFloor(b *testing.B) {
	each(b, func(b *testing.B, _ *sim, hardware attest.Type) {
		report := map[attest.Type]benchtest.Signature{attest.TypeSNP: benchtest.P384, attest.TypeTDX: benchtest.P256}
		benchtest.Floor(b, benchtest.RSA2048, report[hardware])
	})
}

func each(b *testing.B, run func(*testing.B, *sim, attest.Type)) {
	for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		b.Run(string(hardware), func(b *testing.B) { run(b, newSim(b), hardware) })
	}
}
