# The production helpers of all types: what each demands, and what its requirements leave open.
package production_test

import data.claviger.lib.arguments
import data.claviger.lib.azure
import data.claviger.lib.cca
import data.claviger.lib.common
import data.claviger.lib.gce
import data.claviger.lib.keystone
import data.claviger.lib.nitro
import data.claviger.lib.nvidia_gpu
import data.claviger.lib.psa
import data.claviger.lib.result
import data.claviger.lib.sgx
import data.claviger.lib.snp
import data.claviger.lib.tdx
import data.claviger.lib.tpm

claims(type, more) := {"attestation": object.union(
	{
		"type": type, "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": true, "chip_id": "c1", "collateral": {"state": "fresh"},
		"tcb": {"status": "UpToDate", "advisories": [], "date": "2025-08-28T12:00:00Z"}, "measurements": {},
	},
	more,
)}

change(doc, changes) := json.patch(doc, [{"op": "add", "path": concat("/", ["attestation", c[0]]), "value": c[1]} | some c in changes])

rules(denials) := {r.rule | some r in denials}

all_any(names) := {name: "any" | some name in names}

tcb := {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219, "fmc": 0}

report := {
	"version": 5, "vmpl": 0, "signing_key": "VCEK", "reported_tcb": tcb, "launch_tcb": tcb, "committed_tcb": tcb, "current_tcb": tcb,
	"policy": {
		"debug": false, "migrate_ma": false, "smt": false, "single_socket": true, "cxl_allow": false, "mem_aes_256_xts": true,
		"rapl_dis": true, "ciphertext_hiding_dram": true, "page_swap_disable": true, "unknown_bits": "0",
	},
	"platform_info": {
		"smt_en": false, "tsme_en": true, "ecc_en": true, "rapl_dis": true, "ciphertext_hiding_dram_en": true,
		"alias_check_complete": true, "tio_en": false, "unknown_bits": "0",
	},
	"launch_mit_vector": "15", "current_mit_vector": "9223372036854775815",
}

amd := claims("sev-snp", {"hardware_model": "Milan", "sev_snp": report})

# All of it is demanded.
amd_strict := {
	"tcb": {"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}}, "report_version": 5, "vmpl": 0,
	"policy": object.remove(report.policy, ["debug", "migrate_ma", "unknown_bits"]), "platform_info": object.remove(report.platform_info, ["unknown_bits"]),
	"mitigations": [0, 2], "signing_keys": {"VCEK"}, "csp_ids": set(), "collateral": {"fresh"},
}

amd_lax := object.union(amd_strict, {"report_version": 2, "policy": all_any(arguments.bits.snp_policy), "platform_info": all_any(arguments.bits.snp_platform_info), "mitigations": [], "collateral": {"fresh", "stale"}})

# As a policy's own requirements arrive (policy/arguments.go leaves out what is "any").
amd_quick := object.union(object.remove(amd_lax, ["policy", "platform_info"]), {"policy": {}, "platform_info": {}})

test_snp_good if {
	every r in [amd_strict, amd_lax, amd_quick] {
		d := snp.production_denials(r) with input as amd
		d == set()
	}
}

test_snp_each_demand if {
	every c in [
		["bound", false, {"not_bound"}],
		["type", "tdx", {"evidence_type"}],
		["collateral/state", "stale", {"collateral_stale"}],
		["hardware_model", "Rome", {"tcb_no_floor"}],
		["sev_snp/version", 4, {"report_version"}],
		["sev_snp/version", "5", {"report_version"}],
		["sev_snp/vmpl", 1, {"vmpl"}],
		["sev_snp/signing_key", "VLEK", {"signing_key", "csp_unknown"}],
		["sev_snp/reported_tcb/snp", 23, {"tcb_floor"}],
		["sev_snp/launch_tcb/microcode", 0, {"launch_tcb_floor"}],
		["sev_snp/committed_tcb/bootloader", 3, {"committed_tcb_floor"}],
		["sev_snp/policy/debug", true, {"policy_debug"}],
		["sev_snp/policy/migrate_ma", true, {"policy_migrate_ma"}],
		["sev_snp/policy/unknown_bits", "1", {"policy_unknown_bits"}],
		["sev_snp/platform_info/unknown_bits", "1", {"platform_info_unknown_bits"}],
		["sev_snp/launch_mit_vector", "10", {"mitigation"}],
		["sev_snp/current_mit_vector", "1", {"mitigation"}],
		["sev_snp/current_mit_vector", "0x5", {"mitigation"}],
		["sev_snp/current_mit_vector", "-1", {"mitigation"}],
		["sev_snp/current_mit_vector", "99999999999999999999999", {"mitigation"}],
		["sev_snp/launch_tcb", null, {"launch_tcb_floor"}],
	] {
		d := snp.production_denials(amd_strict) with input as change(amd, [c])
		print(c, rules(d))
		rules(d) == c[2]
	}
	every field in ["policy", "platform_info"] {
		every name, bit in amd_strict[field] {
			d := snp.production_denials(amd_strict) with input as change(amd, [[sprintf("sev_snp/%s/%s", [field, name]), bit == false]])
			rules(d) == {sprintf("%s_%s", [field, name])}
			left := snp.production_denials(amd_lax) with input as change(amd, [[sprintf("sev_snp/%s/%s", [field, name]), bit == false]])
			left == set()
		}
	}
}

# The highest bit, and one that no vector has.
test_mitigation_bits if {
	high := snp.mitigation_denials([63]) with input as change(amd, [["sev_snp/launch_mit_vector", "9223372036854775808"]])
	high == set()
	none := snp.mitigation_denials({64}) with input as amd
	rules(none) == {"mitigation"}
	old := snp.mitigation_denials({0}) with input as claims("sev-snp", {"sev_snp": {"version": 3}})
	count(old) == 2
}

test_provider if {
	doc := change(amd, [["sev_snp/signing_key", "VLEK"], ["sev_snp/csp_id", "CN=cloud"]])
	ours := object.union(object.remove(amd_lax, ["signing_keys", "csp_ids"]), {"signing_keys": {"VLEK"}, "csp_ids": {"CN=cloud"}})
	good := snp.production_denials(ours) with input as doc
	good == set()
	other := snp.production_denials(ours) with input as change(doc, [["sev_snp/csp_id", "CN=other"]])
	rules(other) == {"csp_unknown"}
	none := snp.production_denials(ours) with input as amd
	rules(none) == {"signing_key"}
}

test_host_data_names if {
	d := snp.host_data_denials("vm-1") with input as change(amd, [["host_data", crypto.sha256("vm-1")]])
	d == set()
	every doc in [change(amd, [["host_data", "vm-1"]]), amd, {}] {
		other := snp.host_data_denials("vm-1") with input as doc
		rules(other) == {"host_data_other_name"}
	}
}

attributes := {
	"debug": false, "hgs_plus_prof": false, "perf_prof": false, "pmt_prof": false, "icssd": false, "lass": false, "sept_ve_disable": true,
	"migratable": false, "pks": false, "kl": false, "tpa": false, "perfmon": false, "reserved": "",
}

quote := {
	"td_report": "1.0", "tee_tcb_svn": "06030300000000000000000000000000", "xfam": "e702060000000000", "tcb_evaluation_data_number": 18,
	"mrconfigid": "00", "mrowner": "01", "mrownerconfig": "02", "tdattributes": attributes,
	"platform_tcb": {"tcb_status": "UpToDate"}, "tdx_module_tcb": {"tcb_status": "UpToDate"}, "qe_tcb": {"tcb_status": "UpToDate"},
}

intel := claims("tdx", {"hardware_model": "TDX", "tdx": quote})

intel_strict := {
	"tcb_statuses": {"UpToDate"}, "advisories": {"INTEL-SA-1"}, "tcb_date": "2025-01-01T00:00:00Z", "tcb_evaluation": 18, "module_svn": {"TDX_01": 16, "TDX_03": 6},
	"tdattributes": {name: attributes[name] | some name in arguments.bits.tdx_attributes}, "xfam": {"e702060000000000"},
	"mrconfigid": {"00"}, "mrowner": {"01"}, "mrownerconfig": {"02"}, "collateral": {"fresh"},
}

test_tdx_good if {
	every c in [["tcb/advisories", []], ["tcb/advisories", null], ["tcb/advisories", ["INTEL-SA-1"]], ["tdx/mrservicetd", "0000"], ["tdx/tee_tcb_svn", "10010300000000000000000000000000"]] {
		d := tdx.production_denials(intel_strict) with input as change(intel, [c])
		print(c, d)
		d == set()
	}
	later := tdx.production_denials(intel_strict) with input as change(intel, [["tdx/td_report", "1.5"], ["tdx/mrservicetd", "0000"]])
	later == set()
}

test_tdx_each_demand if {
	every c in [
		["bound", false, {"not_bound"}],
		["type", "sgx", {"evidence_type"}],
		["collateral/state", "stale", {"collateral_stale"}],
		["tcb/status", "OutOfDate", {"tcb_status"}],
		["tcb/advisories", ["INTEL-SA-2"], {"tcb_advisory"}],
		["tcb/date", "2024-12-31T00:00:00Z", {"tcb_date"}],
		["tdx/tcb_evaluation_data_number", 17, {"tcb_evaluation"}],
		["tdx/tcb_evaluation_data_number", "99", {"tcb_evaluation"}],
		["tdx/tee_tcb_svn", "05030300000000000000000000000000", {"module_svn"}],
		["tdx/tee_tcb_svn", "0f010300000000000000000000000000", {"module_svn"}],
		["tdx/tee_tcb_svn", "ff020300000000000000000000000000", {"module_svn"}],
		["tdx/xfam", "ff", {"xfam_unknown"}],
		["tdx/mrconfigid", "03", {"mrconfigid_unknown"}],
		["tdx/mrowner", "03", {"mrowner_unknown"}],
		["tdx/mrownerconfig", "03", {"mrownerconfig_unknown"}],
		["tdx/mrservicetd", "0100", {"mrservicetd"}],
		["tdx/td_report", "1.5", {"mrservicetd"}],
		["tdx/tdattributes/migratable", true, {"tdattributes_migratable"}],
		["tdx/tdattributes/sept_ve_disable", false, {"tdattributes_sept_ve_disable"}],
		["tdx/tdattributes/reserved", "01", {"tdattributes_reserved"}],
		["tdx/tdattributes", {}, {"tdattributes_debug", "tdattributes_sept_ve_disable", "tdattributes_migratable", "tdattributes_reserved", "tdattributes_hgs_plus_prof", "tdattributes_perf_prof", "tdattributes_pmt_prof", "tdattributes_icssd", "tdattributes_lass", "tdattributes_pks", "tdattributes_kl", "tdattributes_tpa", "tdattributes_perfmon"}],
	] {
		d := tdx.production_denials(intel_strict) with input as change(intel, [c])
		print(c, rules(d))
		rules(d) == c[2]
	}
	every name in {"debug", "hgs_plus_prof", "perf_prof", "pmt_prof"} | arguments.bits.tdx_attributes {
		d := tdx.production_denials(intel_strict) with input as change(intel, [[concat("/", ["tdx/tdattributes", name]), true]])
		rules(d) == {concat("_", ["tdattributes", name])}
	}
}

# No SVN is as high as that: a byte's digits do not compare with three.
test_module_svn_out_of_reach if {
	d := tdx.module_svn_denials({"TDX_03": 256}) with input as change(intel, [["tdx/tee_tcb_svn", "ff030300000000000000000000000000"]])
	rules(d) == {"module_svn"}
}

enclave := claims("sgx", {"sgx": {
	"attributes": {"raw": "0500000000000000e700000000000000", "init": true, "debug": false, "mode64bit": true, "provisionkey": false, "einittoken_key": false, "cet": false, "kss": false, "aex_notify": false, "reserved": ""},
	"miscselect": "00000000", "configid": "00", "tcb_evaluation_data_number": 18,
	"platform_tcb": {"tcb_status": "UpToDate"}, "qe_tcb": {"tcb_status": "UpToDate"},
}})

enclave_strict := {
	"tcb_statuses": {"UpToDate"}, "advisories": set(), "tcb_date": "2025-01-01T00:00:00Z", "tcb_evaluation": 18,
	"attributes": {"mode64bit": true, "provisionkey": false, "einittoken_key": false, "cet": false, "kss": false, "aex_notify": false},
	"xfrm": {"e700000000000000"}, "miscselect": {"00000000"}, "configid": {"00"}, "collateral": {"fresh"},
}

test_sgx if {
	good := sgx.production_denials(enclave_strict) with input as enclave
	good == set()
	lax := sgx.production_denials(object.union(enclave_strict, {"attributes": {"kss": "any"}})) with input as change(enclave, [["sgx/attributes/kss", true]])
	lax == set()
	every c in [
		["bound", false, {"not_bound"}],
		["type", "tdx", {"evidence_type"}],
		["collateral/state", "stale", {"collateral_stale"}],
		["tcb/status", "OutOfDate", {"tcb_status"}],
		["tcb/advisories", ["INTEL-SA-2"], {"tcb_advisory"}],
		["tcb/date", "2024-12-31T00:00:00Z", {"tcb_date"}],
		["tcb/date", null, {"tcb_date"}],
		["sgx/tcb_evaluation_data_number", 17, {"tcb_evaluation"}],
		["sgx/attributes/init", false, {"attributes_init"}],
		["sgx/attributes/debug", true, {"attributes_debug"}],
		["sgx/attributes/provisionkey", true, {"attributes_provisionkey"}],
		["sgx/attributes/kss", true, {"attributes_kss"}],
		["sgx/attributes/reserved", "01", {"attributes_reserved"}],
		["sgx/attributes/raw", "05", {"xfrm_unknown"}],
		["sgx/attributes/raw", "0500000000000000ff00000000000000", {"xfrm_unknown"}],
		["sgx/miscselect", "00000001", {"miscselect_unknown"}],
		["sgx/configid", "01", {"configid_unknown"}],
	] {
		d := sgx.production_denials(enclave_strict) with input as change(enclave, [c])
		print(c, rules(d))
		rules(d) == c[2]
	}
}

boot := {"pcr0": "a0", "pcr2": "a2", "pcr4": "a4", "pcr7": "a7", "pcr8": "a8", "pcr9": "a9", "pcr11": "ab", "pcr12": "ac", "pcr13": "ad", "cmdline": "c", "initrd": "i"}

machine := claims("tpm", {"bound_to_cpu_tee": false, "measurements": boot, "tpm": {
	"ak": {"trust": "ek_activation"}, "event_log": "verified", "boot": {"secure_boot": "on"}, "pcrs": {trim_prefix(name, "pcr"): v | some name, v in boot},
}})

refs(type) := {"r": {"name": "r", "type": type, "state": "active", "values": {name: [v] | some name, v in boot}, "provenance": {"added_at": "2026-11-01T00:00:00Z"}}}

test_tpm if {
	every loader, names in tpm.measured {
		good := tpm.production_denials({"loader": loader, "secure_boot": true}) with input as machine with data.reference as refs("tpm")
		good == set()
		every name in names {
			d := tpm.production_denials({"loader": loader, "secure_boot": true}) with input as change(machine, [[concat("/", ["measurements", name]), "00"]]) with data.reference as refs("tpm")
			rules(d) == {concat("", [name, "_unknown"])}
		}
	}
	every c in [
		["bound", false, {"not_bound"}],
		["type", "tdx", {"evidence_type"}],
		["tpm/ak/trust", "none", {"ak_untrusted"}],
		["tpm/event_log", "absent", {"pcr_unexplained"}],
		["tpm/boot/secure_boot", "off", {"secure_boot"}],
	] {
		d := tpm.production_denials({"loader": "grub", "secure_boot": true}) with input as change(machine, [c]) with data.reference as refs("tpm")
		rules(d) == c[2]
	}
	off := tpm.production_denials({"loader": "grub", "secure_boot": "any"}) with input as change(machine, [["tpm/boot/secure_boot", "off"]]) with data.reference as refs("tpm")
	off == set()
	never := tpm.production_denials({"loader": "grub", "secure_boot": false}) with input as machine with data.reference as refs("tpm")
	rules(never) == {"secure_boot"}
	other := tpm.loader_denials("lilo") with input as machine
	rules(other) == {"loader_unknown"}
	unknown := tpm.production_denials({"loader": "lilo", "secure_boot": "any"}) with input as machine with data.reference as refs("tpm")
	rules(unknown) == {"loader_unknown"}
}

azure_vm(type, more) := change(
	claims("azure-vtpm", object.union(more, {"measurements": object.union(boot, {"measurement": "p", "mrtd": "p"}), "tpm": {"ak": {"trust": "hardware_report"}}})),
	[["azure_vtpm", {"hardware": type, "vm_configuration": {"secure_boot": true}}]],
)

azure_strict := {"paravisors": {"p"}, "boot": azure.boot, "secure_boot": true, "sev_snp": amd_strict, "tdx": intel_strict}

test_azure if {
	every c in [["sev-snp", {"hardware_model": "Milan", "sev_snp": report}], ["tdx", {"hardware_model": "TDX", "tdx": quote}]] {
		good := azure.production_denials(azure_strict) with input as azure_vm(c[0], c[1]) with data.reference as refs("azure-vtpm")
		good == set()
		none := azure.production_denials(object.union(azure_strict, {"sev_snp": "none", "tdx": "none"})) with input as azure_vm(c[0], c[1]) with data.reference as refs("azure-vtpm")
		rules(none) == {"hardware"}
	}
	vm := azure_vm("sev-snp", {"hardware_model": "Milan", "sev_snp": report})
	every c in [
		["measurements/measurement", "q", {"paravisor_unknown"}],
		["measurements/pcr12", "00", {"pcr12_unknown"}],
		["tpm/ak/trust", "none", {"ak_untrusted"}],
		["azure_vtpm/vm_configuration/secure_boot", false, {"secure_boot"}],
		["sev_snp/launch_tcb/snp", 0, {"launch_tcb_floor"}],
		["azure_vtpm/hardware", "other", {"hardware", "paravisor_unknown"}],
	] {
		d := azure.production_denials(azure_strict) with input as change(vm, [c]) with data.reference as refs("azure-vtpm")
		rules(d) == c[2]
	}
	any := azure.production_denials(object.union(azure_strict, {"secure_boot": "any"})) with input as change(vm, [["azure_vtpm/vm_configuration/secure_boot", false]]) with data.reference as refs("azure-vtpm")
	any == set()
	never := azure.production_denials(object.union(azure_strict, {"secure_boot": false})) with input as vm with data.reference as refs("azure-vtpm")
	rules(never) == {"secure_boot"}
}

test_gce if {
	strict := {"projects": {"p"}, "sev_snp": amd_strict, "tdx": intel_strict}
	every c in [["sev-snp", {"hardware_model": "Milan", "sev_snp": report}], ["tdx", {"hardware_model": "TDX", "tdx": quote}]] {
		vm := claims("gce-vtpm", object.union(c[1], {"gce_vtpm": {"hardware": c[0], "instance": {"project_id": "p"}}}))
		good := gce.production_denials(strict) with input as vm
		good == set()
		none := gce.production_denials(object.union(strict, {"sev_snp": "none", "tdx": "none"})) with input as vm
		rules(none) == {"hardware"}
		other := gce.production_denials(strict) with input as change(vm, [["gce_vtpm/instance/project_id", "q"], ["type", "tdx"]])
		rules(other) == {"project_unknown", "evidence_type"}
	}
}

realm := claims("cca", {"cca": {
	"platform": {"config": "cf", "sw_components": [{"measurement_type": "RMM", "signer_id": "aa", "version": "1.10.0"}, {"measurement_type": "BL", "signer_id": "aa", "version": "2.0+3"}]},
	"realm": {"personalization_value": "bb", "extensible_measurements": ["00", "11", "00", "00"]},
}})

test_cca if {
	strict := {"signers": {"aa"}, "versions": {"RMM": "1.9.9", "BL": "2.0.0+2"}, "config": {"cf"}, "personalization": {"bb"}, "unextended": [0]}
	good := cca.production_denials(object.union(strict, {"versions": {"RMM": "1.9.9", "BL": "2.0+2"}})) with input as realm
	good == set()
	later := cca.production_denials(strict) with input as realm
	later == set() # 2.0+3 is [2, 0, 3], and more than [2, 0, 0, 2]
	every c in [
		["type", "psa", {"evidence_type"}],
		["cca/platform/config", "00", {"platform_config"}],
		["cca/platform/sw_components/0/version", "1.9.8", {"component_version"}],
		["cca/platform/sw_components/0/version", "", {"component_version"}],
		["cca/platform/sw_components/0/version", null, {"component_version"}],
		["cca/platform/sw_components/0/version", "2-rc1", {"component_version"}],
		["cca/platform/sw_components/0/signer_id", "bb", {"signer_unknown"}],
		["cca/platform/sw_components/0/measurement_type", "TF", {"component_version", "component_missing"}],
		["cca/platform/sw_components", [], {"components_missing", "component_missing"}],
		["cca/realm/personalization_value", "00", {"personalization_unknown"}],
		["cca/realm/extensible_measurements", ["11"], {"extended"}],
	] {
		d := cca.production_denials(strict) with input as change(realm, [c])
		print(c, rules(d))
		rules(d) == c[2]
	}
}

device := claims("psa", {"bound_to_cpu_tee": false, "psa": {"client_id": -5, "software_components": [{"measurement_type": "SPE", "signer_id": "aa", "version": "2.1.0"}]}})

test_psa if {
	strict := {"signers": {"aa"}, "versions": {"SPE": "2.1.0"}, "clients": {"nonsecure"}}
	good := psa.production_denials(strict) with input as device
	good == set()
	every c in [
		[["psa/client_id", 5], {"psa_client", "not_bound_to_cpu_tee"}],
		[["psa/client_id", null], {"psa_client", "not_bound_to_cpu_tee"}],
		[["psa/client_id", 0], {"psa_client", "not_bound_to_cpu_tee"}],
		[["psa/software_components/0/version", "2.0.9"], {"component_version"}],
		[["psa/software_components/0/measurement_type", "X"], {"component_version", "component_missing"}],
		[["psa/software_components/0/signer_id", "bb"], {"signer_unknown"}],
	] {
		d := psa.production_denials(strict) with input as change(device, [c[0]])
		print(c, rules(d))
		rules(d) == c[1]
	}
	secure := psa.production_denials(object.union(object.remove(strict, ["clients"]), {"clients": {"secure"}})) with input as change(device, [["psa/client_id", 5], ["bound_to_cpu_tee", true]])
	secure == set()
	other := psa.client_denials({"secure"}) with input as change(device, [["psa/client_id", "5"]])
	rules(other) == {"psa_client"}
}

test_nitro if {
	doc := claims("nitro", {"bound_to_cpu_tee": false, "nitro": {"kind": "enclave", "pcrs": {"3": "aa"}}})
	strict := {"kind": "enclave", "pcrs": {"3": {"aa"}}}
	good := nitro.production_denials(strict) with input as doc
	good == set()
	every c in [["bound", false, "not_bound"], ["type", "tpm", "evidence_type"], ["nitro/kind", "nitrotpm", "nitro_kind"], ["nitro/pcrs/3", "00", "pcr_unknown"]] {
		d := nitro.production_denials(strict) with input as change(doc, [c])
		rules(d) == {c[2]}
	}
}

test_keystone if {
	doc := claims("keystone", {"bound_to_cpu_tee": false, "keystone": {"sm_hash": "aa"}})
	good := keystone.production_denials({"monitors": {"aa"}}) with input as doc
	good == set()
	other := keystone.production_denials({"monitors": {"bb"}}) with input as change(doc, [["debuggable", true]])
	rules(other) == {"sm_unknown", "debuggable"}
}

gpu := claims("nvidia-gpu", {"bound_to_cpu_tee": false, "hardware_model": "Hopper", "nvidia_gpu": {
	"device": "gpu", "rim": "matched", "revocation": "good", "cc_mode": "spt", "driver_version": "580", "vbios_version": "96", "switch_pdis": [], "gpu_pdis": [],
}})

test_nvidia if {
	strict := {"models": {"Hopper"}, "modes": {"spt"}, "drivers": {"580"}, "vbioses": {"96"}}
	good := nvidia_gpu.production_denials(strict) with input as gpu
	good == set()
	guest := change(claims("sev-snp", {}), [["devices", [gpu.attestation]]])
	beside := nvidia_gpu.production_gpus_denials(object.union(strict, {"least": 1})) with input as guest
	beside == set()
	more := nvidia_gpu.production_gpus_denials(object.union(strict, {"least": 2})) with input as guest
	rules(more) == {"gpus_missing"}
	every c in [
		["hardware_model", "Ampere", "nvidia_model"], ["nvidia_gpu/cc_mode", "off", "cc_mode"], ["nvidia_gpu/driver_version", "1", "driver_version"],
		["nvidia_gpu/vbios_version", "1", "vbios_version"], ["nvidia_gpu/rim", "absent", "rim_not_matched"], ["nvidia_gpu/revocation", "unknown", "revocation_unknown"],
	] {
		d := nvidia_gpu.production_denials(strict) with input as change(gpu, [c])
		rules(d) == {c[2]}
		with_guest := nvidia_gpu.production_gpus_denials(object.union(strict, {"least": 1})) with input as change(claims("sev-snp", {}), [["devices", [change(gpu, [c]).attestation]]])
		rules(with_guest) == {c[2]}
	}
}

space := claims("attestation-result", {"attestation_result": {"verified_by": "google", "dialect": "google", "status": "", "token": {
	"swname": "CONFIDENTIAL_SPACE", "hwmodel": "GCP_INTEL_TDX", "secboot": true, "swversion": ["250800"], "google_service_accounts": ["w"],
	"submods": {"confidential_space": {"support_attributes": ["LATEST", "STABLE"]}, "gce": {"project_id": "p"}, "container": {"args": ["/w"], "env": {"A": "1"}}},
}}})

test_space if {
	strict := {
		"issuers": {"google"}, "hwmodels": {"GCP_INTEL_TDX"}, "tcb_statuses": {"UpToDate"}, "tcb_date": "2025-01-01T00:00:00Z", "swversion": 250800,
		"support": {"STABLE"}, "projects": {"p"}, "service_accounts": {"w"}, "env_overrides": {"LOG_LEVEL"},
	}
	t := "attestation_result/token"
	every c in [[], [["attestation_result/token/submods/container/env_override", {"LOG_LEVEL": "debug"}]], [["attestation_result/token/swversion", ["250900"]]], [["attestation_result/token/submods/container/cmd_override", []]]] {
		good := result.space_denials(strict) with input as change(space, c)
		print(c, good)
		good == set()
	}
	every c in [
		["bound", false, {"not_bound"}],
		["type", "tdx", {"evidence_type"}],
		["attestation_result/verified_by", "other", {"verifier_untrusted"}],
		["attestation_result/dialect", "ear", {"dialect"}],
		["tcb/status", "OutOfDate", {"tcb_status"}],
		["tcb/date", "2024-01-01T00:00:00Z", {"tcb_date"}],
		["tcb/date", null, {"tcb_date"}],
		[concat("/", [t, "hwmodel"]), "GCP_AMD_SEV_SNP", {"claim_unknown"}],
		[concat("/", [t, "secboot"]), false, {"secure_boot"}],
		[concat("/", [t, "secboot"]), "true", {"secure_boot"}],
		[concat("/", [t, "swversion"]), ["250799"], {"swversion"}],
		[concat("/", [t, "swversion"]), ["999999", "1"], {"swversion"}],
		[concat("/", [t, "swversion"]), ["9e9"], {"swversion"}],
		[concat("/", [t, "swversion"]), null, {"swversion"}],
		[concat("/", [t, "google_service_accounts"]), ["x"], {"claim_unknown"}],
		[concat("/", [t, "submods/gce/project_id"]), "q", {"claim_unknown"}],
		[concat("/", [t, "submods/confidential_space/support_attributes"]), ["LATEST"], {"claim_unknown"}],
		[concat("/", [t, "submods/container/env_override"]), {"LD_PRELOAD": "x"}, {"env_override"}],
		[concat("/", [t, "submods/container/cmd_override"]), ["sh"], {"cmd_override"}],
		[concat("/", [t, "submods/container/cmd_override"]), null, {"cmd_override"}],
		[concat("/", [t, "submods/container/env_override"]), null, {"container_missing"}],
		[concat("/", [t, "submods/container/env_override"]), ["LD_PRELOAD"], {"env_override", "container_missing"}],
		[concat("/", [t, "submods/container"]), {}, {"container_missing"}],
		[concat("/", [t, "submods/container"]), null, {"container_missing"}],
	] {
		d := result.space_denials(strict) with input as change(space, [c])
		print(c, rules(d))
		rules(d) == c[2]
	}
}

ear := claims("attestation-result", {"attestation_result": {
	"verified_by": "v", "dialect": "ear", "status": "affirming", "token": {"region": "eu"}, "submods": {"cpu0": {"status": "affirming"}, "gpu0": {"status": "affirming"}},
}})

test_result if {
	strict := {"issuers": {"v"}, "unstated": set(), "submods": {"cpu0", "gpu0"}, "tcb_statuses": {"UpToDate"}, "claims": {"region": {"eu"}}}
	good := result.production_denials(strict) with input as ear
	good == set()
	plain := result.production_denials(object.union(object.remove(strict, ["submods"]), {"submods": set()})) with input as json.remove(ear, ["attestation/attestation_result/submods"])
	plain == set()
	every c in [
		["bound", false, {"not_bound"}],
		["attestation_result/verified_by", "w", {"verifier_untrusted"}],
		["attestation_result/submods/gpu0/status", "warning", {"not_affirming"}],
		["attestation_result/submods/cpu1", {"status": "contraindicated"}, {"submod_unknown"}],
		["attestation_result/submods/cpu1", {"status": "affirming"}, {"submod_unknown"}],
		["attestation_result/submods", {}, {"not_affirming"}],
		["attestation_result/token/region", "us", {"claim_unknown"}],
		["tcb/status", "Unknown", {"tcb_status"}],
	] {
		d := result.production_denials(strict) with input as change(ear, [c])
		print(c, rules(d))
		rules(d) == c[2]
	}
}

# Without claims each of them has a reason.
test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": null}] {
		d := [
			snp.production_denials(amd_strict), snp.production_denials(amd_quick), tdx.production_denials(intel_strict), sgx.production_denials(enclave_strict),
			tpm.production_denials({"loader": "grub", "secure_boot": "any"}), azure.production_denials(azure_strict), gce.production_denials({"projects": {"p"}, "sev_snp": amd_lax, "tdx": "none"}),
			cca.version_denials({"RMM": "1"}), psa.version_denials({"SPE": "1"}), psa.client_denials({"secure", "nonsecure"}), keystone.production_denials({"monitors": {"a"}}),
			nitro.production_denials({"kind": "enclave", "pcrs": {"3": {"a"}}}), nvidia_gpu.vbios_denials({"1"}), result.secure_boot_denials,
			snp.policy_bit_denials({"smt": "any"}), snp.platform_info_denials({"smt_en": "any"}), snp.csp_denials({"a"}), snp.signing_keys_denials({"VCEK"}),
			tdx.migration_denials, tdx.profiling_denials, tdx.reserved_denials, tdx.xfam_denials({"a"}), sgx.state_denials, sgx.xfrm_denials({"a"}), common.collateral_denials({"fresh"}),
		] with input as doc with data.reference as refs("tpm")
		every i, x in d {
			print(i)
			count(x) > 0
		}
	}
}

wrong(kind, v) := {[r.message, r.got] | some r in arguments.wrong([["f", 1, kind, [v]]])}

# What a policy is told of requirements that are wrong.
test_faults if {
	wrong("tpm", {"loader": "grub"}) == {["f: argument 1 is not an object of exactly loader, secure_boot", "secure_boot: missing"]}
	wrong("tpm", {"loader": "grub", "secure_boot": false, "x": 1}) == {["f: argument 1 is not an object of exactly loader, secure_boot", "x: 1"]}
	wrong("tpm", {"loader": 7, "secure_boot": "any"}) == {["f: argument 1 is not an object of exactly loader, secure_boot", "loader: 7"]}
	wrong("tpm", "grub") == {["f: argument 1 is not an object of exactly loader, secure_boot", "grub"]}
	wrong("tpm", {"loader": "grub", "secure_boot": false}) == set()
	wrong("snp_or_none", 7) == {["f: argument 1 is not an object of exactly collateral, csp_ids, mitigations, platform_info, policy, report_version, signing_keys, tcb, vmpl", "7"]}
	wrong("tdx_attributes", {}) == {["f: argument 1 is not an object of exactly icssd, kl, lass, perfmon, pks, tpa", "{}"]}
	wrong("no such kind", 7) == {["an argument of a helper is not what it takes", ""]}
}
