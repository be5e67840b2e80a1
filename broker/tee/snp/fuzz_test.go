package snp

import (
	"bytes"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// FuzzVerify: whatever the bytes, no panic, and nothing is accepted whose
// report is not one of the genuine ones.
func FuzzVerify(f *testing.F) {
	l := newLab(f)
	v := newVerifier(f, Config{TestRoots: []TestRoot{{ARK: l.root.ARK()}}, CRLOptional: true})
	genuine := map[string]bool{}
	for _, r := range realVectors(f) {
		f.Add(r.ev.Report, r.ev.Endorsements)
		genuine[string(r.ev.Report)] = true
	}
	for _, o := range []teesim.DeviceOptions{{}, {Product: "Turin"}, {VLEK: true}} {
		ev := l.evidence(f, o, teesim.ReportOptions{})
		f.Add(ev.Report, ev.Endorsements)
		genuine[string(ev.Report)] = true
	}
	f.Fuzz(func(t *testing.T, report, table []byte) {
		ev := attest.Evidence{Type: attest.TypeSNP, Report: report, Endorsements: table}
		cl, err := v.Verify(t.Context(), ev, attest.Unbound(), l.collateral, simNow)
		if err == nil && !genuine[string(report)] {
			t.Errorf("accepted a report that nobody signed: %+v", cl)
		}
		if attest.ReasonOf(err) == attest.ReasonInternal && err != nil {
			t.Errorf("internal: %v", err)
		}
	})
}

// FuzzCertTable: no panic, and every certificate lies within the table or is decoded from it.
func FuzzCertTable(f *testing.F) {
	for _, r := range realVectors(f) {
		f.Add(r.ev.Endorsements)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tab, err := parseCertTable(b)
		if err != nil {
			return
		}
		for _, der := range [][]byte{tab.vcek, tab.vlek, tab.ask, tab.ark} {
			if len(der) > len(b) {
				t.Errorf("a certificate of %d bytes from a table of %d", len(der), len(b))
			}
			if len(der) > 0 && der[0] == 0x30 && !bytes.Contains(b, der) && !bytes.Contains(b, []byte("-----BEGIN")) {
				t.Error("a certificate that is not in the table")
			}
		}
	})
}
