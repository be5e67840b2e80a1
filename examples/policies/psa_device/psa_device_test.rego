package claviger.release.psa_device_test

import data.claviger.release.psa_device

# Written by hand: digests of one repeated digit.
claims := data.fixtures.psa_token.attestation

request := {"attestation": claims, "resource": {"path": "device/x", "params": {"device": claims.chip_id}}, "time": "2026-11-24T12:00:00Z"}

references := {"r1": {"name": "r1", "type": "psa", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": {"spe": [claims.measurements.spe], "nspe": [claims.measurements.nspe]}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	psa_device.allow with input as doc with data.reference as refs
	count(psa_device.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in psa_device.deny} with input as doc with data.reference as refs
}

# refused(changes, because): nothing is released, for just these reasons.
refused(changes, because) if {
	print(changes, rules(edit(changes), references))
	not released(edit(changes), references)
	rules(edit(changes), references) == because
}

# left(changes): the change does not matter, as it is left to others.
left(changes) if {
	print(changes, rules(edit(changes), references))
	edit(changes) != request
	released(edit(changes), references)
}

test_allowed if released(request, references)

test_nothing_is_denied if not released({}, references)

test_obligations if psa_device.obligations == {"ttl": "24h"}

# Each row of README.md has its test here.

test_spe if refused([["attestation/measurements/spe", "00"]], {"spe_unknown"})

test_nspe if refused([["attestation/measurements/nspe", "00"]], {"nspe_unknown"})

test_signer if refused([["attestation/psa/software_components/0/signer_id", "66"]], {"signer_unknown"})

test_version if refused([["attestation/psa/software_components/1/version", "1.2.9"]], {"component_version"})

test_component if refused([["attestation/psa/software_components/1/measurement_type", "BL"]], {"component_missing", "component_version"})

test_another_device if refused([["resource/params/device", "01ee"]], {"not_own_resource"})

test_client if refused([["attestation/psa/client_id", 7], ["attestation/bound_to_cpu_tee", true]], {"psa_client"})

test_left_memory if left([["attestation/bound_to_cpu_tee", true]])

test_left_seed if left([["attestation/psa/boot_seed", "00"]])

test_type if refused([["attestation/type", "cca"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})
