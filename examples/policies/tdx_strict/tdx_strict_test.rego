package claviger.release.tdx_strict_test

import data.claviger.release.tdx_strict

claims := data.fixtures.tdx_uptodate.attestation

values := {name: [v] | some name, v in claims.measurements}

set_of(name, vals) := {"name": name, "type": "tdx", "state": "active", "values": vals, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}

references := {"td-1": set_of("td-1", values)}

request := object.union(data.fixtures.tdx_uptodate, {"time": "2026-11-24T12:00:00Z"})

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc, refs) if {
	tdx_strict.allow with input as doc with data.reference as refs
	count(tdx_strict.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in tdx_strict.deny} with input as doc with data.reference as refs
}

test_allowed if released(request, references)

test_obligations if tdx_strict.obligations == {"ttl": "1h", "require_pq": true}

test_each_register_counts if {
	every r in ["mrtd", "rtmr0", "rtmr1", "rtmr2"] {
		doc := edit(concat("/", ["measurements", r]), "00")
		not released(doc, references)
		rules(doc, references) == {concat("", [r, "_unknown"])}
	}
}

test_registers_of_two_releases if {
	other := {"mrtd": ["00"], "rtmr0": values.rtmr0, "rtmr1": values.rtmr1, "rtmr2": ["11"]}
	doc := edit("measurements/rtmr2", "11")
	not released(doc, {"td-1": references["td-1"], "td-2": set_of("td-2", other)})
	rules(doc, {"td-1": references["td-1"], "td-2": set_of("td-2", other)}) == {"reference_mixed"}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["simulated", true, "simulated"],
		["tcb/status", "OutOfDate", "tcb_status"],
		["tcb/status", "SWHardeningNeeded", "tcb_status"],
		["tdx/qe_tcb/tcb_status", "OutOfDate", "tcb_status"],
		["tcb/date", "2023-08-09T00:00:00Z", "tcb_date"],
		["tcb/advisories", ["INTEL-SA-00837"], "tcb_advisory"],
		["tdx/tdattributes/debug", true, "tdattributes_debug"],
		["tdx/tdattributes/sept_ve_disable", false, "tdattributes_sept_ve_disable"],
		["collateral/state", "stale", "collateral_stale"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		rules(edit(c[0], c[1]), references) == {c[2]}
	}
}

test_nothing_is_denied if not released({}, references)
