package common_test

import data.claviger.lib.common

good := {"attestation": {
	"type": "sev-snp", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": true,
	"collateral": {"state": "fresh", "age_seconds": 1}, "tcb": {"status": "Unknown", "advisories": []},
}}

with_claim(path, value) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value}])

without(path) := json.remove(good, [concat("/", ["attestation", path])])

rules(denials) := {r.rule | some r in denials}

test_good if common.baseline_denials == set() with input as good

test_empty_input_fails_every_check if {
	rules(common.baseline_denials) == {"not_bound", "debuggable", "migratable", "simulated", "collateral_expired", "not_bound_to_cpu_tee", "tcb_revoked"} with input as {}
}

test_each_claim_counts if {
	every c in [
		{"path": "bound", "bad": [false, null, "true", 1], "rule": "not_bound"},
		{"path": "debuggable", "bad": [true, null, "false", 0], "rule": "debuggable"},
		{"path": "migratable", "bad": [true, null, "false", 0], "rule": "migratable"},
		{"path": "simulated", "bad": [true, null, "false", 0], "rule": "simulated"},
		{"path": "bound_to_cpu_tee", "bad": [false, null, "true"], "rule": "not_bound_to_cpu_tee"},
		{"path": "collateral/state", "bad": ["expired", "", null, "Fresh"], "rule": "collateral_expired"},
		{"path": "tcb/status", "bad": ["Revoked", "", null, "revoked", 1], "rule": "tcb_revoked"},
	] {
		every bad in c.bad {
			print(c.path, bad)
			rules(common.baseline_denials) == {c.rule} with input as with_claim(c.path, bad)
		}
		rules(common.baseline_denials) == {c.rule} with input as without(c.path)
	}
}

test_stale_is_not_expired if {
	common.baseline_denials == set() with input as with_claim("collateral/state", "stale")
	common.stale with input as with_claim("collateral/state", "stale")
	not common.stale with input as good
}

test_simulated_allowed_by_the_operator_only if {
	common.baseline_denials == set() with input as with_claim("simulated", true) with data.claviger.config.allow_simulated as true
	rules(common.baseline_denials) == {"simulated"} with input as with_claim("simulated", true) with data.claviger.config.allow_simulated as "true"
	rules(common.baseline_denials) == {"simulated"} with input as with_claim("simulated", true) with data.claviger.config.allow_simulated as false
}

test_simulated_allowed_keeps_the_others if {
	doc := json.patch(with_claim("simulated", true), [{"op": "add", "path": "attestation/debuggable", "value": true}])
	rules(common.baseline_denials) == {"debuggable"} with input as doc with data.claviger.config.allow_simulated as true
}

test_type if {
	common.type_denials("sev-snp") == set() with input as good
	rules(common.type_denials("tdx")) == {"evidence_type"} with input as good
	rules(common.type_denials("tdx")) == {"evidence_type"} with input as {}
}

test_post_quantum if {
	common.pq_denials == set() with input as {"request": {"post_quantum": true}}
	rules(common.pq_denials) == {"post_quantum_required"} with input as {"request": {"post_quantum": "true"}}
	rules(common.pq_denials) == {"post_quantum_required"} with input as {}
}

test_reason_has_all_members if {
	some r in common.baseline_denials with input as with_claim("debuggable", true)
	r == {"rule": "debuggable", "message": "the host can read or change a debuggable TEE", "claim": "attestation.debuggable", "got": true}
}

gpu := {"type": "nvidia-gpu", "bound": true, "debuggable": false, "migratable": false, "collateral": {"state": "fresh"}, "tcb": {"status": "Unknown"}}

with_devices(devices) := with_claim("devices", devices)

test_devices_meet_the_baseline if {
	common.baseline_denials == set() with input as with_devices([gpu, gpu])
	every c in [
		["bound", false, "device_not_bound"], ["debuggable", true, "device_debuggable"], ["migratable", true, "device_migratable"],
		["collateral", {"state": "expired"}, "device_collateral_expired"], ["tcb", {"status": "Revoked"}, "device_tcb_revoked"],
	] {
		print(c)
		rules(common.baseline_denials) == {c[2]} with input as with_devices([gpu, object.union(gpu, {c[0]: c[1]})])
	}
	found := rules(common.baseline_denials) with input as with_devices([{}])
	found == {"device_not_bound", "device_debuggable", "device_migratable", "device_collateral_expired", "device_tcb_revoked"}
}

test_devices_of_a_type if {
	common.devices_of("nvidia-gpu") == [gpu] with input as with_devices([{"type": "tpm"}, gpu])
	common.devices_of("nvidia-gpu") == [] with input as good
}

test_chip_in_several_networks if {
	common.chip_networks_denials(1) == set() with input as {"chip": {"networks": 1}}
	rules(common.chip_networks_denials(1)) == {"chip_networks"} with input as {"chip": {"networks": 2}}
	rules(common.chip_networks_denials(1)) == {"chip_networks"} with input as {}
	rules(common.chip_networks_denials({1})) == {"chip_networks"} with input as {"chip": {"networks": 1}}
}

# What the evidence does not say is denied once, by its name.
test_unstated if {
	every c in [["migratable", true], ["tcb/status", "Unstated"]] {
		doc := json.patch(with_claim(c[0], c[1]), [{"op": "add", "path": "/attestation/unstated", "value": [replace(c[0], "/", ".")]}])
		found := common.baseline_denials with input as doc
		{[r.rule, r.claim] | some r in found} == {["unstated", concat(".", ["attestation", replace(c[0], "/", ".")])]}
	}
	debug := json.patch(with_claim("debuggable", true), [{"op": "add", "path": "/attestation/unstated", "value": ["debuggable"]}])
	rules(common.baseline_denials) == {"debuggable"} with input as debug
	rules(common.floor_denials) == {"debuggable"} with input as debug
	rules(common.baseline_denials) == {"tcb_revoked"} with input as with_claim("tcb/status", "Unstated")
	rules(common.baseline_denials) == {"device_unstated"} with input as with_devices([object.union(gpu, {"unstated": ["migratable"]})])
}
