package claviger.release.nitro_enclave_test

import data.claviger.release.nitro_enclave

# Written by hand in the form of a real document's claims: digests of one repeated digit.
request := object.union(data.fixtures.nitro_document, {"time": "2026-11-24T12:00:00Z"})

values := {name: [request.attestation.measurements[name]] | some name in ["pcr0", "pcr1", "pcr2"]}

references := {"r1": {"name": "r1", "type": "nitro", "state": "active", "values": values, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc, refs) if {
	nitro_enclave.allow with input as doc with data.reference as refs
	count(nitro_enclave.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in nitro_enclave.deny} with input as doc with data.reference as refs
}

test_allowed if released(request, references)

test_obligations if nitro_enclave.obligations == {"ttl": "1h"}

test_each_measurement_counts if {
	every name in ["pcr0", "pcr1", "pcr2"] {
		doc := edit(concat("/", ["measurements", name]), "00")
		not released(doc, references)
		rules(doc, references) == {concat("", [name, "_unknown"])}
	}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "tpm", "evidence_type"],
		["simulated", true, "simulated"],
		["debuggable", true, "debuggable"],
		["nitro/kind", "nitrotpm", "nitro_kind"],
		["nitro/pcrs/3", "44", "pcr_unknown"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		c[2] in rules(edit(c[0], c[1]), references)
	}
}

test_nothing_is_denied if not released({}, references)
