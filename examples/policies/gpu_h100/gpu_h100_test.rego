package claviger.release.gpu_h100_test

import data.claviger.release.gpu_h100

# Written by hand in the form of a real report's claims: digests of one repeated digit.
request := object.union(data.fixtures.nvidia_h100, {"time": "2026-11-24T12:00:00Z"})

references := {}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc) if released_by(doc, references)

released_by(doc, refs) if {
	gpu_h100.allow with input as doc with data.reference as refs
	count(gpu_h100.deny) == 0 with input as doc with data.reference as refs
}

rules(doc) := rules_by(doc, references)

rules_by(doc, refs) := found if {
	found := {r.rule | some r in gpu_h100.deny} with input as doc with data.reference as refs
}

# refused(changes, because): nothing is released, for just these reasons.
refused(changes, because) if {
	print(changes, rules(edit(changes)))
	not released(edit(changes))
	rules(edit(changes)) == because
}

# left(changes): the change does not matter, as it is left to others.
left(changes) if {
	print(changes, rules(edit(changes)))
	edit(changes) != request
	released(edit(changes))
}

test_allowed if released(request)

test_nothing_is_denied if not released({})

test_obligations if gpu_h100.obligations == {"ttl": "1h"}

# Each row of README.md has its test here.

test_type if refused([["attestation/type", "tpm"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})

test_device if refused([["attestation/nvidia_gpu/device", "nvswitch"]], {"nvidia_device"})

test_gpu_model if refused([["attestation/hardware_model", "Blackwell"]], {"nvidia_model"})

test_cc_mode if refused([["attestation/nvidia_gpu/cc_mode", "ppcie"]], {"cc_mode"})

test_driver if refused([["attestation/nvidia_gpu/driver_version", "550.90.07"]], {"driver_version"})

test_vbios if refused([["attestation/nvidia_gpu/vbios_version", "96.00.5E.00.01"]], {"vbios_version"})

test_rim if refused([["attestation/nvidia_gpu/rim", "mismatched"]], {"rim_not_matched"})

test_revocation if refused([["attestation/nvidia_gpu/revocation", "unknown"]], {"revocation_unknown"})

test_left_chip if left([["attestation/chip_id", "0908070605040302"]])

test_left_machine if left([["attestation/bound_to_cpu_tee", true]])
