# METADATA
# title: Disk keys for a fleet
# description: |
#   Every VM that runs one of the fleet's images gets the key of its own disk, and
#   of no other. Copy this file, and change the TCB minimum to what you run.
#   README.md lists what it pins and what it leaves to the host.
#
#   Resources are named after the VM: disks/{vm}. The host launches the VM with
#   HOST_DATA = SHA-256 of that name.
#
#   Reference sets of type sev-snp list the images' launch digests:
#     {"values": {"measurement": ["<96 hex digits>"]}}
package claviger.release.disks

import data.claviger.lib.reference
import data.claviger.lib.snp

# Nothing is released that no rule allows.
default allow := false

# The image is one that we built, and the disk is that of the VM. Everything else
# below only takes away: a request with any deny reason is refused, whatever allow says.
allow if {
	own
	reference.match("sev-snp", ["measurement"])
}

own if input.attestation.host_data == crypto.sha256(input.resource.params.vm)

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

# Bound to this request, not debuggable, no migration agent, not simulated, collateral in date, …
deny contains r if some r in snp.production_denials(requirements)

# Why the image is not one that we built.
deny contains r if some r in reference.denials("sev-snp", ["measurement"])

# A VM does not get another's disk.
deny contains r if {
	not own
	some r in snp.host_data_denials(input.resource.params.vm)
}

# How long the guest may use what it got before it has to ask again.
obligations := {"ttl": "1h"}
