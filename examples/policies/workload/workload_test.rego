package claviger.release.workload_test

import data.claviger.release.workload

claims := data.fixtures.snp_milan.attestation

# The fixture's HOST_DATA is SHA-256("payments").
by_name := {"fleet": {"name": "fleet", "type": "sev-snp", "state": "active", "values": {"measurement": [claims.measurements.measurement]}, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}}

by_reference := {
	"payments-7": set_of("payments-7", "aa", "payments"),
	"reports-3": set_of("reports-3", "bb", "reports"),
}

set_of(name, host_data, workload) := {"name": name, "type": "sev-snp", "state": "active", "values": {"measurement": [claims.measurements.measurement], "host_data": [host_data], "workload": [workload]}, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}

ask(workload, host_data) := json.patch(
	object.union(data.fixtures.snp_milan, {"time": "2026-11-24T12:00:00Z", "resource": {"path": "w/x", "params": {"workload": workload}}}),
	[{"op": "replace", "path": "attestation/host_data", "value": host_data}],
)

released(doc, references) if {
	workload.allow with input as doc with data.reference as references
	count(workload.deny) == 0 with input as doc with data.reference as references
}

rules(doc, references) := found if {
	found := {r.rule | some r in workload.deny} with input as doc with data.reference as references
}

test_by_name if released(ask("payments", claims.host_data), by_name)

test_by_reference if {
	released(ask("payments", "aa"), by_reference)
	released(ask("reports", "bb"), by_reference)
}

test_one_workload_cannot_ask_for_another if {
	not released(ask("reports", "aa"), by_reference)
	not released(ask("reports", claims.host_data), by_name)
	rules(ask("reports", "aa"), by_reference) == {"host_data_not_this_workload"}
	rules(ask("reports", claims.host_data), by_name) == {"host_data_not_this_workload"}
}

test_nearest_says_what_it_should_be if {
	some r in workload.deny with input as ask("reports", "aa") with data.reference as by_name
	r.nearest == sprintf("%s (SHA-256 of \"reports\")", [crypto.sha256("reports")])
}

test_unknown_image if {
	doc := json.patch(ask("payments", claims.host_data), [{"op": "replace", "path": "attestation/measurements/measurement", "value": "00"}])
	not released(doc, by_name)
	rules(doc, by_name) == {"measurement_unknown", "host_data_not_this_workload"}
}

test_resource_without_the_variable if {
	doc := json.remove(ask("x", claims.host_data), ["resource/params/workload"])
	not released(doc, by_name)
	rules(doc, by_name) == {"host_data_not_this_workload"}
}

test_platform_demands if {
	every c in [["bound", false, "not_bound"], ["sev_snp/vmpl", 1, "vmpl"], ["sev_snp/policy/debug", true, "policy_debug"], ["sev_snp/reported_tcb/bootloader", 2, "tcb_floor"]] {
		doc := json.patch(ask("payments", claims.host_data), [{"op": "replace", "path": concat("/", ["attestation", c[0]]), "value": c[1]}])
		not released(doc, by_name)
		rules(doc, by_name) == {c[2]}
	}
}

test_obligations if workload.obligations == {"ttl": "15m"}
