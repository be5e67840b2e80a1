package tpm

import (
	"encoding/hex"
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
		c, err := verifier(t, Config{}).Verify(t.Context(), b.evidence, attest.Unbound(), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		same := func(v measure.Values, names ...string) {
			t.Helper()
			for _, n := range names {
				if len(v[n]) != 1 || v[n][0] != c.Measurements[n] {
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
