package nvidia_gpu_test

import data.claviger.lib.common
import data.claviger.lib.nvidia_gpu

good := {"attestation": {
	"type": "nvidia-gpu", "hardware_model": "Hopper", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": false,
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

gpu(pdi, switches) := json.patch(good.attestation, [
	{"op": "add", "path": "chip_id", "value": pdi},
	{"op": "add", "path": "nvidia_gpu/switch_pdis", "value": switches},
	{"op": "add", "path": "nvidia_gpu/gpu_pdis", "value": []},
])

switch(pdi, gpus) := json.patch(gpu(pdi, []), [
	{"op": "add", "path": "nvidia_gpu/device", "value": "nvswitch"},
	{"op": "add", "path": "nvidia_gpu/gpu_pdis", "value": gpus},
])

guest(devices) := {"attestation": {"type": "sev-snp", "devices": devices}}

test_gpus_beside_a_cpu if {
	nvidia_gpu.gpus_denials(2, {"spt"}) == set() with input as guest([gpu("g1", []), gpu("g2", []), {"type": "tpm"}])
	rules(nvidia_gpu.gpus_denials(2, {"spt"})) == {"gpus_missing"} with input as guest([gpu("g1", [])])
	rules(nvidia_gpu.gpus_denials(1, {"spt"})) == {"gpus_missing"} with input as {}
	rules(nvidia_gpu.gpus_denials(1, {"mpt"})) == {"cc_mode"} with input as guest([gpu("g1", [])])
	nvidia_gpu.gpus_denials(1, {"spt"}) == set() with input as guest([gpu("g1", []), switch("s1", ["g1"])])
	bad := json.patch(gpu("g2", []), [{"op": "add", "path": "nvidia_gpu/rim", "value": "mismatched"}])
	rules(nvidia_gpu.gpus_denials(1, {"spt"})) == {"rim_not_matched"} with input as guest([gpu("g1", []), bad])
	revoked := json.patch(switch("s1", ["g1"]), [{"op": "add", "path": "nvidia_gpu/revocation", "value": "unknown"}])
	rules(nvidia_gpu.gpus_denials(1, {"spt"})) == {"revocation_unknown"} with input as guest([gpu("g1", []), revoked])
	count(nvidia_gpu.gpus_denials(1, {"spt"})) > 0 with input as guest([{"type": "nvidia-gpu"}])
}

test_topology if {
	both := ["s1", "s2"]
	nvidia_gpu.topology_denials == set() with input as guest([gpu("g1", []), gpu("g2", [])])
	nvidia_gpu.topology_denials == set() with input as guest([gpu("g1", both), gpu("g2", both), switch("s1", ["g2", "g1"]), switch("s2", ["g1", "g2"])])
	every devices in [
		[gpu("g1", both)],
		[gpu("g1", both), switch("s1", ["g1"])],
		[gpu("g1", []), switch("s1", ["g1"])],
		[gpu("g1", ["s1"]), switch("s1", ["g9"])],
		[gpu("g1", ["s1"]), gpu("g2", ["s1"]), switch("s1", ["g1"])],
		[{"type": "nvidia-gpu"}],
	] {
		print(devices)
		rules(nvidia_gpu.topology_denials) == {"topology"} with input as guest(devices)
	}
}
