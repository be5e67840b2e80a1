package claviger.release.gpu_h100_test

import data.claviger.release.gpu_h100

# Written by hand in the form of a real report's claims: digests of one repeated digit.
request := object.union(data.fixtures.nvidia_h100, {"time": "2026-11-24T12:00:00Z"})

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc) if {
	gpu_h100.allow with input as doc
	count(gpu_h100.deny) == 0 with input as doc
}

rules(doc) := found if {
	found := {r.rule | some r in gpu_h100.deny} with input as doc
}

test_allowed if released(request)

test_obligations if gpu_h100.obligations == {"ttl": "1h"}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "tpm", "evidence_type"],
		["simulated", true, "simulated"],
		["debuggable", true, "debuggable"],
		["hardware_model", "Blackwell", "nvidia_model"],
		["nvidia_gpu/device", "nvswitch", "nvidia_device"],
		["nvidia_gpu/rim", "expired", "rim_not_matched"],
		["nvidia_gpu/rim", "mismatched", "rim_not_matched"],
		["nvidia_gpu/rim", "absent", "rim_not_matched"],
		["nvidia_gpu/revocation", "unknown", "revocation_unknown"],
		["nvidia_gpu/cc_mode", "ppcie", "cc_mode"],
		["nvidia_gpu/driver_version", "550.90.07", "driver_version"],
	] {
		print(c)
		not released(edit(c[0], c[1]))
		c[2] in rules(edit(c[0], c[1]))
	}
}

test_nothing_is_denied if not released({})
