package claviger.release.disks_test

import data.claviger.release.disks

image := data.fixtures.snp_milan.attestation.measurements.measurement

references := {"fleet-1.4.0": {"name": "fleet-1.4.0", "type": "sev-snp", "state": "active", "values": {"measurement": [image]}, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}}

request := object.union(data.fixtures.snp_milan, {"time": "2026-11-24T12:00:00Z", "resource": {"path": "disks/vm-17", "params": {"vm": "vm-17"}}})

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc) if {
	disks.allow with input as doc with data.reference as references
	count(disks.deny) == 0 with input as doc with data.reference as references
}

rules(doc) := found if {
	found := {r.rule | some r in disks.deny} with input as doc with data.reference as references
}

test_fleet_image_is_allowed if released(request)

test_obligations if disks.obligations == {"ttl": "1h"}

test_other_image_is_denied if {
	doc := edit("measurements/measurement", "00")
	not released(doc)
	not disks.allow with input as doc with data.reference as references
	rules(doc) == {"measurement_unknown"}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["debuggable", true, "debuggable"],
		["simulated", true, "simulated"],
		["collateral/state", "expired", "collateral_expired"],
		["sev_snp/vmpl", 2, "vmpl"],
		["sev_snp/policy/debug", true, "policy_debug"],
		["sev_snp/policy/migrate_ma", true, "policy_migrate_ma"],
		["sev_snp/reported_tcb/snp", 7, "tcb_floor"],
		["sev_snp/reported_tcb/microcode", 114, "tcb_floor"],
		["hardware_model", "Turin", "tcb_no_floor"],
		["type", "tdx", "evidence_type"],
	] {
		print(c)
		not released(edit(c[0], c[1]))
		rules(edit(c[0], c[1])) == {c[2]}
	}
}

test_nothing_is_denied if {
	not released({})
	not released({"time": "2026-11-24T12:00:00Z"})
}
