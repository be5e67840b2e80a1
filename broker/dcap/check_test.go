package dcap_test

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	tdxtesting "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
)

var rootCRL = attest.CollateralRef{Kind: attest.IntelRootCRL}

// TestCheckCollateralOfIntel: what Intel signed is genuine under its own name only.
func TestCheckCollateralOfIntel(t *testing.T) {
	issuers := func(header map[string][]string) []byte {
		for _, v := range header {
			s, err := url.QueryUnescape(v[0])
			if err != nil {
				t.Fatal(err)
			}
			return []byte(s)
		}
		return nil
	}
	genuine := map[attest.CollateralRef]attest.CollateralItem{
		{Kind: attest.TDXTCBInfo, Key: "50806f000000"}: {Data: testdata.TcbInfoBody, IssuerChain: issuers(tdxtesting.TcbInfoHeader)},
		{Kind: attest.TDXQEID}:                         {Data: testdata.QeIdentityBody, IssuerChain: issuers(tdxtesting.QeIdentityHeader)},
		{Kind: attest.PCKCRL, Key: "platform"}:         {Data: testdata.PckCrlBody, IssuerChain: issuers(tdxtesting.PckCrlHeader)},
		rootCRL:                                        {Data: testdata.RootCrlBody},
	}
	others := []attest.CollateralRef{
		{Kind: attest.TDXTCBInfo, Key: "50806f000001"}, {Kind: attest.SGXTCBInfo, Key: "50806f000000"}, {Kind: attest.SGXQEID},
		{Kind: attest.PCKCRL, Key: "processor"}, {Kind: attest.PCKCRL, Key: "root"}, {Kind: attest.PCKCRL},
	}
	v, c := dcap.New(dcap.Config{}), dcaptest.Collateral{rootCRL: genuine[rootCRL]}
	for of, it := range genuine {
		for ref := range genuine {
			err := v.CheckCollateral(t.Context(), ref, it, c)
			if ref == of && err != nil || ref != of && attest.ReasonOf(err) != attest.ReasonCollateralInvalid {
				t.Errorf("%s as %s: %v", of.Kind, ref.Kind, err)
			}
		}
		for _, ref := range others {
			if err := v.CheckCollateral(t.Context(), ref, it, c); attest.ReasonOf(err) != attest.ReasonCollateralInvalid {
				t.Errorf("%s as %s %q: %v", of.Kind, ref.Kind, ref.Key, err)
			}
		}
		if err := v.CheckCollateral(t.Context(), attest.CollateralRef{Kind: attest.SNPCRL}, it, c); err == nil {
			t.Error("a CRL of AMD is none of Intel's")
		}
		flipped := it
		flipped.Data = bytes.Clone(it.Data)
		flipped.Data[len(it.Data)*2/3] ^= 1
		if err := v.CheckCollateral(t.Context(), of, flipped, c); attest.ReasonOf(err) != attest.ReasonCollateralInvalid {
			t.Errorf("%s, a bit flipped: %v", of.Kind, err)
		}
	}
	// A PCK CRL of a folder need not have its issuers beside it.
	pck := attest.CollateralRef{Kind: attest.PCKCRL, Key: "platform"}
	if err := v.CheckCollateral(t.Context(), pck, attest.CollateralItem{Data: testdata.PckCrlBody}, c); err != nil {
		t.Error(err)
	}
}

// TestCheckCollateral: a self-made authority with Intel's names, a signer that
// may not sign, and one that is revoked.
func TestCheckCollateral(t *testing.T) {
	p, other := newPlatform(t), newPlatform(t)
	v := verifier(p)
	pemOf := func(c *dcaptest.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	tcb := attest.CollateralRef{Kind: attest.TDXTCBInfo, Key: hex.EncodeToString(p.PCK.FMSPC[:])}
	pck := attest.CollateralRef{Kind: attest.PCKCRL, Key: "platform"}
	good := collateral(t, p)
	check := func(what string, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral, want attest.Reason) {
		t.Helper()
		err := v.CheckCollateral(t.Context(), ref, it, c)
		if want == "" && err != nil || want != "" && (err == nil || attest.ReasonOf(err) != want) {
			t.Errorf("%s, %s: %v, want %q", ref.Kind, what, err, want)
		}
	}
	for ref, it := range good {
		check("genuine", ref, it, good, "")
		forged := collateral(t, other)[ref]
		check("of another root", ref, forged, good, attest.ReasonCollateralInvalid)
		check("of another root, whose CRL there is", ref, forged, collateral(t, other), attest.ReasonCollateralInvalid)
		forged.IssuerChain = it.IssuerChain
		check("of another root, the genuine chain beside it", ref, forged, good, attest.ReasonCollateralInvalid)
		if it.IssuerChain != nil {
			it.IssuerChain = nil
			check("no chain", ref, it, good, attest.ReasonCollateralInvalid)
		}
	}
	// The chain may leave the root out, and holds nothing else.
	it := good[pck]
	it.IssuerChain = pemOf(p.CA)
	check("without the root", pck, it, good, "")
	it.IssuerChain = append(pemOf(p.CA), pemOf(other.Root)...)
	check("with a foreign root", pck, it, good, attest.ReasonCollateralInvalid)
	it.IssuerChain = append(pemOf(p.Root), pemOf(p.Root)...)
	check("by the root", pck, it, good, attest.ReasonCollateralInvalid)

	// What a platform's own documents say of it does not matter: they may revoke it.
	p.RevokedByCA = []*big.Int{p.Leaf.SerialNumber}
	for i := range p.TDX.TCBLevels {
		p.TDX.TCBLevels[i].TCBStatus = "Revoked"
	}
	p.TDX.NextUpdate = p.TDX.IssueDate.Add(time.Second) // nor do dates
	revoking := collateral(t, p)
	check("revokes a leaf", pck, revoking[pck], revoking, "")
	check("revokes all levels", tcb, revoking[tcb], revoking, "")

	// Whoever has the key of a revoked certificate can sign anything.
	p.RevokedByRoot = []*big.Int{p.TCBSigning.SerialNumber, p.CA.SerialNumber}
	revoking = collateral(t, p)
	for ref, it := range revoking {
		want := attest.ReasonCollateralInvalid
		if ref == rootCRL {
			want = ""
		}
		check("by a revoked certificate", ref, it, revoking, want)
	}
	// Not known to be revoked is not the same as known not to be.
	none := dcaptest.Collateral{}
	foreign := dcaptest.Collateral{rootCRL: collateral(t, other)[rootCRL]}
	for _, c := range []dcaptest.Collateral{none, foreign} {
		check("no CRL of the root", tcb, good[tcb], c, attest.ReasonCollateralMissing)
		check("no CRL of the root", pck, good[pck], c, attest.ReasonCollateralMissing)
	}
	v = dcap.New(dcap.Config{TestRoots: []*x509.Certificate{p.Root.Certificate}, CollateralOptional: true})
	check("no CRL of the root, and that is allowed", tcb, good[tcb], none, "")
	check("revoked all the same", tcb, good[tcb], revoking, attest.ReasonCollateralInvalid)
}
