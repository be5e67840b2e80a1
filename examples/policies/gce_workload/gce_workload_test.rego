package claviger.release.gce_workload_test

import data.claviger.release.gce_workload

request := object.union(data.fixtures.gce_tdx, {"time": "2026-11-24T12:00:00Z"})

m := request.attestation.measurements

references := {"r1": {
	"name": "r1", "type": "gce-vtpm", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"},
	"values": {"mrtd": [m.mrtd], "rtmr1": [m.rtmr1], "rtmr2": [m.rtmr2]},
}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc) if {
	gce_workload.allow with input as doc with data.reference as references
	count(gce_workload.deny) == 0 with input as doc with data.reference as references
}

rules(doc) := found if {
	found := {r.rule | some r in gce_workload.deny} with input as doc with data.reference as references
}

test_allowed if released(request)

test_obligations if gce_workload.obligations == {"ttl": "1h"}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["type", "tdx", "evidence_type"],
		["debuggable", true, "debuggable"],
		["simulated", true, "simulated"],
		["measurements/mrtd", "00", "mrtd_unknown"],
		["measurements/rtmr2", "00", "rtmr2_unknown"],
		["gce_vtpm/instance/project_id", "project-2", "project_unknown"],
		["tdx/tdattributes/sept_ve_disable", false, "tdattributes_sept_ve_disable"],
		["tcb/status", "OutOfDate", "tcb_status"],
	] {
		print(c)
		not released(edit(c[0], c[1]))
		rules(edit(c[0], c[1])) == {c[2]}
	}
}

test_nothing_is_denied if not released({})
