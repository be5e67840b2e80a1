package tpm

import (
	"encoding/hex"
	"os"
	"slices"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/measure"
	"github.com/claviger/claviger/broker/tpmquote"
)

// TestPredictedNames: what `claviger reference compute` predicts stands under
// the names of the claims, in the same form.
func TestPredictedNames(t *testing.T) {
	for _, name := range []string{"direct", "uki", "uki-sb", "grub-sb"} {
		b := load(t, name)
		c, err := verifier(t, Config{Unvouched: true}).Verify(t.Context(), b.evidence, attest.Unbound(), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		same := func(v measure.Values, names ...string) {
			t.Helper()
			for _, n := range names {
				if !slices.Contains(v[n], c.Measurements[n]) || len(v[n]) > 2 {
					t.Errorf("%s: %s is predicted as %v, claimed as %q", name, n, v[n], c.Measurements[n])
				}
			}
		}
		observed, err := measure.ObservedTPM(b.evidence.EventLog)
		if err != nil {
			t.Fatal(err)
		}
		same(observed, "pcr0", "pcr7")
		if name == "direct" {
			continue // the kernel comes before the call of a boot option: see measure's own tests
		}
		var programs [][]byte
		for _, d := range c.TPM.(*tpmquote.Claims).Boot.BootChain {
			raw, err := hex.DecodeString(d)
			if err != nil {
				t.Fatal(err)
			}
			programs = append(programs, raw)
		}
		same(measure.Chain(programs...), "pcr4", "boot_chain")
	}
}

// TestPredictedOSSeparator: of a machine with systemd 259 or later the values of the quote are predicted from the firmware's log.
func TestPredictedOSSeparator(t *testing.T) {
	log, err := os.ReadFile("../../tpmquote/testdata/systemd261.log")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("../../tpmquote/testdata/systemd261.json")
	if err != nil {
		t.Fatal(err)
	}
	r, err := attest.DecodeTPMReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	observed, err := measure.ObservedTPM(log, 2, 4, 8)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.PCRs {
		values := observed[pcrName(p.Index)]
		if len(values) > 0 && values[len(values)-1] != hex.EncodeToString(p.Digest) {
			t.Errorf("PCR %d is predicted as %v, quoted as %x", p.Index, values, p.Digest)
		}
	}
	if len(observed["pcr0"]) != 2 || len(observed["pcr8"]) != 1 || len(observed) != 5 {
		t.Errorf("observed %v", observed)
	}
}
