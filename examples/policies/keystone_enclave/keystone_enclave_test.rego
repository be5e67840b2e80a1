package claviger.release.keystone_enclave_test

import data.claviger.release.keystone_enclave

# Written by hand: digests of one repeated digit.
request := object.union(data.fixtures.keystone_report, {"time": "2026-11-24T12:00:00Z"})

references := {"r1": {
	"name": "r1", "type": "keystone", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"},
	"values": {"enclave_hash": [request.attestation.measurements.enclave_hash]},
}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc, refs) if {
	keystone_enclave.allow with input as doc with data.reference as refs
	count(keystone_enclave.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in keystone_enclave.deny} with input as doc with data.reference as refs
}

test_allowed if released(request, references)

test_obligations if keystone_enclave.obligations == {"ttl": "1h"}

# The policy names its monitors; the broker's configuration need not.
test_endorsed_by_the_policy if released(edit("bound_to_cpu_tee", false), references)

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "tdx", "evidence_type"],
		["simulated", true, "simulated"],
		["keystone/sm_hash", "66", "sm_unknown"],
		["measurements/enclave_hash", "00", "enclave_hash_unknown"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		c[2] in rules(edit(c[0], c[1]), references)
	}
}

test_a_key_that_can_be_guessed if {
	doc := json.patch(edit("debuggable", true), [{"op": "replace", "path": "/attestation/keystone/weak_sm_key", "value": true}])
	not released(doc, references)
	rules(doc, references) == {"debuggable"}
}

test_nothing_is_denied if not released({}, references)
