package snp

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	sevdata "github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
)

// TestCheckCollateralOfAMD: what AMD signed is genuine under its own name only.
func TestCheckCollateralOfAMD(t *testing.T) {
	v := newVerifier(t, Config{})
	lf, err := parseLeaf(sevdata.VcekBytes, keyVCEK)
	if err != nil {
		t.Fatal(err)
	}
	vcek := "milan/" + hex.EncodeToString(lf.kds.hwid) + "/" + tcbHex(lf.kds.tcb)
	otherTCB := vcek[:len(vcek)-1] + "f"
	for what, c := range map[string]struct {
		data    []byte
		kind    attest.CollateralKind
		genuine string
		others  []string
	}{
		"VCEK": {sevdata.VcekBytes, attest.SNPVCEK, vcek, []string{
			"genoa/" + strings.TrimPrefix(vcek, "milan/"), otherTCB, "milan/" + strings.Repeat("00", 64) + vcek[len(vcek)-17:], "milan", ""}},
		"ASK":  {trust.AskArkMilanVcekBytes, attest.SNPChain, "milan/vcek", []string{"milan/vlek", "genoa/vcek", "turin/vcek", "milan/", "milan", "", "rome/vcek"}},
		"ASVK": {trust.AskArkTurinVlekBytes, attest.SNPChain, "turin/vlek", []string{"turin/vcek", "milan/vlek", "turin/none"}},
	} {
		if err := v.CheckCollateral(t.Context(), attest.CollateralRef{Kind: c.kind, Key: c.genuine}, attest.CollateralItem{Data: c.data}, teetest.MapCollateral{}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, key := range c.others {
			err := v.CheckCollateral(t.Context(), attest.CollateralRef{Kind: c.kind, Key: key}, attest.CollateralItem{Data: c.data}, teetest.MapCollateral{})
			if attest.ReasonOf(err) != attest.ReasonCollateralInvalid {
				t.Errorf("%s as %s: %v", what, key, err)
			}
		}
		for _, kind := range []attest.CollateralKind{attest.SNPVCEK, attest.SNPChain, attest.SNPCRL} {
			err := v.CheckCollateral(t.Context(), attest.CollateralRef{Kind: kind, Key: c.genuine}, attest.CollateralItem{Data: c.data}, teetest.MapCollateral{})
			if kind != c.kind && attest.ReasonOf(err) != attest.ReasonCollateralInvalid {
				t.Errorf("%s as %s: %v", what, kind, err)
			}
		}
	}
}

// TestCheckCollateral: a self-made root with the names of the genuine one, and
// issuers and certificates that stand for others.
func TestCheckCollateral(t *testing.T) {
	l, forger := newLab(t), newLab(t)
	chip := bytes.Repeat([]byte{0x5a}, 64)
	device := func(l lab, o teesim.DeviceOptions) []byte {
		o.ChipID = chip
		return l.device(t, o).Leaf()
	}
	crl := func(r *teesim.Root) []byte {
		b, err := r.CRL(simNow, r.ASK("Milan").SerialNumber, r.ARK().SerialNumber)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	chain := func(first *x509.Certificate, r *teesim.Root) []byte { return append(pemOf(first), r.RootPEM()...) }
	vcek := attest.CollateralRef{Kind: attest.SNPVCEK, Key: "milan/" + hex.EncodeToString(chip) + "/db18000000000004"}
	asks := attest.CollateralRef{Kind: attest.SNPChain, Key: "milan/vcek"}
	list := attest.CollateralRef{Kind: attest.SNPCRL, Key: "milan/vcek"}
	have := teetest.MapCollateral{asks: {Data: chain(l.root.ASK("Milan"), l.root)}}
	for name, c := range map[string]struct {
		ref  attest.CollateralRef
		data []byte
		with teetest.MapCollateral
		want attest.Reason
	}{
		"CRL":                             {list, crl(l.root), nil, ""},
		"CRL of another root":             {list, crl(forger.root), nil, attest.ReasonCollateralInvalid},
		"CRL, a byte after it":            {list, append(crl(l.root), 0), nil, attest.ReasonCollateralInvalid},
		"CRL, empty":                      {list, nil, nil, attest.ReasonCollateralInvalid},
		"chain":                           {asks, chain(l.root.ASK("Milan"), l.root), nil, ""},
		"chain without the root":          {asks, pemOf(l.root.ASK("Milan")), nil, ""},
		"chain of another root":           {asks, chain(forger.root.ASK("Milan"), forger.root), nil, attest.ReasonCollateralInvalid},
		"chain of another, genuine root":  {asks, chain(forger.root.ASK("Milan"), l.root), nil, attest.ReasonCollateralInvalid},
		"chain that begins with the root": {asks, chain(l.root.ARK(), l.root), nil, attest.ReasonCollateralInvalid},
		"chain of Genoa":                  {asks, chain(l.root.ASK("Genoa"), l.root), nil, attest.ReasonCollateralInvalid},
		"chain of VLEKs":                  {asks, chain(l.root.ASVK("Milan"), l.root), nil, attest.ReasonCollateralInvalid},
		"chain, empty":                    {asks, nil, nil, attest.ReasonCollateralInvalid},
		"VCEK":                            {vcek, device(l, teesim.DeviceOptions{}), have, ""},
		"VCEK, lapsed":                    {vcek, device(l, teesim.DeviceOptions{NotAfter: simNow.Add(-time.Minute)}), have, ""},
		"VCEK of another root":            {vcek, device(forger, teesim.DeviceOptions{}), have, attest.ReasonCollateralInvalid},
		"VCEK of other firmware":          {vcek, device(l, teesim.DeviceOptions{TCB: teesim.TCB{Bootloader: 4, SNP: 24, Microcode: 220}}), have, attest.ReasonCollateralInvalid},
		"VCEK of Genoa":                   {vcek, device(l, teesim.DeviceOptions{Product: "Genoa"}), have, attest.ReasonCollateralInvalid},
		"VLEK":                            {vcek, device(l, teesim.DeviceOptions{VLEK: true}), have, attest.ReasonCollateralInvalid},
		"VCEK, no issuer":                 {vcek, device(l, teesim.DeviceOptions{}), teetest.MapCollateral{}, attest.ReasonCollateralMissing},
		"VCEK, a forged issuer":           {vcek, device(l, teesim.DeviceOptions{}), teetest.MapCollateral{asks: {Data: []byte("x")}}, attest.ReasonCollateralMissing},
		"VCEK, empty":                     {vcek, nil, have, attest.ReasonCollateralInvalid},
		"another kind":                    {attest.CollateralRef{Kind: attest.PCKCRL, Key: "milan/vcek"}, crl(l.root), nil, attest.ReasonCollateralInvalid},
	} {
		for range 2 { // the second time memoised
			err := l.verifier.CheckCollateral(t.Context(), c.ref, attest.CollateralItem{Data: slices.Clone(c.data)}, c.with)
			if c.want == "" && err != nil || c.want != "" && (err == nil || attest.ReasonOf(err) != c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
	}
}
