package result_test

import data.claviger.lib.common
import data.claviger.lib.result

good := {"attestation": {
	"type": "attestation-result", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": true,
	"collateral": {"state": "fresh"}, "tcb": {"status": "UpToDate"},
	"attestation_result": {
		"verified_by": "google", "dialect": "google", "status": "warning",
		"submods": {"cpu0": {"status": "affirming"}, "gpu0": {"status": "warning"}},
		"token": {"swname": "CONFIDENTIAL_SPACE", "submods": {"gce": {"project_id": "p"}, "confidential_space": {"support_attributes": ["LATEST", "STABLE"]}}, "n": null},
	},
}}

edit(path, value) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value}])

rules(denials) := {r.rule | some r in denials}

accepted := {"swname": {"CONFIDENTIAL_SPACE"}, "submods/gce/project_id": {"p", "q"}, "submods/confidential_space/support_attributes": {"STABLE"}}

test_good if {
	d := union({result.denials({"google", "other"}), result.affirming_denials({"cpu0"}), result.claim_denials(accepted)}) with input as good
	d == set()
}

# Who relies on the baseline alone is safe, however good the claims look.
test_the_baseline_refuses if {
	rules(common.baseline_denials) == {"attestation_result"} with input as good
	rules(common.baseline_denials) == {"attestation_result", "debuggable"} with input as edit("debuggable", true)
}

# Nobody is trusted who is not named.
test_issuers if {
	rules(result.denials({"intel"})) == {"verifier_untrusted"} with input as good
	rules(result.denials(set())) == {"verifier_untrusted"} with input as good
	rules(result.denials({"google"})) == {"verifier_untrusted"} with input as edit("attestation_result/verified_by", "https://google")
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "attestation-result"}}] {
		d := [result.denials({"google"}), result.without_cpu_denials({"google"}), result.affirming_denials({"cpu0"}), result.claim_denials(accepted)] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_the_rest_of_the_baseline if {
	every c in [
		["debuggable", true, "debuggable"], ["bound", false, "not_bound"], ["simulated", true, "simulated"], ["type", "tdx", "evidence_type"],
		["tcb/status", "Revoked", "tcb_revoked"], ["tcb/status", "Fine", "tcb_revoked"], ["bound_to_cpu_tee", false, "not_bound_to_cpu_tee"],
	] {
		rules(result.denials({"google"})) == {c[2]} with input as edit(c[0], c[1])
	}
}

test_without_cpu if {
	result.without_cpu_denials({"google"}) == set() with input as edit("bound_to_cpu_tee", false)
	rules(result.without_cpu_denials({"google"})) == {"debuggable"} with input as edit("debuggable", true)
	rules(result.without_cpu_denials({"intel"})) == {"verifier_untrusted"} with input as edit("bound_to_cpu_tee", false)
}

test_affirming if {
	rules(result.affirming_denials({"cpu0", "gpu0"})) == {"not_affirming"} with input as good
	rules(result.affirming_denials({"cpu1"})) == {"not_affirming"} with input as good
}

test_claims if {
	every expected in [
		{"swname": {"GCE"}}, {"swname": set()}, {"missing": {"x"}}, {"submods/gce": {"p"}}, {"submods/gce/project_id/x": {"p"}},
		{"submods/confidential_space/support_attributes": {"EXPERIMENTAL"}},
	] {
		rules(result.claim_denials(expected)) == {"claim_unknown"} with input as good
	}
}

# What a token does not say is denied by name, and a policy may do without it by name.
test_unstated if {
	every c in [["migratable", true], ["tcb/status", "Unstated"]] {
		name := replace(c[0], "/", ".")
		doc := json.patch(edit(c[0], c[1]), [{"op": "add", "path": "/attestation/unstated", "value": [name]}])
		found := result.denials({"google"}) with input as doc
		{[r.rule, r.claim] | some r in found} == {["unstated", concat(".", ["attestation", name])]}
		result.without_denials({"google"}, {name}) == set() with input as doc
		rules(result.without_denials({"google"}, {"chip_id"})) == {"unstated"} with input as doc
		rules(result.without_denials({"intel"}, {name})) == {"verifier_untrusted"} with input as doc

		# What it says to be bad is not excused.
		count(result.without_denials({"google"}, {name})) == 1 with input as edit(c[0], c[1])
		count(result.without_denials({"google"}, {name})) > 0 with input as {}
	}
}

test_contraindicated if {
	every status in ["contraindicated", "fine", null, 7] {
		rules(result.denials({"google"})) == {"contraindicated"} with input as edit("attestation_result/status", status)
	}
	rules(result.denials({"google"})) == {"contraindicated"} with input as json.remove(good, ["attestation/attestation_result/status"])
	result.denials({"google"}) == set() with input as edit("attestation_result/status", "")
}
