package claviger.release.measured_boot_test

import data.claviger.release.measured_boot

# Written by hand after a boot of OVMF with swtpm: digests of one repeated digit.
request := data.fixtures.tpm_direct

claims := request.attestation

values := {name: [claims.measurements[name]] | some name in ["pcr0", "pcr4", "cmdline", "initrd"]}

set_of(name, vals) := {"name": name, "type": "tpm", "state": "active", "values": vals, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}

references := {"release-1": set_of("release-1", values)}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc, refs) if {
	measured_boot.allow with input as doc with data.reference as refs
	count(measured_boot.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in measured_boot.deny} with input as doc with data.reference as refs
}

test_allowed if released(request, references)

test_obligations if measured_boot.obligations == {"ttl": "10m", "require_pq": true}

test_each_measurement_counts if {
	every name in ["pcr0", "pcr4", "cmdline", "initrd"] {
		doc := edit(concat("/", ["measurements", name]), "00")
		not released(doc, references)
		rules(doc, references) == {concat("", [name, "_unknown"])}
	}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["simulated", true, "simulated"],
		["debuggable", true, "debuggable"],
		["tcb/status", "Revoked", "tcb_revoked"],
		["chip_id", "", "not_own_resource"],
		["chip_id", "00", "not_own_resource"],
		["tpm/ak/trust", "none", "ak_untrusted"],
		["tpm/event_log", "absent", "pcr_unexplained"],
		["tpm/pcrs/15", "11", "door_closed"],
	] {
		print(c)
		not released(edit(c[0], c[1]), references)
		rules(edit(c[0], c[1]), references) == {c[2]}
	}
}

test_a_stripped_pcr if {
	doc := json.patch(request, [{"op": "add", "path": "/attestation/tpm/pcrs_unexplained", "value": ["pcr9"]}])
	not released(doc, references)
	rules(doc, references) == {"pcr_unexplained"}
}

test_another_type_of_evidence if not released(edit("type", "sev-snp"), references)

test_nothing_is_denied if not released({}, references)
