package claviger.release.gpu_guest_test

import data.claviger.release.gpu_guest

# A real Milan report's claims, and an H100's as its report has them.
cpu := data.fixtures.snp_milan

gpu := object.union(data.fixtures.nvidia_h100.attestation, {"vouched_by": "sev-snp"})

request := object.union(cpu, {"attestation": {"bound": true, "devices": [gpu]}, "chip": {"networks": 1}, "time": "2026-11-24T12:00:00Z"})

references := {"image-1": {
	"name": "image-1", "type": "sev-snp", "state": "active",
	"values": {"measurement": [cpu.attestation.measurements.measurement]}, "provenance": {"added_at": "2026-11-01T00:00:00Z"},
}}

edit(path, value) := json.patch(request, [{"op": "add", "path": path, "value": value}])

released(doc) if {
	gpu_guest.allow with input as doc with data.reference as references
	count(gpu_guest.deny) == 0 with input as doc with data.reference as references
}

rules(doc) := found if {
	found := {r.rule | some r in gpu_guest.deny} with input as doc with data.reference as references
}

test_allowed if released(request)

test_obligations if gpu_guest.obligations == {"ttl": "1h", "require_pq": true}

test_each_demand_counts if {
	every c in [
		["attestation/bound", false, "not_bound"],
		["attestation/measurements/measurement", "00", "measurement_unknown"],
		["attestation/sev_snp/vmpl", 3, "vmpl"],
		["attestation/devices", [], "gpus_missing"],
		["attestation/devices/0/bound", false, "device_not_bound"],
		["attestation/devices/0/hardware_model", "Blackwell", "nvidia_model"],
		["attestation/devices/0/nvidia_gpu/cc_mode", "ppcie", "cc_mode"],
		["attestation/devices/0/nvidia_gpu/driver_version", "535.1", "driver_version"],
		["attestation/devices/0/nvidia_gpu/switch_pdis", ["431d480fe5e87299"], "topology"],
		["chip/networks", 3, "chip_networks"],
	] {
		print(c)
		not released(edit(c[0], c[1]))
		c[2] in rules(edit(c[0], c[1]))
	}
}
