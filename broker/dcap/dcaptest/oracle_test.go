package dcaptest

// These tests hold package dcap against Google's go-tdx-guest, which in turn
// says that the simulated platform is a platform.

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/verify"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
)

type getter map[string]attest.CollateralItem

func (g getter) Get(u string) (map[string][]string, []byte, error) {
	it, ok := g[u]
	if !ok {
		return nil, nil, fmt.Errorf("no %s", u)
	}
	chain := url.QueryEscape(string(it.IssuerChain))
	return map[string][]string{pcs.TcbInfoIssuerChainPhrase: {chain}, pcs.SgxQeIdentityIssuerChainPhrase: {chain}}, it.Data, nil
}

// library asks go-tdx-guest; a panic counts as a refusal.
func library(p *Platform, raw []byte, c Collateral, now time.Time) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	roots := x509.NewCertPool()
	roots.AddCert(p.Root.Certificate)
	fmspc := hex.EncodeToString(p.PCK.FMSPC[:])
	return verify.RawTdxQuote(raw, &verify.Options{
		GetCollateral: true,
		TrustedRoots:  roots,
		Now:           &verify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now},
		Getter: getter{
			pcs.TcbInfoURL(fmspc): c[attest.CollateralRef{Kind: attest.TDXTCBInfo, Key: fmspc}],
			pcs.QeIdentityURL():   c[attest.CollateralRef{Kind: attest.TDXQEID}],
		},
	})
}

func ours(t *testing.T, p *Platform, raw []byte, c Collateral, now time.Time) (dcap.Result, error) {
	q, err := dcap.ParseQuote(raw)
	if err != nil {
		return dcap.Result{}, err
	}
	return dcap.New(dcap.Config{TestRoots: []*x509.Certificate{p.Root.Certificate}}).Verify(t.Context(), dcap.NewTrail("test"), q, c, now)
}

func oraclePlatform(t *testing.T, now time.Time) *Platform {
	p, err := New(now)
	if err != nil {
		t.Fatal(err)
	}
	p.prefix = "" // the library wants Intel's very names
	if err := p.Certify(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOracle(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ref := func(p *Platform) attest.CollateralRef {
		return attest.CollateralRef{Kind: attest.TDXTCBInfo, Key: hex.EncodeToString(p.PCK.FMSPC[:])}
	}
	for name, tc := range map[string]struct {
		change        func(p *Platform, r *dcap.TDReport)
		collateral    func(p *Platform, c Collateral)
		library, ours bool // accepted
		status        string
	}{
		"up to date":      {library: true, ours: true, status: "UpToDate"},
		"platform 1.0":    {change: func(_ *Platform, r *dcap.TDReport) { r.TEETCBSVN = [16]byte{5, 0, 3} }, library: true, ours: true, status: "UpToDate"},
		"module signer":   {change: func(_ *Platform, r *dcap.TDReport) { r.MRSIGNERSEAM[0] = 1 }},
		"QE signer":       {change: func(p *Platform, _ *dcap.TDReport) { p.QE.MRSIGNER[0] = 1 }},
		"module revoked":  {change: func(p *Platform, _ *dcap.TDReport) { p.TDX.TDXModuleIdentities[0].TCBLevels[0].TCBStatus = "Revoked" }},
		"TCB info lapsed": {change: func(p *Platform, _ *dcap.TDReport) { p.TDX.NextUpdate = now.AddDate(0, 0, -1) }},
		"other FMSPC":     {change: func(p *Platform, _ *dcap.TDReport) { p.TDX.FMSPC = "000000000000" }},
		// Where we differ (LIBRARIES §3).
		"defect 1: platform OutOfDate": {change: func(p *Platform, _ *dcap.TDReport) { p.TDX.TCBLevels[0].TCBStatus = "OutOfDate" }, library: true, ours: true, status: "OutOfDate"},
		"defect 1: platform Revoked":   {change: func(p *Platform, _ *dcap.TDReport) { p.TDX.TCBLevels[0].TCBStatus = "Revoked" }, library: true},
		"defect 2: TCBINFO beside tcbInfo": {library: true, ours: false,
			change: func(p *Platform, _ *dcap.TDReport) { p.TDX.TDXModuleIdentities[0].TCBLevels[0].TCBStatus = "Revoked" },
			collateral: func(p *Platform, c Collateral) {
				it := c[ref(p)]
				raw := bytes.TrimPrefix(it.Data, []byte(`{"tcbInfo":`))
				raw = raw[:bytes.LastIndex(raw, []byte(`,"signature"`))]
				forged := bytes.ReplaceAll(raw, []byte("Revoked"), []byte("UpToDate"))
				it.Data = append(bytes.TrimSuffix(it.Data, []byte("}")), fmt.Sprintf(`,"TCBINFO":%s}`, forged)...)
				c[ref(p)] = it
			}},
		"defect 4: issueDate": {change: func(p *Platform, _ *dcap.TDReport) { p.TDX.IssueDate = now.AddDate(0, 0, 1) }, library: true},
		"defect 4: SWHardeningNeeded": {change: func(p *Platform, r *dcap.TDReport) {
			r.TEETCBSVN[1] = 0
			p.TDX.TCBLevels[0].TCBStatus = "SWHardeningNeeded"
		}, ours: true, status: "SWHardeningNeeded"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, version := range []uint16{4, 5} {
				p := oraclePlatform(t, now)
				r := p.TD()
				if tc.change != nil {
					tc.change(p, &r)
				}
				c, err := p.Collateral()
				if err != nil {
					t.Fatal(err)
				}
				if tc.collateral != nil {
					tc.collateral(p, c)
				}
				raw, err := p.QuoteTD(version, r)
				if err != nil {
					t.Fatal(err)
				}
				if err := library(p, raw, c, now); (err == nil) != tc.library {
					t.Errorf("v%d: the library says %v", version, err)
				}
				res, err := ours(t, p, raw, c, now)
				if (err == nil) != tc.ours || res.TCB.Status != tc.status {
					t.Errorf("v%d: we say %v, %q", version, err, res.TCB.Status)
				}
			}
		})
	}
}

// TestOracleMutations: what we accept, the library accepts.
func TestOracleMutations(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	p := oraclePlatform(t, now)
	c, err := p.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for _, version := range []uint16{4, 5} {
		raw, err := p.QuoteTD(version, p.TD())
		if err != nil {
			t.Fatal(err)
		}
		for range 1500 {
			b := bytes.Clone(raw)
			b[rng.IntN(len(b))] ^= byte(1 << rng.IntN(8))
			if _, err := ours(t, p, b, c, now); err != nil {
				continue
			}
			accepted++
			if err := library(p, b, c, now); err != nil {
				t.Errorf("v%d: we accept what the library refuses: %v", version, err)
			}
		}
	}
	t.Logf("%d of 3000 mutations accepted by both", accepted)
}
