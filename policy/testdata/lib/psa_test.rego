package psa_test

import data.claviger.lib.common
import data.claviger.lib.psa

good := {
	"attestation": {
		"type": "psa", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": true, "chip_id": "01dd",
		"collateral": {"state": "fresh"}, "tcb": {"status": "Unknown"},
		"psa": {"client_id": 17, "software_components": [{"signer_id": "aa"}, {"signer_id": "bb"}]},
	},
	"resource": {"params": {"device": "01dd"}},
}

edit(changes) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value} | some path, value in changes])

nonsecure := edit({"psa/client_id": -1, "bound_to_cpu_tee": false})

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({psa.denials, psa.nonsecure_denials, psa.signer_denials({"aa", "bb"}), psa.own_denials("device")}) with input as good
	d == set()
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "psa"}}, {"attestation": {"type": "psa", "psa": {}}}] {
		d := [psa.denials, psa.nonsecure_denials, psa.signer_denials({"aa"}), psa.own_denials("device")] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_nonsecure if {
	rules(psa.denials) == {"not_bound_to_cpu_tee"} with input as nonsecure
	rules(common.baseline_denials) == {"not_bound_to_cpu_tee"} with input as nonsecure
	psa.nonsecure_denials == set() with input as nonsecure

	# What is not bound for another reason, or is refused for another, is not excused.
	rules(psa.nonsecure_denials) == {"not_bound_to_cpu_tee"} with input as edit({"bound_to_cpu_tee": false})
	rules(psa.nonsecure_denials) == {"debuggable"} with input as edit({"debuggable": true})
	rules(psa.nonsecure_denials) == {"evidence_type"} with input as edit({"type": "tdx"})
}

test_signers if {
	some r in psa.signer_denials({"aa"}) with input as good
	r.rule == "signer_unknown"
	r.claim == "attestation.psa.software_components[1].signer_id"
	r.got == "bb"
	rules(psa.signer_denials(set())) == {"signer_unknown"} with input as good
	rules(psa.signer_denials({"aa"})) == {"signer_unknown"} with input as edit({"psa/software_components": [{}]})
	rules(psa.signer_denials({"aa"})) == {"components_missing"} with input as edit({"psa/software_components": []})
}

test_own if {
	rules(psa.own_denials("device")) == {"not_own_resource"} with input as edit({"chip_id": "01de"})
	rules(psa.own_denials("device")) == {"not_own_resource"} with input as edit({"chip_id": ""})
	rules(psa.own_denials("another")) == {"not_own_resource"} with input as good
}
