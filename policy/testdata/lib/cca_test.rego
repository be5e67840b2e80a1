package cca_test

import data.claviger.lib.cca
import data.claviger.lib.common

good := {"attestation": {
	"type": "cca", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": true,
	"collateral": {"state": "fresh"}, "tcb": {"status": "Unknown"},
	"cca": {
		"platform": {"config": "cfcf", "sw_components": [{"signer_id": "aa"}, {"signer_id": "bb"}]},
		"realm": {"personalization_value": "5a5a", "extensible_measurements": ["0000", "0000", "00ab", "0000"]},
	},
}}

edit(changes) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value} | some path, value in changes])

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({
		cca.denials, cca.platform_signer_denials({"aa", "bb"}), cca.config_denials({"cfcf"}),
		cca.personalization_denials({"5a5a"}), cca.unextended_denials({0, 1, 3}),
	}) with input as good
	d == set()
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "cca"}}, {"attestation": {"type": "cca", "cca": {"platform": {}, "realm": {}}}}] {
		d := [
			cca.denials, cca.platform_signer_denials({"aa"}), cca.config_denials({"cfcf"}),
			cca.personalization_denials({"5a5a"}), cca.unextended_denials({0}),
		] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_baseline if {
	rules(common.baseline_denials) == {"debuggable"} with input as edit({"debuggable": true})
	rules(cca.denials) == {"debuggable"} with input as edit({"debuggable": true})
	rules(cca.denials) == {"evidence_type"} with input as edit({"type": "psa"})
}

test_signers if {
	some r in cca.platform_signer_denials({"bb"}) with input as good
	r.rule == "signer_unknown"
	r.claim == "attestation.cca.platform.sw_components[0].signer_id"
	r.got == "aa"
	rules(cca.platform_signer_denials(set())) == {"signer_unknown"} with input as good
	rules(cca.platform_signer_denials({"aa"})) == {"signer_unknown"} with input as edit({"cca/platform/sw_components": [{}]})
	rules(cca.platform_signer_denials({"aa"})) == {"components_missing"} with input as edit({"cca/platform/sw_components": []})
}

test_config if {
	rules(cca.config_denials({"00"})) == {"platform_config"} with input as good
	rules(cca.config_denials(set())) == {"platform_config"} with input as good
}

test_personalization if rules(cca.personalization_denials({"00"})) == {"personalization_unknown"} with input as good

test_extended if {
	some r in cca.unextended_denials({1, 2}) with input as good
	r.claim == "attestation.cca.realm.extensible_measurements[2]"
	r.got == "00ab"
	count(cca.unextended_denials({1, 2})) == 1 with input as good
	rules(cca.unextended_denials({4})) == {"extended"} with input as good
	rules(cca.unextended_denials({0})) == {"extended"} with input as edit({"cca/realm/extensible_measurements": [""]})
}
