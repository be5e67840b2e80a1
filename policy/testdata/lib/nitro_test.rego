package nitro_test

import data.claviger.lib.common
import data.claviger.lib.nitro

good := {
	"attestation": {
		"type": "nitro", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": false,
		"collateral": {"state": "fresh"}, "tcb": {"status": "Unknown"},
		"nitro": {"kind": "enclave", "instance_id": "i-1", "pcrs": {"0": "aa", "8": "bb", "9": "00"}},
	},
	"resource": {"params": {"instance": "i-1"}},
}

edit(path, value) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value}])

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({nitro.enclave_denials, nitro.pcr_denials({"0": {"aa", "cc"}, "8": {"bb"}}), nitro.own_denials("instance")}) with input as good
	d == set()
	nitro.tpm_denials == set() with input as edit("nitro/kind", "nitrotpm")
}

# Who relies on the baseline alone is safe.
test_the_baseline_refuses if {
	rules(common.baseline_denials) == {"not_bound_to_cpu_tee"} with input as good
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "nitro"}}] {
		d := [nitro.enclave_denials, nitro.tpm_denials, nitro.pcr_denials({"0": {"aa"}}), nitro.own_denials("instance")] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_kind if {
	rules(nitro.tpm_denials) == {"nitro_kind"} with input as good
	rules(nitro.enclave_denials) == {"nitro_kind"} with input as edit("nitro/kind", "nitrotpm")
}

test_the_rest_of_the_baseline if {
	every c in [["debuggable", true, "debuggable"], ["bound", false, "not_bound"], ["simulated", true, "simulated"], ["type", "tpm", "evidence_type"], ["tcb/status", "Revoked", "tcb_revoked"]] {
		rules(nitro.enclave_denials) == {c[2]} with input as edit(c[0], c[1])
	}
}

test_pcrs if {
	rules(nitro.pcr_denials({"0": {"bb"}, "8": {"bb"}})) == {"pcr_unknown"} with input as good
	rules(nitro.pcr_denials({"7": {"bb"}})) == {"pcr_unknown"} with input as good
	rules(nitro.pcr_denials({"9": {"00"}})) == {"pcr_unknown"} with input as good
}

test_own if {
	rules(nitro.own_denials("instance")) == {"not_own_resource"} with input as edit("nitro/instance_id", "i-2")
	rules(nitro.own_denials("instance")) == {"not_own_resource"} with input as edit("nitro/instance_id", "")
	rules(nitro.own_denials("other")) == {"not_own_resource"} with input as good
}
