package claviger.release.nitro_enclave_test

import data.claviger.release.nitro_enclave

# Written by hand in the form of a real document's claims: digests of one repeated digit.
request := object.union(data.fixtures.nitro_document, {"time": "2026-11-24T12:00:00Z"})

values := {name: [request.attestation.measurements[name]] | some name in ["pcr0", "pcr1", "pcr2"]}

references := {"r1": {"name": "r1", "type": "nitro", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": values}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	nitro_enclave.allow with input as doc with data.reference as refs
	count(nitro_enclave.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in nitro_enclave.deny} with input as doc with data.reference as refs
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

test_obligations if nitro_enclave.obligations == {"ttl": "1h"}

# Each row of README.md has its test here.

test_pcr0 if refused([["attestation/measurements/pcr0", "00"]], {"pcr0_unknown"})

test_pcr1 if refused([["attestation/measurements/pcr1", "00"]], {"pcr1_unknown"})

test_pcr2 if refused([["attestation/measurements/pcr2", "00"]], {"pcr2_unknown"})

test_role if refused([["attestation/nitro/pcrs/3", "44"]], {"pcr_unknown"})

test_no_role if refused([["attestation/nitro/pcrs/3", "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"]], {"pcr_unknown"})

test_kind if refused([["attestation/nitro/kind", "nitrotpm"]], {"nitro_kind"})

test_left_instance if left([["attestation/nitro/pcrs/4", "55"]])

test_left_signer if left([["attestation/nitro/pcrs/8", "99"]])

test_left_cpu if left([["attestation/bound_to_cpu_tee", true]])

test_type if refused([["attestation/type", "tpm"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})
