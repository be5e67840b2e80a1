package policy

import (
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// TestClaimNames: names that no claims have are refused in the vendors' words, too.
func TestClaimNames(t *testing.T) {
	for expr, unknown := range map[string]string{
		`input.attestation.sev_snp.polcy.debug == true`:                       "input.attestation.sev_snp.polcy",
		`input.attestation.sev_snp.policy.debg == true`:                       "input.attestation.sev_snp.policy.debg",
		`input.attestation.sev_snp.reported_tcb.sn < 8`:                       "input.attestation.sev_snp.reported_tcb.sn",
		`input.attestation.snp.policy.debug == true`:                          "input.attestation.snp",
		`input.attestation.tdx.tdattributes.dbug == true`:                     "input.attestation.tdx.tdattributes.dbug",
		`input.attestation.tpm.ak.trus == "x"`:                                "input.attestation.tpm.ak.trus",
		`input.attestation.devices[0].nvidia_gpu.rin == "x"`:                  "input.attestation.devices[0].nvidia_gpu.rin",
		`some d in input.attestation.devices; d.nvidia_gpu.rim == "x"`:        "",
		`input.attestation.sev_snp.policy.debug == true`:                      "",
		`input.attestation.sev_snp[input.resource.path] == true`:              "",
		`input.attestation.attestation_result.token.whatever.there.is == "x"`: "",
		`input.attestation.attestation_result.submods.cpu0.status == "x"`:     "",
		`input.attestation.tpm.pcrs["8"] == "x"`:                              "",
		`input.attestation.cca.platform.sw_components[0].signer_id == "x"`:    "",
		`input.attestation.cca.platform.sw_components[_].signer_idd == "x"`:   "input.attestation.cca.platform.sw_components",
		`input.attestation.measurements.mrtd == "x"`:                          "",
		`input.attestation.nitro.pcrs["8"] == "x"`:                            "",
	} {
		_, err := New(Config{Dir: one(t, "default allow := false\n\nallow if input.attestation.bound == true\n\ndeny contains \"x\" if { "+expr+" }\n")})
		if unknown == "" && err != nil || unknown != "" && (err == nil || !strings.Contains(err.Error(), unknown)) {
			t.Errorf("%s: %v", expr, err)
		}
	}
}

// TestLibraryNames: the library itself asks for no claim that there is not.
func TestLibraryNames(t *testing.T) {
	lib, err := loadLib(capabilities())
	if err != nil {
		t.Fatal(err)
	}
	c := newCompiler(capabilities())
	if err := compile(c, lib); err != nil {
		t.Fatal(err)
	}
	v := vetter{vendor: vendorClaims()}
	if len(v.vendor) < 12 {
		t.Errorf("claims of %d vendors", len(v.vendor))
	}
	for _, m := range c.Modules {
		ast.WalkRefs(m, func(ref ast.Ref) bool {
			if n := v.unknownInput(ref); ref.HasPrefix(ast.InputRootRef) && n > 0 {
				t.Errorf("%s: there is no %s", m.Package.Path, ref[:n])
			}
			return false
		})
	}
}

// TestVetMistakes are an author's mistakes with which a policy would always, or never, say the same.
func TestVetMistakes(t *testing.T) {
	const rest = "default allow := false\n\nallow if input.attestation.bound == true\n\n"
	const baseline = "deny contains \"debug\" if not input.attestation.debuggable == false\n\n"
	for body, says := range map[string]string{
		rest + "denies contains \"x\" if input.attestation.debuggable\n":                                                                                                      "do you mean deny",
		rest + "denied contains \"x\" if input.attestation.debuggable\n":                                                                                                      "do you mean deny",
		rest + "Deny contains \"x\" if input.attestation.debuggable\n":                                                                                                        "do you mean deny",
		rest + "dney contains \"x\" if input.attestation.debuggable\n":                                                                                                        "do you mean deny",
		rest + "alow if input.attestation.bound == true\n":                                                                                                                    "do you mean allow",
		rest + "allows if input.attestation.bound == true\n":                                                                                                                  "do you mean allow",
		rest + "obligation := {\"ttl\": \"1h\"}\n":                                                                                                                            "do you mean obligations",
		rest + "allowed := {\"a\"}\n\ndeny contains \"x\" if not input.attestation.chip_id in allowed\n":                                                                      "",
		rest + "denies contains \"x\" if input.attestation.debuggable\n\ndeny contains r if some r in denies\n":                                                               "",
		rest + "allowed := {\"a\"}\n":                                                                                                                                         "do you mean allow",
		rest + "allowed_hosts := {\"a\"}\n\ndenial_reason := \"x\"\n\ndelay := 1\n":                                                                                           "",
		rest + "deny contains \"x\" if not {}\n":                                                                                                                              "never true",
		rest + "deny contains \"x\" if not {input.attestation.chip_id}\n":                                                                                                     "never true",
		rest + "deny contains \"x\" if [1 | {}]\n":                                                                                                                            "always true",
		rest + "deny contains \"x\" if {c | some c in input.attestation.tcb.advisories}\n":                                                                                    "always true",
		rest + "deny contains \"x\" if \"text\"\n":                                                                                                                            "always true",
		rest + "deny contains \"x\" if some m in []\n":                                                                                                                        "there is nothing in []",
		rest + "deny contains \"x\" if some m in set()\n":                                                                                                                     "there is nothing in set()",
		rest + "deny contains \"x\" if count(input.attestation.tcb.advisories)\n":                                                                                             "neither true nor false",
		rest + "deny contains \"x\" if not count(input.attestation.tcb.advisories)\n":                                                                                         "neither true nor false",
		rest + "deny contains \"x\" if input.attestation.chip_id == input.attestation.chip_id\n":                                                                              "compared with itself",
		rest + "deny contains \"x\" if count(input.attestation.tcb.advisories) > 0\n":                                                                                         "",
		rest + "deny contains \"x\" if startswith(input.attestation.chip_id, \"a\")\n":                                                                                        "",
		rest + "deny contains \"x\" if { some a in input.attestation.tcb.advisories; not a in {\"A\"} }\n":                                                                    "",
		rest + "deny contains \"x\" if { m := [a | some a in input.attestation.tcb.advisories]; count(m) > 1 }\n":                                                             "",
		rest + baseline + "deny contains \"x\" if input.attestation.hardware_model = Milan\n":                                                                                 "Milan is a variable",
		rest + baseline + "deny contains \"x\" if { input.attestation.hardware_model = m; m != \"Milan\" }\n":                                                                 "",
		rest + baseline + "deny contains \"x\" if input.attestation.sev_snp.reported_tcb.snp > \"99\"\n":                                                                      "is a number, and is compared with \"99\"",
		rest + baseline + "deny contains \"x\" if \"99\" <= input.attestation.sev_snp.vmpl\n":                                                                                 "is a number",
		rest + baseline + "deny contains \"x\" if input.attestation.debuggable == \"true\"\n":                                                                                 "is a boolean",
		rest + baseline + "deny contains \"x\" if input.attestation.hardware_model != 1\n":                                                                                    "is a text",
		rest + baseline + "deny contains \"x\" if input.attestation.tpm.pcrs[\"8\"] == 0\n":                                                                                   "is a text",
		rest + baseline + "deny contains \"x\" if input.attestation.sev_snp.vmpl > 0\n":                                                                                       "",
		rest + baseline + "deny contains \"x\" if input.attestation.chip_id == \"\"\n":                                                                                        "",
		rest + baseline + "deny contains \"x\" if input.attestation.attestation_result.token.n > \"9\"\n":                                                                     "",
		rest + "deny contains r if some r in data.claviger.lib.snp.guest_svn_denials(3)\n":                                                                                    "anybody can sign one",
		rest + "deny contains \"x\" if input.attestation.sev_snp.guest_svn < 3\n":                                                                                             "anybody can sign one",
		rest + "deny contains r if some r in data.claviger.lib.snp.guest_svn_denials(3)\n\ndeny contains r if some r in data.claviger.lib.snp.author_key_denials({\"aa\"})\n": "",
		rest + "deny contains \"x\" if input.attestation.sev_snp.guest_svn < 3\n\ndeny contains \"x\" if input.attestation.sev_snp.id_key_digest != \"aa\"\n":                 "",
		rest + baseline + "obligations := {\"tll\": \"1h\"}\n":                                                                                                                "obligations.tll",
		rest + baseline + "obligations := {\"ttl\": \"5m\"} if input.attestation.type == \"tdx\" else := {\"ttl\": \"never\"}\n":                                              "obligations.ttl",
		rest + baseline + "obligations := {\"ttl\": \"1h\"}\n":                                                                                                                "",
	} {
		_, err := New(Config{Dir: one(t, body)})
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v, want %q", body, err, says)
		}
	}
}
