package claviger.release.psa_device_test

import data.claviger.release.psa_device

# Written by hand: digests of one repeated digit.
claims := data.fixtures.psa_token.attestation

request := {"attestation": claims, "resource": {"path": "device/x", "params": {"device": claims.chip_id}}, "time": "2026-11-24T12:00:00Z"}

references := {"r1": {
	"name": "r1", "type": "psa", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"},
	"values": {"spe": [claims.measurements.spe], "nspe": [claims.measurements.nspe]},
}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": path, "value": value}])

released(doc, refs) if {
	psa_device.allow with input as doc with data.reference as refs
	count(psa_device.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in psa_device.deny} with input as doc with data.reference as refs
}

test_allowed if released(request, references)

test_obligations if psa_device.obligations == {"ttl": "24h"}

test_each_demand_counts if {
	every c in [
		["/attestation/bound", false, "not_bound"],
		["/attestation/type", "cca", "evidence_type"],
		["/attestation/simulated", true, "simulated"],
		["/attestation/debuggable", true, "debuggable"],
		["/attestation/measurements/nspe", "00", "nspe_unknown"],
		["/attestation/psa/software_components/0/signer_id", "66", "signer_unknown"],
		["/resource/params/device", "01ee", "not_own_resource"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		c[2] in rules(edit(c[0], c[1]), references)
	}
}

test_nothing_is_denied if not released({}, references)
