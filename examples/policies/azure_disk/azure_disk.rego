# METADATA
# title: Disk keys of confidential VMs on Azure
# description: |
#   The disk of one VM, on SNP or TDX, whose boot chain, command line and initial RAM
#   disk are those of a release, whichever boot loader it has. Reference sets of type
#   azure-vtpm list the PCRs together (azure.boot):
#     {"values": {"pcr2": […], "pcr4": […], "pcr7": […], "pcr8": […], "pcr9": […], "pcr11": […], "pcr12": […]}}
#   A PCR that a boot loader does not use has zeros: list these, too.
#   The catalog's pattern names the VM, for example disks/{vm}.
#   README.md lists what the policy pins and what it leaves to the host.
package claviger.release.azure_disk

import data.claviger.lib.azure
import data.claviger.lib.reference

default allow := false

allow if reference.match("azure-vtpm", azure.boot)

# Launch measurements (SNP) and MRTDs (TDX) of Azure's paravisor. Whoever launches
# one of his own has the PCRs say what he likes: without this list the rest means
# nothing. It changes when Microsoft updates the paravisor: take the value of a new
# VM, and see that Microsoft's endorsement or attestation service agrees.
paravisors := {"e065c5e83db0d1b4a7cd8e3f82d19494221b1dff5e39551d3f09ec733bf3fd1ffeaffdb128723bd2f46a73c6931c2721"}

# The oldest firmware that we accept, per processor model: that which signed the
# report, that which launched the guest, and that below which the host cannot go. A
# model that is not listed is refused. These are the levels of AMD-SB-3019, without
# which whoever runs the host can load microcode of his own. Raise them after each
# bulletin; the claim to look at is attestation.sev_snp.reported_tcb (`claviger evidence show`).
tcb_minimum := {
	"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219},
	"Genoa": {"bootloader": 9, "tee": 0, "snp": 23, "microcode": 84},
}

# What the platform has to be. "any" is what we leave to the host: README.md says why.
sev_snp := {
	"tcb": tcb_minimum,
	"report_version": 3,
	"vmpl": 0,
	"policy": {
		"smt": "any", "single_socket": "any", "cxl_allow": false, "mem_aes_256_xts": "any",
		"rapl_dis": "any", "ciphertext_hiding_dram": "any", "page_swap_disable": "any",
	},
	"platform_info": {
		"smt_en": "any", "tsme_en": "any", "ecc_en": true, "rapl_dis": "any",
		"ciphertext_hiding_dram_en": "any", "alias_check_complete": true, "tio_en": "any",
	},
	"mitigations": [],
	"signing_keys": {"VCEK"},
	"csp_ids": set(),
	"collateral": {"fresh", "stale"},
}

# MRCONFIGID, MROWNER and MROWNERCONFIG: Azure sets none.
unset := "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

td := {
	"tcb_statuses": {"UpToDate"},
	"advisories": set(),
	"tcb_date": "2024-03-13T00:00:00Z",
	"tcb_evaluation": 17,
	"module_svn": {"TDX_01": 5, "TDX_03": 1},
	"tdattributes": {"icssd": "any", "lass": "any", "pks": "any", "kl": false, "tpa": false, "perfmon": false},
	"xfam": {"e702060000000000", "e71a060000000000"},
	"mrconfigid": {unset},
	"mrowner": {unset},
	"mrownerconfig": {unset},
	"collateral": {"fresh", "stale"},
}

requirements := {"paravisors": paravisors, "boot": azure.boot, "secure_boot": true, "sev_snp": sev_snp, "tdx": td}

deny contains r if some r in azure.production_denials(requirements)

deny contains r if some r in azure.own_denials("vm")

obligations := {"ttl": "10m"}
