package claviger.release.workload_test

import data.claviger.release.workload

claims := data.fixtures.snp_milan.attestation

# The fixture's HOST_DATA is SHA-256("payments").
request := ask("payments", claims.host_data)

references := {"fleet": set_of("fleet", {"measurement": [claims.measurements.measurement]})}

by_reference := {
	"payments-7": set_of("payments-7", {"measurement": [claims.measurements.measurement], "host_data": ["aa"], "workload": ["payments"]}),
	"reports-3": set_of("reports-3", {"measurement": [claims.measurements.measurement], "host_data": ["bb"], "workload": ["reports"]}),
}

set_of(name, values) := {"name": name, "type": "sev-snp", "state": "active", "values": values, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}

ask(workload, host_data) := json.patch(
	object.union(data.fixtures.snp_milan, {"time": "2026-11-24T12:00:00Z", "resource": {"path": "w/x", "params": {"workload": workload}}}),
	[{"op": "replace", "path": "attestation/host_data", "value": host_data}],
)

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	workload.allow with input as doc with data.reference as refs
	count(workload.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in workload.deny} with input as doc with data.reference as refs
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

test_obligations if workload.obligations == {"ttl": "15m"}

# Each row of README.md has its test here.

test_measurement if refused([["attestation/measurements/measurement", "00"]], {"host_data_not_this_workload", "measurement_unknown"})

test_no_workload if refused([["resource/params", {}]], {"host_data_not_this_workload"})

test_left_workload if left([["attestation/host_data", crypto.sha256("reports")], ["resource/params/workload", "reports"]])

test_left_chip if left([["attestation/chip_id", "00"]])

test_type if refused([["attestation/type", "tdx"]], {"evidence_type", "host_data_not_this_workload"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})

test_reported_tcb if refused([["attestation/sev_snp/reported_tcb/microcode", 218]], {"tcb_floor"})

test_launch_tcb if refused([["attestation/sev_snp/launch_tcb/snp", 0]], {"launch_tcb_floor"})

test_committed_tcb if refused([["attestation/sev_snp/committed_tcb/snp", 23]], {"committed_tcb_floor"})

test_model if refused([["attestation/hardware_model", "Turin"]], {"tcb_no_floor"})

test_report_version if refused([["attestation/sev_snp/version", 2]], {"report_version"})

test_vmpl if refused([["attestation/sev_snp/vmpl", 2]], {"vmpl"})

test_policy_debug if refused([["attestation/sev_snp/policy/debug", true]], {"policy_debug"})

test_migration_agent if refused([["attestation/sev_snp/policy/migrate_ma", true]], {"policy_migrate_ma"})

test_policy_cxl if refused([["attestation/sev_snp/policy/cxl_allow", true]], {"policy_cxl_allow"})

test_unknown_bits if refused([["attestation/sev_snp/policy/unknown_bits", "1099511627776"]], {"policy_unknown_bits"})

test_ecc if refused([["attestation/sev_snp/platform_info/ecc_en", false]], {"platform_info_ecc_en"})

test_alias_check if refused([["attestation/sev_snp/platform_info/alias_check_complete", false]], {"platform_info_alias_check_complete"})

test_signing_key if refused([["attestation/sev_snp/signing_key", "VLEK"], ["attestation/sev_snp/csp_id", "CN=cloud"]], {"csp_unknown", "signing_key"})

test_collateral if refused([["attestation/collateral/state", "expired"]], {"collateral_expired", "collateral_stale"})

test_left_smt if left([["attestation/sev_snp/policy/smt", false], ["attestation/sev_snp/platform_info/smt_en", false]])

test_left_single_socket if left([["attestation/sev_snp/policy/single_socket", true]])

test_left_new_bits if left([["attestation/sev_snp/policy/mem_aes_256_xts", true], ["attestation/sev_snp/policy/ciphertext_hiding_dram", true], ["attestation/sev_snp/policy/page_swap_disable", true], ["attestation/sev_snp/policy/rapl_dis", true], ["attestation/sev_snp/platform_info/ciphertext_hiding_dram_en", true], ["attestation/sev_snp/platform_info/rapl_dis", true]])

test_left_platform if left([["attestation/sev_snp/platform_info/tsme_en", true], ["attestation/sev_snp/platform_info/tio_en", true]])

test_left_mitigations if left([["attestation/sev_snp/launch_mit_vector", "0"]])

test_by_name if {
	released(ask("payments", claims.host_data), references)
	not released(ask("payments", "aa"), references)
}

test_by_reference if {
	released(ask("payments", "aa"), by_reference)
	released(ask("reports", "bb"), by_reference)
	not released(ask("payments", "cc"), by_reference)
}

test_one_workload_cannot_ask_for_another if {
	not released(ask("reports", "aa"), by_reference)
	not released(ask("reports", claims.host_data), references)
	rules(ask("reports", "aa"), by_reference) == {"host_data_not_this_workload"}
	rules(ask("reports", claims.host_data), references) == {"host_data_not_this_workload"}
}

test_ways_do_not_mix if {
	every values in [
		{"measurement": [claims.measurements.measurement], "host_data": ["aa"], "workload": ["payments"]},
		{"measurement": [claims.measurements.measurement], "host_data": [claims.host_data]},
		{"measurement": [claims.measurements.measurement], "workload": ["payments"]},
	] {
		not released(request, {"s": set_of("s", values)})
		rules(request, {"s": set_of("s", values)}) == {"host_data_not_this_workload"}
	}
}

test_set_of_two_workloads if {
	both := {"measurement": [claims.measurements.measurement], "host_data": ["aa", "bb"], "workload": ["payments", "billing"]}
	every w in ["payments", "billing"] {
		not released(ask(w, "aa"), {"s": set_of("s", both)})
	}
}

test_nearest_says_what_it_should_be if {
	some r in workload.deny with input as ask("reports", "aa") with data.reference as references
	r.nearest == sprintf("%s (SHA-256 of \"reports\")", [crypto.sha256("reports")])
}
