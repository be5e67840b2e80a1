package claviger.release.enclave_test

import data.claviger.release.enclave

request := object.union(data.fixtures.sgx_hardening, {"time": "2026-11-24T12:00:00Z"})

# By the signer, no reference set is needed.
references := {}

listed := {"r1": {
	"name": "r1", "type": "sgx", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"},
	"values": {"mrenclave": [request.attestation.measurements.mrenclave]},
}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	enclave.allow with input as doc with data.reference as refs
	count(enclave.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in enclave.deny} with input as doc with data.reference as refs
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

test_obligations if enclave.obligations == {"ttl": "1h"}

# Each row of README.md has its test here.

test_signer if refused([["attestation/sgx/mrsigner", "00"]], {"mrenclave_unknown", "mrsigner_unknown"})

test_product if refused([["attestation/sgx/isvprodid", 8]], {"isvprodid", "mrenclave_unknown"})

test_security_version if refused([["attestation/sgx/isvsvn", 2]], {"isvsvn", "mrenclave_unknown"})

test_tcb_status if refused([["attestation/tcb/status", "OutOfDate"]], {"tcb_status"})

test_tcb_status_of_parts if refused([["attestation/sgx/qe_tcb/tcb_status", "OutOfDate"]], {"tcb_status"})

test_advisories if refused([["attestation/tcb/advisories", ["INTEL-SA-00837"]]], {"tcb_advisory"})

test_tcb_date if refused([["attestation/tcb/date", "2023-08-09T00:00:00Z"]], {"tcb_date"})

test_tcb_evaluation if refused([["attestation/sgx/tcb_evaluation_data_number", 16]], {"tcb_evaluation"})

test_collateral if refused([["attestation/collateral/state", "expired"]], {"collateral_expired", "collateral_stale"})

test_debug if refused([["attestation/sgx/attributes/debug", true]], {"attributes_debug"})

test_keys if refused([["attestation/sgx/attributes/provisionkey", true], ["attestation/sgx/attributes/einittoken_key", true]], {"attributes_einittoken_key", "attributes_provisionkey"})

test_mode64bit if refused([["attestation/sgx/attributes/mode64bit", false]], {"attributes_mode64bit"})

test_reserved_attributes if refused([["attestation/sgx/attributes/reserved", "0000000000000800"]], {"attributes_reserved"})

test_xfrm if refused([["attestation/sgx/attributes/raw", "0500000000000000e702060000000000"]], {"xfrm_unknown"})

test_miscselect if refused([["attestation/sgx/miscselect", "00000001"]], {"miscselect_unknown"})

test_configid if refused([["attestation/sgx/configid", "01010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101"]], {"configid_unknown"})

test_left_attributes if left([["attestation/sgx/attributes/cet", true], ["attestation/sgx/attributes/aex_notify", true]])

test_left_machine if left([["attestation/sgx/configuration/smt_enabled", false], ["attestation/chip_id", "00"]])

test_type if refused([["attestation/type", "tdx"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})

test_release if {
	other := edit([["attestation/sgx/mrsigner", "00"]])
	released(other, listed)
	not released(edit([["attestation/sgx/mrsigner", "00"], ["attestation/measurements/mrenclave", "00"]]), listed)
}
