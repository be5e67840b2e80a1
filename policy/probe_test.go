package policy

import (
	"strings"
	"testing"

	"github.com/claviger/claviger/broker"
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

		// What partial evaluation leaves to rules of its own.
		"allow if { not input.attestation.debuggable; tier == \"gold\" }\ntier := \"gold\" if input.resource.labels.tier == \"gold\" else := \"iron\"":                                   "without any claims",
		"allow if { not input.attestation.debuggable; tier == \"gold\" }\ndefault tier := \"gold\"\ntier := \"iron\" if input.resource.labels.tier == \"iron\"":                          "without any claims",
		"allow if { not input.attestation.debuggable; not shut }\nshut if { input.resource.path == \"a\"; startswith(input.resource.path, \"b\"); input.resource.labels.tier == \"x\" }": "without any claims",
		"allow if { not input.attestation.debuggable; ok(input.resource) }\nok(r) if { r.path == \"a\" } else := false":                                                                  "it asks for \"a\"",
		"allow if { not input.attestation.debuggable; count(mine) == 1 }\nmine contains r if { some r in input.request.resources; r != \"x\" }":                                          "without any claims",
		"allow if { not input.attestation.debuggable } else := false if { input.resource.path == \"x\" }":                                                                                "without any claims",
		"allow if { not input.attestation.debuggable; f(input.resource.path) }\ndefault f(_) := true\nf(x) := false if x == \"q\"":                                                       "without any claims",
		"allow if { good with input.attestation as {\"debuggable\": false} }\ngood if { input.attestation.debuggable == false; input.resource.path }":                                    "without any claims",
		"allow if { not input.attestation.debuggable; input.resource.labels.a == \"x\"; two }\ntwo if { input.resource.path == \"p/q\" } else := false":                                  "it asks for \"p/q\"",
		// At another time, in other networks, and beside reference sets of others.
		"allow if { input.time > \"2060-01-01T00:00:00Z\"; not input.attestation.debuggable }":       "without any claims",
		"allow if { input.chip.networks > 1; not input.attestation.debuggable }":                     "without any claims",
		"allow if { not input.attestation.debuggable; some s in data.reference; s.type == \"tdx\" }": "without any claims",
		// Partial evaluation takes too long.
		"allow if { not input.attestation.debuggable; some i in numbers.range(1, 60); some j in numbers.range(1, 60); some k in numbers.range(1, 60); input.resource.path != sprintf(\"%d%d%d\", [i, j, k]) }": "without any claims",
		// It says what must not be, and nothing that must.
		"allow if input.attestation.type != \"tdx\"":                                       "nothing that anybody has heard of",
		"allow if { input.attestation.chip_id; not input.attestation.chip_id in {\"a\"} }": "nothing that anybody has heard of",
		"allow if input.attestation.measurements.measurement != \"00\"":                    "nothing that anybody has heard of",

		// What denies a stranger whatever he asks for, though partial evaluation does not see that.
		"allow if not input.attestation.debuggable\ndeny contains d if some d in snp.signing_key_denials(input.resource.params.kind)":                                     "",
		"allow if not input.attestation.debuggable\ndeny contains d if some d in common.type_denials(input.resource.labels.type)":                                         "",
		"allow if not input.attestation.debuggable\ndeny contains \"x\" if { input.resource.path == \"x\"; not input.attestation.bound }":                                 "without any claims",
		"allow if { input.attestation.chip_id == input.resource.params.chip }":                                                                                            "",
		"allow if { count(faults) == 0 }\nfaults contains \"no\" if common.debuggable\nfaults contains \"path\" if input.resource.path == \"x\"":                          "",
		"allow if { good; tier == \"gold\" }\ntier := \"gold\" if input.resource.labels.tier == \"gold\" else := \"iron\"\ngood if input.attestation.debuggable == false": "",

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

// TestFits: an entry whose policy asks for what no resource of it has is found out
// before a guest asks.
func TestFits(t *testing.T) {
	const head = "import data.claviger.lib.reference\nimport data.claviger.lib.azure\ndefault allow := false\n"
	match := "allow if reference.match(\"sev-snp\", [\"measurement\"])\n"
	files := map[string]string{
		"param":     "allow if { reference.match(\"sev-snp\", [\"measurement\"]); input.attestation.host_data == data.vms[input.resource.params.vm] }",
		"deny":      match + "deny contains \"x\" if not input.resource.params.vm",
		"argument":  match + "deny contains d if some d in azure.own_denials(input.resource.params.vm)",
		"builtin":   match + "deny contains d if some d in object.get(data.frozen, input.resource.labels.tier, [])",
		"stated":    match + "deny contains d if some d in azure.own_denials(input.resource.params.host) with input.resource.params.host as \"vm-1\"",
		"either":    match + "allow if input.attestation.chip_id == input.resource.params.chip",
		"optional":  match + "deny contains \"x\" if { input.resource.params.vm == \"bad\" }",
		"fallback":  match + "deny contains \"x\" if { object.get(input.resource.params, \"vm\", \"bad\") == input.attestation.chip_id }",
		"label":     match + "deny contains \"x\" if not input.resource.labels.tier == \"gold\"",
		"any":       "allow if { reference.match(\"sev-snp\", [\"measurement\"]); some _, v in input.resource.params; v == input.attestation.chip_id }",
		"path":      "allow if { reference.match(\"sev-snp\", [\"measurement\"]); startswith(input.resource.path, \"x/\") }",
		"computed":  "allow if { reference.match(\"sev-snp\", [\"measurement\"]); input.resource.params[concat(\"\", [\"v\", \"m\"])] == input.attestation.chip_id }",
		"workload2": "allow if { some name in reference.matching(\"sev-snp\", [\"measurement\"]); input.resource.params.workload in data.reference[name].values.workload }",
	}
	all := map[string]string{"data.json": `{"vms": {"vm-1": "00"}, "frozen": {"old": ["it is frozen"]}}`}
	for name, body := range files {
		h := head
		if name == "label" || !strings.Contains(body, "azure.") {
			h = strings.Replace(h, "import data.claviger.lib.azure\n", "", 1)
		}
		all[name+".rego"] = "package claviger.release." + name + "\n" + h + body + "\n"
	}
	e, err := New(Config{Dir: write(t, all)})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ policy, pattern, label, want string }{
		{"param", "disks/{vm}", "", ""},
		{"param", "disks/{host}", "", "{vm} in the pattern"},
		{"param", "disks/x", "", "{vm} in the pattern"},
		{"deny", "disks/{vm}/{part}", "", ""},
		{"deny", "disks/{host}", "", "{vm} in the pattern"},
		{"argument", "disks/{vm}", "", ""},
		{"argument", "disks/{host}", "", "{vm} in the pattern"},
		{"either", "disks/{host}", "", ""},
		{"optional", "disks/{host}", "", ""},
		{"fallback", "disks/{host}", "", ""},
		{"label", "disks/{vm}", "", "the label tier"},
		{"label", "disks/{vm}", "gold", ""},
		{"label", "disks/{vm}", "iron", ""}, // denies, but has what is asked for
		{"any", "disks/{vm}", "", ""},
		{"path", "disks/{vm}", "", ""},
		{"computed", "disks/{vm}", "", ""},
		{"workload2", "w/{workload}", "", ""},
		{"workload2", "w/{name}", "", "{workload} in the pattern"},
		{"builtin", "disks/{vm}", "", ""},
		{"stated", "disks/{vm}", "", ""},
		{"gone", "disks/{vm}", "", "no such policy"},
	} {
		entry := broker.CatalogEntry{Pattern: tc.pattern, Policy: tc.policy}
		if tc.label != "" {
			entry.Labels = map[string]string{"tier": tc.label}
		}
		if err := e.Fits(entry); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s for %s: %v, want %q", tc.policy, tc.pattern, err, tc.want)
		}
	}
}
