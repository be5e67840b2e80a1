package claviger.release.cca_realm_test

import data.claviger.release.cca_realm

# Written by hand: digests of one repeated digit.
claims := data.fixtures.cca_token.attestation

request := {"attestation": claims, "time": "2026-11-24T12:00:00Z"}

references := {"r1": {
	"name": "r1", "type": "cca", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"},
	"values": {"rim": [claims.measurements.rim]},
}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": path, "value": value}])

released(doc, refs) if {
	cca_realm.allow with input as doc with data.reference as refs
	count(cca_realm.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in cca_realm.deny} with input as doc with data.reference as refs
}

test_allowed if released(request, references)

test_obligations if cca_realm.obligations == {"ttl": "1h"}

test_each_demand_counts if {
	every c in [
		["/attestation/bound", false, "not_bound"],
		["/attestation/type", "psa", "evidence_type"],
		["/attestation/simulated", true, "simulated"],
		["/attestation/debuggable", true, "debuggable"],
		["/attestation/measurements/rim", "00", "rim_unknown"],
		["/attestation/cca/platform/sw_components/0/signer_id", "66", "signer_unknown"],
		["/attestation/cca/realm/personalization_value", "66", "personalization_unknown"],
		["/attestation/cca/realm/extensible_measurements/0", "66", "extended"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		c[2] in rules(edit(c[0], c[1]), references)
	}
}

test_nothing_is_denied if not released({}, references)
