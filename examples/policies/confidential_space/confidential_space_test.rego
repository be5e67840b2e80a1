package claviger.release.confidential_space_test

import data.claviger.release.confidential_space

# Written by hand in the form of a real token's claims: digests of one repeated byte.
request := object.union(data.fixtures.space_token, {"time": "2026-11-24T12:00:00Z"})

values := {"image_digest": [request.attestation.measurements.image_digest]}

references := {"r1": {"name": "r1", "type": "attestation-result", "state": "active", "values": values, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc, refs) if {
	confidential_space.allow with input as doc with data.reference as refs
	count(confidential_space.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in confidential_space.deny} with input as doc with data.reference as refs
}

test_allowed if released(request, references)

test_obligations if confidential_space.obligations == {"ttl": "1h"}

test_the_image_counts if {
	doc := edit("measurements/image_digest", "00")
	not released(doc, references)
	rules(doc, references) == {"image_digest_unknown"}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "tdx", "evidence_type"],
		["debuggable", true, "debuggable"],
		["bound_to_cpu_tee", false, "not_bound_to_cpu_tee"],
		["attestation_result/verified_by", "another", "verifier_untrusted"],
		["attestation_result/token/swname", "GCE", "claim_unknown"],
		["attestation_result/token/submods/gce/project_id", "others", "claim_unknown"],
		["attestation_result/token/submods/confidential_space/support_attributes", ["EXPERIMENTAL"], "claim_unknown"],
		["attestation_result/token/google_service_accounts", [], "claim_unknown"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		c[2] in rules(edit(c[0], c[1]), references)
	}
}

test_nothing_is_denied if not released({}, references)
