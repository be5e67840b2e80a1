# METADATA
# title: Secrets of `claviger dev`
# description: |
#   For trying things out. One SIMULATED device stands for all VMs, so that, unlike
#   the example of the same name, this ties no secret to a VM: whoever runs the
#   demo's image gets each of them. Do not copy this file: `claviger policy init`
#   writes the examples.
package claviger.release.disks

import data.claviger.lib.reference
import data.claviger.lib.snp

default allow := false

allow if reference.match("sev-snp", ["measurement"])

requirements := {
	"tcb": {"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}},
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

deny contains r if some r in snp.production_denials(requirements)

deny contains r if some r in reference.denials("sev-snp", ["measurement"])

obligations := {"ttl": "1h"}
