package claviger.release.tdx_strict_test

import data.claviger.release.tdx_strict

claims := data.fixtures.tdx_uptodate.attestation

values := {name: [v] | some name, v in claims.measurements}

set_of(name, vals) := {"name": name, "type": "tdx", "state": "active", "values": vals, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}

references := {"td-1": set_of("td-1", values)}

request := object.union(data.fixtures.tdx_uptodate, {"time": "2026-11-24T12:00:00Z"})

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	tdx_strict.allow with input as doc with data.reference as refs
	count(tdx_strict.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in tdx_strict.deny} with input as doc with data.reference as refs
}

# refused(changes, because): nothing is released, for just these reasons.
refused(changes, because) if {
	print(changes, rules(edit(changes), references))
	not released(edit(changes), references)
	rules(edit(changes), references) == because
}

# left(changes): the change does not matter, as it is left to others.
left(changes) if {
	print(changes, rules(edit(changes), references))
	edit(changes) != request
	released(edit(changes), references)
}

test_allowed if released(request, references)

test_nothing_is_denied if not released({}, references)

test_obligations if tdx_strict.obligations == {"ttl": "1h", "require_pq": true}

# Each row of README.md has its test here.

test_mrtd if refused([["attestation/measurements/mrtd", "00"]], {"mrtd_unknown"})

test_rtmr0 if refused([["attestation/measurements/rtmr0", "00"]], {"rtmr0_unknown"})

test_rtmr1 if refused([["attestation/measurements/rtmr1", "00"]], {"rtmr1_unknown"})

test_rtmr2 if refused([["attestation/measurements/rtmr2", "00"]], {"rtmr2_unknown"})

test_left_rtmr3 if left([["attestation/measurements/rtmr3", "00"]])

test_left_chip if left([["attestation/chip_id", "01"]])

test_type if refused([["attestation/type", "sev-snp"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})

test_tcb_status if refused([["attestation/tcb/status", "OutOfDate"]], {"tcb_status"})

test_tcb_status_of_parts if refused([["attestation/tdx/qe_tcb/tcb_status", "OutOfDate"]], {"tcb_status"})

test_advisories if refused([["attestation/tcb/advisories", ["INTEL-SA-00837"]]], {"tcb_advisory"})

test_tcb_date if refused([["attestation/tcb/date", "2023-08-09T00:00:00Z"]], {"tcb_date"})

test_tcb_evaluation if refused([["attestation/tdx/tcb_evaluation_data_number", 16]], {"tcb_evaluation"})

test_module_svn if refused([["attestation/tdx/tee_tcb_svn", "04010300000000000000000000000000"]], {"module_svn"})

test_debug if refused([["attestation/tdx/tdattributes/debug", true]], {"tdattributes_debug"})

test_sept_ve_disable if refused([["attestation/tdx/tdattributes/sept_ve_disable", false]], {"tdattributes_sept_ve_disable"})

test_migratable if refused([["attestation/tdx/tdattributes/migratable", true]], {"tdattributes_migratable"})

test_service_td if refused([["attestation/tdx/mrservicetd", "abababababababababababababababababababababababababababababababababababababababababababababababab"]], {"mrservicetd"})

test_profiling if refused([["attestation/tdx/tdattributes/perf_prof", true]], {"tdattributes_perf_prof"})

test_perfmon if refused([["attestation/tdx/tdattributes/perfmon", true]], {"tdattributes_perfmon"})

test_reserved_attributes if refused([["attestation/tdx/tdattributes/reserved", "0000000000000100"]], {"tdattributes_reserved"})

test_xfam if refused([["attestation/tdx/xfam", "e742060000000000"]], {"xfam_unknown"})

test_owner if refused([["attestation/tdx/mrconfigid", "010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101"], ["attestation/tdx/mrowner", "010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101"], ["attestation/tdx/mrownerconfig", "010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101"]], {"mrconfigid_unknown", "mrowner_unknown", "mrownerconfig_unknown"})

test_left_attributes if left([["attestation/tdx/tdattributes/pks", true], ["attestation/tdx/tdattributes/lass", true], ["attestation/tdx/tdattributes/icssd", true]])

test_left_mrseam if left([["attestation/tdx/mrseam", "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"]])

test_collateral if refused([["attestation/collateral/state", "stale"]], {"collateral_stale"})

test_registers_of_two_releases if {
	other := {"mrtd": ["00"], "rtmr0": values.rtmr0, "rtmr1": values.rtmr1, "rtmr2": ["11"]}
	doc := edit([["attestation/measurements/rtmr2", "11"]])
	not released(doc, {"td-1": references["td-1"], "td-2": set_of("td-2", other)})
	rules(doc, {"td-1": references["td-1"], "td-2": set_of("td-2", other)}) == {"reference_mixed"}
}
