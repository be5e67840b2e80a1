package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// TestFloor: what every policy denies, it denies also if it does not ask for it, and
// what it waives is what it names.
func TestFloor(t *testing.T) {
	faults := map[string]func(*attest.Claims){
		"not_bound":          func(c *attest.Claims) { c.Bound = false },
		"debuggable":         func(c *attest.Claims) { c.Debuggable = true },
		"simulated":          func(c *attest.Claims) { c.Simulated = true },
		"collateral_expired": func(c *attest.Claims) { c.Collateral.State = "expired" },
		"tcb_revoked":        func(c *attest.Claims) { c.TCB.Status = "Revoked" },
		"device_debuggable": func(c *attest.Claims) {
			d := *c
			d.Debuggable = true
			c.Devices = []attest.Claims{d}
		},
	}
	decide := func(t *testing.T, body string, spoil func(*attest.Claims)) (broker.Decision, error) {
		e, err := New(Config{Dir: one(t, "default allow := false\nallow if input.attestation.type == \"sev-snp\"\n"+body)})
		if err != nil {
			t.Fatal(err)
		}
		in := snpInput(t)
		in.Resource.Policy = "p"
		if spoil != nil {
			spoil(&in.Attestation)
		}
		return e.Decide(t.Context(), in)
	}
	if d, err := decide(t, "", nil); err != nil || !d.Allow {
		t.Fatalf("a sound guest: %+v, %v", d, err)
	}
	for rule, spoil := range faults {
		t.Run(rule, func(t *testing.T) {
			if d, err := decide(t, "", spoil); err != nil || d.Allow || rules(d) != rule {
				t.Errorf("allow %t for %q, %v", d.Allow, rules(d), err)
			}
			others := strings.Join(slices.DeleteFunc(slices.Clone(waivable), func(x string) bool { return x == rule }), "\"\nwaived contains \"")
			if d, err := decide(t, `waived contains "`+others+`"`, spoil); err != nil || d.Allow || rules(d) != rule {
				t.Errorf("all others waived: allow %t for %q, %v", d.Allow, rules(d), err)
			}
			if !slices.Contains(waivable, rule) {
				if _, err := New(Config{Dir: one(t, "default allow := false\nallow if input.attestation.type == \"sev-snp\"\nwaived contains \""+rule+"\"")}); err == nil || !strings.Contains(err.Error(), "cannot be waived") {
					t.Errorf("waived: %v", err)
				}
				return
			}
			if d, err := decide(t, `waived contains "`+rule+`"`, spoil); err != nil || !d.Allow {
				t.Errorf("waived: %+v, %v", d, err)
			}
			if d, err := decide(t, `waived contains "`+rule+`" if input.resource.params.nothing`, spoil); err != nil || d.Allow {
				t.Errorf("waived under a condition that does not hold: %+v, %v", d, err)
			}
			if d, err := decide(t, "waived contains \""+rule+"\"\ndeny contains \"mine\" if input.attestation.type", spoil); err != nil || d.Allow || rules(d) != "denied" {
				t.Errorf("waived, and denied by the policy: %q, %v", rules(d), err)
			}
		})
	}
	for body, want := range map[string]string{
		`waived := {"debuggable"}`:                                                 "waived must be a set",
		`waived contains "debugable"`:                                              "cannot be waived",
		`denials contains "x" if input.attestation.devices`:                        "nobody asks for denials",
		`refuse contains "x" if input.attestation.devices`:                         "nobody asks for refuse",
		`waived contains x if { x := input.resource.params.waive }`:                "write the name of the rule",
		`waived contains object.get(input.resource.params, "waive", "debuggable")`: "write the name of the rule",
		`waived contains x if some x in {"simulated"}`:                             "write the name of the rule",
		`waived contains 1`:                                                        "cannot be waived",
		`waives contains "debuggable" if input.attestation.type == "tdx"`:          "do you mean waived",
	} {
		_, err := New(Config{Dir: one(t, "default allow := false\nallow if input.attestation.type == \"sev-snp\"\n"+body)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
}
