# METADATA
# title: A model's key for an SEV-SNP guest with H100s
# description: |
#   A guest of an image that we built, and with it at least one GPU of the Hopper
#   generation in confidential mode, whose driver and VBIOS are as NVIDIA's
#   manifests say. The guest's evidence vouches for the GPU's: the image that we
#   know fetched it. That the GPU is in the same machine follows from that image,
#   which asks its own driver, and not from the hardware (docs/evidence/composite.md).
#   README.md lists what the policy pins and what it leaves to the host.
#
#   Reference sets of type sev-snp list the images' launch digests:
#     {"values": {"measurement": […]}}
package claviger.release.gpu_guest

import data.claviger.lib.common
import data.claviger.lib.nvidia_gpu
import data.claviger.lib.reference
import data.claviger.lib.snp

default allow := false

allow if reference.match("sev-snp", ["measurement"])

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
requirements := {
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

# One GPU by itself, or several that talk over an encrypted NVLink. Drivers and
# VBIOSes without a known hole: NVIDIA publishes manifests of the others as well.
gpus := {
	"least": 1,
	"models": {"Hopper"},
	"modes": {"spt", "mpt"},
	"drivers": {"550.127.05", "580.95.05"},
	"vbioses": {"96.00.74.00.1A"},
}

deny contains r if some r in snp.production_denials(requirements)

deny contains r if some r in reference.denials("sev-snp", ["measurement"])

deny contains r if some r in nvidia_gpu.production_gpus_denials(gpus)

# One chip in two networks at once is one key in two hands, or a guest that moves.
# A chip that does not say which it is cannot be counted, and is refused.
deny contains r if some r in common.chip_networks_denials(2)

obligations := {"ttl": "1h", "require_pq": true}
