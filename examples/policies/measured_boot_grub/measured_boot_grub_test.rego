package claviger.release.measured_boot_grub_test

import data.claviger.release.measured_boot_grub

names := ["pcr0", "pcr2", "pcr4", "pcr7", "pcr8", "pcr9"]

# The claims of a direct boot, as if GRUB had measured into PCR 7 to 9.
grub := {name: sprintf("%064d", [i]) | some i, name in names}

request := object.union(data.fixtures.tpm_direct, {"attestation": {"measurements": grub, "tpm": {"pcrs": {trim_prefix(name, "pcr"): value | some name, value in grub}}}})

references := {"release-1": {"name": "release-1", "type": "tpm", "state": "active", "values": {name: [value] | some name, value in grub}, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc) if released_by(doc, references)

released_by(doc, refs) if {
	measured_boot_grub.allow with input as doc with data.reference as refs
	count(measured_boot_grub.deny) == 0 with input as doc with data.reference as refs
}

rules(doc) := rules_by(doc, references)

rules_by(doc, refs) := found if {
	found := {r.rule | some r in measured_boot_grub.deny} with input as doc with data.reference as refs
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

test_obligations if measured_boot_grub.obligations == {"ttl": "10m", "require_pq": true}

# Each row of README.md has its test here.

test_pcr0 if refused([["attestation/measurements/pcr0", "00"]], {"pcr0_unknown"})

test_pcr2 if refused([["attestation/measurements/pcr2", "00"]], {"pcr2_unknown"})

test_pcr4 if refused([["attestation/measurements/pcr4", "00"]], {"pcr4_unknown"})

test_pcr7 if refused([["attestation/measurements/pcr7", "00"]], {"pcr7_unknown"})

test_pcr8 if refused([["attestation/measurements/pcr8", "00"]], {"pcr8_unknown"})

test_pcr9 if refused([["attestation/measurements/pcr9", "00"]], {"pcr9_unknown"})

test_another_machine if refused([["attestation/chip_id", "00"]], {"not_own_resource"})

test_no_chip if refused([["attestation/chip_id", ""]], {"not_own_resource"})

test_ak if refused([["attestation/tpm/ak/trust", "none"]], {"ak_untrusted"})

test_secure_boot if refused([["attestation/tpm/boot/secure_boot", "off"]], {"secure_boot"})

test_log if refused([["attestation/tpm/event_log", "absent"]], {"pcr_unexplained"})

test_door if refused([["attestation/tpm/pcrs/15", "11"]], {"door_closed"})

test_left_pcr1 if left([["attestation/measurements/pcr1", "00"]])

test_left_cpu if left([["attestation/bound_to_cpu_tee", true]])

test_left_firmware if left([["attestation/tpm/firmware_version", "0"], ["attestation/tpm/reset_count", 99]])

test_type if refused([["attestation/type", "sev-snp"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})

test_revoked if refused([["attestation/tcb/status", "Revoked"]], {"tcb_revoked"})

test_left_pcr14 if left([["attestation/measurements/pcr14", "00"]])

test_mixed if {
	other := json.patch(references["release-1"], [{"op": "replace", "path": "values/pcr4", "value": ["44"]}, {"op": "replace", "path": "values/pcr9", "value": ["55"]}])
	both := {"release-1": references["release-1"], "release-2": other}
	doc := edit([["attestation/measurements/pcr9", "55"]])
	not released_by(doc, both)
	rules_by(doc, both) == {"reference_mixed"}
}
