package nvidia_gpu_test

import data.claviger.lib.common
import data.claviger.lib.nvidia_gpu

good := {"attestation": {
	"type": "nvidia-gpu", "hardware_model": "Hopper", "bound": true, "debuggable": false, "simulated": false, "bound_to_cpu_tee": false,
	"collateral": {"state": "fresh"}, "tcb": {"status": "Unknown"},
	"nvidia_gpu": {"device": "gpu", "rim": "matched", "revocation": "good", "cc_mode": "spt", "driver_version": "580.95.05"},
}}

edit(path, value) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value}])

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({
		nvidia_gpu.gpu_denials, nvidia_gpu.model_denials({"Hopper", "Blackwell"}),
		nvidia_gpu.mode_denials({"spt", "mpt"}), nvidia_gpu.driver_denials({"580.95.05"}),
	}) with input as good
	d == set()
}

# Who relies on the baseline alone is safe.
test_the_baseline_refuses if {
	rules(common.baseline_denials) == {"not_bound_to_cpu_tee"} with input as good
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "nvidia-gpu"}}] {
		d := [
			nvidia_gpu.gpu_denials, nvidia_gpu.switch_denials, nvidia_gpu.rim_denials, nvidia_gpu.revocation_denials,
			nvidia_gpu.model_denials({"Hopper"}), nvidia_gpu.mode_denials({"spt"}), nvidia_gpu.driver_denials({"580.95.05"}),
		] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "tdx", "evidence_type"],
		["debuggable", true, "debuggable"],
		["simulated", true, "simulated"],
		["collateral/state", "expired", "collateral_expired"],
		["nvidia_gpu/rim", "mismatched", "rim_not_matched"],
		["nvidia_gpu/rim", "absent", "rim_not_matched"],
		["nvidia_gpu/revocation", "unknown", "revocation_unknown"],
		["nvidia_gpu/device", "nvswitch", "nvidia_device"],
	] {
		rules(nvidia_gpu.gpu_denials) == {c[2]} with input as edit(c[0], c[1])
	}
}

test_switch if {
	nvidia_gpu.switch_denials == set() with input as edit("nvidia_gpu/device", "nvswitch")
	rules(nvidia_gpu.switch_denials) == {"nvidia_device"} with input as good
}

test_lists if {
	rules(nvidia_gpu.model_denials({"Blackwell"})) == {"nvidia_model"} with input as good
	rules(nvidia_gpu.mode_denials({"mpt"})) == {"cc_mode"} with input as good
	rules(nvidia_gpu.driver_denials(set())) == {"driver_version"} with input as good
}
