package results

import "testing"

// TestForeignIdentity: a part that the verifier does not call genuine names a machine, too.
func TestForeignIdentity(t *testing.T) {
	a := appraisal{measurements: map[string]string{}}
	if err := a.join([]part{{appraisal{cpuTEE: true, chipID: "mine"}, true}, {appraisal{cpuTEE: true, chipID: "another"}, false}}); err != nil {
		t.Fatal(err)
	}
	if a.chipID != "mine" || len(a.identities) != 2 || a.cpuTEE {
		t.Errorf("chip %q, identities %q, cpu TEE %t", a.chipID, a.identities, a.cpuTEE)
	}
}
