package policy

import (
	"strings"
	"testing"
)

// TestProbe: what allows a guest that proves nothing is refused, in whatever words
// it does so, and what asks for a claim is not.
func TestProbe(t *testing.T) {
	const head = "package claviger.release.p\nimport data.claviger.lib.common\nimport data.claviger.lib.reference\nimport data.claviger.lib.snp\ndefault allow := false\n"
	for body, want := range map[string]string{
		"allow if not input.attestation.debuggable":                                                                   "without any claims",
		"allow if { not bad; input.resource.path == \"db/a\" }\nbad if input.attestation.debuggable":                  "as soon as input.resource.path",
		"allow if { is_string(input.attestation.tcb.status) }":                                                        "whose claims are all bad",
		"allow if input.attestation.tcb.status != \"\"":                                                               "whose claims are all bad",
		"allow if count(input.attestation) >= 0":                                                                      "without any claims",
		"allow if { some k, _ in input.attestation; k != \"x\" }":                                                     "whose claims are all bad",
		"allow if object.get(input.attestation, \"debuggable\", false) == false":                                      "without any claims",
		"allow if every d in object.get(input.attestation, \"devices\", []) { d.bound }":                              "without any claims",
		"allow if { x := {c | some c in input.attestation.tcb.advisories}; count(x) == 0 }":                           "without any claims",
		"allow if good(input.attestation)\ngood(x) if x\ngood(x) if not x":                                            "without any claims",
		"allow if { input.attestation.debuggable == false }\nallow if { input.attestation; input.chip.networks < 2 }": "without any claims",
		"allow if { input.time > \"2020-01-01T00:00:00Z\"; is_object(input.attestation) }":                            "without any claims",
		"allow if json.marshal(input.attestation) != \"null\"":                                                        "without any claims",

		"allow if input.attestation.type == \"sev-snp\"":                                                           "",
		"allow if input.attestation.debuggable == false":                                                           "",
		"allow if reference.match(\"sev-snp\", [\"measurement\"])":                                                 "",
		"allow if { not input.attestation.debuggable; input.attestation.type in {\"tdx\", \"sev-snp\"} }":          "",
		"allow if not input.attestation.debuggable\ndeny contains d if some d in common.type_denials(\"sev-snp\")": "",
		"allow if count(common.baseline_denials) == 0":                                                             "",
	} {
		t.Run(body, func(t *testing.T) {
			b := head
			for _, lib := range []string{"common", "reference", "snp"} {
				if !strings.Contains(body, lib+".") {
					b = strings.Replace(b, "import data.claviger.lib."+lib+"\n", "", 1)
				}
			}
			_, err := New(Config{Dir: write(t, map[string]string{"p.rego": b + body})})
			switch {
			case want == "" && err != nil:
				t.Error(err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}
