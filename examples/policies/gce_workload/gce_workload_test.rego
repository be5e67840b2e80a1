package claviger.release.gce_workload_test

import data.claviger.release.gce_workload

request := object.union(data.fixtures.gce_tdx, {"time": "2026-11-24T12:00:00Z"})

m := request.attestation.measurements

references := {"r1": {"name": "r1", "type": "gce-vtpm", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": {"mrtd": [m.mrtd], "rtmr0": [m.rtmr0], "rtmr1": [m.rtmr1], "rtmr2": [m.rtmr2]}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc) if released_by(doc, references)

released_by(doc, refs) if {
	gce_workload.allow with input as doc with data.reference as refs
	count(gce_workload.deny) == 0 with input as doc with data.reference as refs
}

rules(doc) := rules_by(doc, references)

rules_by(doc, refs) := found if {
	found := {r.rule | some r in gce_workload.deny} with input as doc with data.reference as refs
}

# refused(changes, because): nothing is released, for just these reasons.
refused(changes, because) if {
	print(changes, rules(edit(changes)))
	not released(edit(changes))
	rules(edit(changes)) == because
}

# left(changes): the change does not matter, as it is left to others.
left(changes) if {
	print(changes, rules(edit(changes)))
	edit(changes) != request
	released(edit(changes))
}

test_allowed if released(request)

test_nothing_is_denied if not released({})

test_obligations if gce_workload.obligations == {"ttl": "1h"}

# Each row of README.md has its test here.

test_mrtd if refused([["attestation/measurements/mrtd", "00"]], {"mrtd_unknown"})

test_rtmr0 if refused([["attestation/measurements/rtmr0", "00"]], {"rtmr0_unknown"})

test_rtmr1 if refused([["attestation/measurements/rtmr1", "00"]], {"rtmr1_unknown"})

test_rtmr2 if refused([["attestation/measurements/rtmr2", "00"]], {"rtmr2_unknown"})

test_project if refused([["attestation/gce_vtpm/instance/project_id", "project-2"]], {"project_unknown"})

test_hardware if refused([["attestation/gce_vtpm/hardware", "sev-snp"]], {"hardware"})

test_left_pcrs if left([["attestation/measurements/pcr4", "00"]])

test_left_instance if left([["attestation/gce_vtpm/instance/id", "1"]])

test_left_rtmr3 if left([["attestation/measurements/rtmr3", "00"]])

test_type if refused([["attestation/type", "tdx"]], {"evidence_type"})

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

test_collateral if refused([["attestation/collateral/state", "expired"]], {"collateral_expired", "collateral_stale"})
