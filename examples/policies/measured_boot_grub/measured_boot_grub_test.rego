package claviger.release.measured_boot_grub_test

import data.claviger.release.measured_boot_grub

names := ["pcr0", "pcr4", "pcr7", "pcr8", "pcr9"]

# The claims of a direct boot, as if GRUB had measured into PCR 7 to 9.
grub := {name: sprintf("%064d", [i]) | some i, name in names}

request := object.union(data.fixtures.tpm_direct, {"attestation": {"measurements": grub, "tpm": {
	"pcrs": {trim_prefix(name, "pcr"): value | some name, value in grub},
	"boot": {"secure_boot": "on"},
}}})

references := {"release-1": {"name": "release-1", "type": "tpm", "state": "active", "values": {name: [value] | some name, value in grub}, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}}

edit(path, value) := json.patch(request, [{"op": "replace", "path": concat("/", ["attestation", path]), "value": value}])

released(doc) if {
	measured_boot_grub.allow with input as doc with data.reference as references
	count(measured_boot_grub.deny) == 0 with input as doc with data.reference as references
}

rules(doc) := found if {
	found := {r.rule | some r in measured_boot_grub.deny} with input as doc with data.reference as references
}

test_allowed if released(request)

test_obligations if measured_boot_grub.obligations == {"ttl": "10m", "require_pq": true}

test_each_measurement_counts if {
	every name in names {
		doc := edit(concat("/", ["measurements", name]), "00")
		not released(doc)
		rules(doc) == {concat("", [name, "_unknown"])}
	}
}

test_each_demand_counts if {
	every c in [
		["bound", false, "not_bound"],
		["chip_id", "00", "not_own_resource"],
		["tpm/ak/trust", "none", "ak_untrusted"],
		["tpm/event_log", "absent", "pcr_unexplained"],
		["tpm/boot/secure_boot", "off", "secure_boot"],
		["tpm/pcrs/15", "11", "door_closed"],
	] {
		print(c)
		not released(edit(c[0], c[1]))
		rules(edit(c[0], c[1])) == {c[2]}
	}
}
