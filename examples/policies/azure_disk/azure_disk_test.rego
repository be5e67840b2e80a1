package claviger.release.azure_disk_test

import data.claviger.release.azure_disk

vm := "5f0c9c2e-8d3f-4b0a-9c55-0242ac120002"

request := object.union(data.fixtures.azure_snp, {"time": "2026-11-24T12:00:00Z", "resource": {"params": {"vm": vm}}})

m := request.attestation.measurements

references := {"r1": {"name": "r1", "type": "azure-vtpm", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": {name: [m[name]] | some name in ["pcr2", "pcr4", "pcr7", "pcr8", "pcr9", "pcr11", "pcr12"]}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc) if released_by(doc, references)

released_by(doc, refs) if {
	azure_disk.allow with input as doc with data.reference as refs
	count(azure_disk.deny) == 0 with input as doc with data.reference as refs
}

rules(doc) := rules_by(doc, references)

rules_by(doc, refs) := found if {
	found := {r.rule | some r in azure_disk.deny} with input as doc with data.reference as refs
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

test_obligations if azure_disk.obligations == {"ttl": "10m"}

# Each row of README.md has its test here.

test_paravisor if refused([["attestation/measurements/measurement", "00"]], {"paravisor_unknown"})

test_pcr2 if refused([["attestation/measurements/pcr2", "00"]], {"pcr2_unknown"})

test_pcr4 if refused([["attestation/measurements/pcr4", "00"]], {"pcr4_unknown"})

test_pcr7 if refused([["attestation/measurements/pcr7", "00"]], {"pcr7_unknown"})

test_pcr8 if refused([["attestation/measurements/pcr8", "00"]], {"pcr8_unknown"})

test_pcr9 if refused([["attestation/measurements/pcr9", "00"]], {"pcr9_unknown"})

test_pcr11 if refused([["attestation/measurements/pcr11", "00"]], {"pcr11_unknown"})

test_pcr12 if refused([["attestation/measurements/pcr12", "00"]], {"pcr12_unknown"})

test_another_vm if refused([["resource/params/vm", "another"]], {"not_own_resource"})

test_secure_boot if refused([["attestation/azure_vtpm/vm_configuration/secure_boot", false]], {"secure_boot"})

test_ak if refused([["attestation/tpm/ak/trust", "none"]], {"ak_untrusted"})

test_hardware if refused([["attestation/azure_vtpm/hardware", "other"]], {"hardware", "paravisor_unknown"})

test_left_pcr0 if left([["attestation/measurements/pcr0", "00"]])

test_left_vm if left([["resource/params/vm", "another"], ["attestation/azure_vtpm/vm_configuration/vm_unique_id", "another"]])

test_left_console if left([["attestation/azure_vtpm/vm_configuration/console_enabled", false]])

test_left_report if left([["attestation/azure_vtpm/user_data_bound", true]])

test_type if refused([["attestation/type", "sev-snp"]], {"evidence_type"})

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

td := object.union(object.remove(request, ["attestation"]), {"attestation": object.union(object.remove(request.attestation, ["sev_snp", "tcb"]), {
	"hardware_model": "TDX", "tcb": {"status": "UpToDate", "advisories": [], "date": "2025-08-28T12:00:00Z"},
	"measurements": {"mrtd": m.measurement}, "azure_vtpm": {"hardware": "tdx"},
	"tdx": {
		"td_report": "1.0", "tee_tcb_svn": "05010300000000000000000000000000", "xfam": "e702060000000000", "tcb_evaluation_data_number": 18,
		"mrconfigid": azure_disk.unset, "mrowner": azure_disk.unset, "mrownerconfig": azure_disk.unset,
		"platform_tcb": {"tcb_status": "UpToDate"}, "tdx_module_tcb": {"tcb_status": "UpToDate"}, "qe_tcb": {"tcb_status": "UpToDate"},
		"tdattributes": {
			"debug": false, "hgs_plus_prof": false, "perf_prof": false, "pmt_prof": false, "icssd": false, "lass": false, "sept_ve_disable": true,
			"migratable": false, "pks": false, "kl": false, "tpa": false, "perfmon": false, "reserved": "",
		},
	},
})})

test_td if {
	released_by(td, references)
	every c in [
		["attestation/measurements/mrtd", "00", "paravisor_unknown"],
		["attestation/tcb/status", "OutOfDate", "tcb_status"],
		["attestation/tdx/tdattributes/migratable", true, "tdattributes_migratable"],
		["attestation/tdx/tcb_evaluation_data_number", 16, "tcb_evaluation"],
		["attestation/tdx/mrowner", "01", "mrowner_unknown"],
	] {
		doc := json.patch(td, [{"op": "replace", "path": c[0], "value": c[1]}])
		print(c, rules_by(doc, references))
		not released_by(doc, references)
		rules_by(doc, references) == {c[2]}
	}
}
