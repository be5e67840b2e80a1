package claviger.release.gpu_guest_test

import data.claviger.release.gpu_guest

# A real Milan report's claims, and an H100's as its report has them.
cpu := data.fixtures.snp_milan

gpu := object.union(data.fixtures.nvidia_h100.attestation, {"vouched_by": "sev-snp"})

request := object.union(cpu, {"attestation": {"bound": true, "devices": [gpu]}, "chip": {"networks": 1}, "time": "2026-11-24T12:00:00Z"})

references := {"image-1": {"name": "image-1", "type": "sev-snp", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": {"measurement": [cpu.attestation.measurements.measurement]}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc) if released_by(doc, references)

released_by(doc, refs) if {
	gpu_guest.allow with input as doc with data.reference as refs
	count(gpu_guest.deny) == 0 with input as doc with data.reference as refs
}

rules(doc) := rules_by(doc, references)

rules_by(doc, refs) := found if {
	found := {r.rule | some r in gpu_guest.deny} with input as doc with data.reference as refs
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

test_obligations if gpu_guest.obligations == {"ttl": "1h", "require_pq": true}

# Each row of README.md has its test here.

test_measurement if refused([["attestation/measurements/measurement", "00"]], {"measurement_unknown"})

test_networks if refused([["chip/networks", 3]], {"chip_networks"})

test_no_chip if refused([["attestation/chip_id", ""], ["chip/networks", 0]], {"chip_networks"})

test_gpu_bound if refused([["attestation/devices/0/bound", false]], {"device_not_bound", "not_bound"})

test_gpu_debuggable if refused([["attestation/devices/0/debuggable", true]], {"debuggable", "device_debuggable"})

test_gpus if refused([["attestation/devices", []]], {"gpus_missing"})

test_gpu_model if refused([["attestation/devices/0/hardware_model", "Blackwell"]], {"nvidia_model"})

test_cc_mode if refused([["attestation/devices/0/nvidia_gpu/cc_mode", "ppcie"]], {"cc_mode"})

test_driver if refused([["attestation/devices/0/nvidia_gpu/driver_version", "550.90.07"]], {"driver_version"})

test_vbios if refused([["attestation/devices/0/nvidia_gpu/vbios_version", "96.00.5E.00.01"]], {"vbios_version"})

test_rim if refused([["attestation/devices/0/nvidia_gpu/rim", "mismatched"]], {"rim_not_matched"})

test_revocation if refused([["attestation/devices/0/nvidia_gpu/revocation", "unknown"]], {"revocation_unknown"})

test_topology if refused([["attestation/devices/0/nvidia_gpu/switch_pdis", ["431d480fe5e87299"]]], {"topology"})

test_left_gpu_chip if left([["attestation/devices/0/chip_id", "0908070605040302"]])

test_type if refused([["attestation/type", "tdx"]], {"evidence_type"})

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
