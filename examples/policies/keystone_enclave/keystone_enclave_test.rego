package claviger.release.keystone_enclave_test

import data.claviger.release.keystone_enclave

# Written by hand: digests of one repeated digit.
request := object.union(data.fixtures.keystone_report, {"time": "2026-11-24T12:00:00Z"})

references := {"r1": {"name": "r1", "type": "keystone", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": {"enclave_hash": [request.attestation.measurements.enclave_hash]}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	keystone_enclave.allow with input as doc with data.reference as refs
	count(keystone_enclave.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in keystone_enclave.deny} with input as doc with data.reference as refs
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

test_obligations if keystone_enclave.obligations == {"ttl": "1h"}

# Each row of README.md has its test here.

test_enclave_hash if refused([["attestation/measurements/enclave_hash", "00"]], {"enclave_hash_unknown"})

test_monitor if refused([["attestation/keystone/sm_hash", "66"]], {"sm_unknown"})

test_weak_key if refused([["attestation/debuggable", true], ["attestation/keystone/weak_sm_key", true]], {"debuggable"})

test_left_endorsement if left([["attestation/bound_to_cpu_tee", false]])

test_left_chip if left([["attestation/chip_id", "00"]])

test_type if refused([["attestation/type", "tdx"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})
