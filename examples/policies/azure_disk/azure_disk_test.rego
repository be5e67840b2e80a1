package claviger.release.azure_disk_test

import data.claviger.release.azure_disk

vm := "5f0c9c2e-8d3f-4b0a-9c55-0242ac120002"

request := object.union(data.fixtures.azure_snp, {"time": "2026-11-24T12:00:00Z", "resource": {"params": {"vm": vm}}})

m := request.attestation.measurements

references := {"r1": {
	"name": "r1", "type": "azure-vtpm", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"},
	"values": {"pcr4": [m.pcr4], "pcr7": [m.pcr7], "pcr9": [m.pcr9]},
}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc) if {
	azure_disk.allow with input as doc with data.reference as references
	count(azure_disk.deny) == 0 with input as doc with data.reference as references
}

rules(doc) := found if {
	found := {r.rule | some r in azure_disk.deny} with input as doc with data.reference as references
}

test_allowed if released(request)

test_obligations if azure_disk.obligations == {"ttl": "10m"}

test_another_vm if {
	doc := json.patch(request, [{"op": "replace", "path": "resource/params/vm", "value": "another"}])
	not released(doc)
	rules(doc) == {"not_own_resource"}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "sev-snp", "evidence_type"],
		["debuggable", true, "debuggable"],
		["simulated", true, "simulated"],
		["measurements/measurement", "00", "paravisor_unknown"],
		["measurements/pcr4", "00", "pcr4_unknown"],
		["measurements/pcr7", "00", "pcr7_unknown"],
		["measurements/pcr9", "00", "pcr9_unknown"],
		["azure_vtpm/vm_configuration/secure_boot", false, "secure_boot"],
	] {
		print(c)
		not released(edit(c[0], c[1]))
		rules(edit(c[0], c[1])) == {c[2]}
	}
}

test_nothing_is_denied if not released({})
