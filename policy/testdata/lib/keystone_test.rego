package keystone_test

import data.claviger.lib.common
import data.claviger.lib.keystone

good := {"attestation": {
	"type": "keystone", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": true,
	"collateral": {"state": "fresh"}, "tcb": {"status": "Unknown"},
	"keystone": {"sm_hash": "aa", "weak_sm_key": false},
}}

edit(changes) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value} | some path, value in changes])

weak := edit({"keystone/weak_sm_key": true, "debuggable": true})

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({keystone.denials, keystone.monitor_denials({"aa", "bb"}), keystone.weak_monitor_denials({"aa"})}) with input as good
	d == set()
}

# Who relies on the baseline alone is safe.
test_the_baseline_refuses if {
	rules(common.baseline_denials) == {"debuggable"} with input as weak
	rules(common.baseline_denials) == {"not_bound_to_cpu_tee"} with input as edit({"bound_to_cpu_tee": false})
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "keystone"}}] {
		d := [keystone.denials, keystone.monitor_denials({"aa"}), keystone.weak_monitor_denials({"aa"})] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_monitor if {
	keystone.monitor_denials({"aa"}) == set() with input as edit({"bound_to_cpu_tee": false})
	rules(keystone.monitor_denials({"bb"})) == {"sm_unknown"} with input as good
	rules(keystone.monitor_denials(set())) == {"sm_unknown"} with input as good
	rules(keystone.monitor_denials({"aa"})) == {"evidence_type"} with input as edit({"type": "tdx"})
}

test_weak if {
	rules(keystone.denials) == {"debuggable"} with input as weak
	rules(keystone.monitor_denials({"aa"})) == {"debuggable"} with input as weak
	keystone.weak_monitor_denials({"aa"}) == set() with input as weak
	rules(keystone.weak_monitor_denials({"bb"})) == {"sm_unknown"} with input as weak

	# What is debuggable for another reason is not excused.
	rules(keystone.weak_monitor_denials({"aa"})) == {"debuggable"} with input as edit({"debuggable": true})
	rules(keystone.weak_monitor_denials({"aa"})) == {"simulated"} with input as edit({"simulated": true})
}
