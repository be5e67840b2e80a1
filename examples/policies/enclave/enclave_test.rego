package claviger.release.enclave_test

import data.claviger.release.enclave

request := object.union(data.fixtures.sgx_hardening, {"time": "2026-11-24T12:00:00Z"})

references := {"r1": {
	"name": "r1", "type": "sgx", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"},
	"values": {"mrenclave": [request.attestation.measurements.mrenclave]},
}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc, refs) if {
	enclave.allow with input as doc with data.reference as refs
	count(enclave.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in enclave.deny} with input as doc with data.reference as refs
}

test_by_signer if released(request, {})

test_obligations if enclave.obligations == {"ttl": "1h"}

test_by_release if {
	other := edit("sgx/mrsigner", "00")
	released(other, references)
	not released(other, {})
	rules(other, {}) == {"mrsigner_unknown", "mrenclave_unknown"}
}

test_old_version_or_other_product if {
	every c in [["sgx/isvsvn", 2, "isvsvn"], ["sgx/isvprodid", 8, "isvprodid"]] {
		not released(edit(c[0], c[1]), {})
		rules(edit(c[0], c[1]), {}) == {c[2], "mrenclave_unknown"}
	}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "tdx", "evidence_type"],
		["debuggable", true, "debuggable"],
		["sgx/attributes/debug", true, "attributes_debug"],
		["sgx/attributes/provisionkey", true, "attributes_provisionkey"],
		["tcb/status", "OutOfDate", "tcb_status"],
		["sgx/qe_tcb/tcb_status", "OutOfDate", "tcb_status"],
		["tcb/advisories", ["INTEL-SA-00837"], "tcb_advisory"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		c[2] in rules(edit(c[0], c[1]), references)
	}
}

test_nothing_is_denied if not released({}, references)
