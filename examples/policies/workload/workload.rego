# METADATA
# title: Secrets of one workload
# description: |
#   The image alone does not say which of its workloads runs in it. HOST_DATA
#   does: the host sets it at launch, the chip reports it, and the image
#   refuses to run anything whose configuration does not hash to it. So both
#   together are the workload. README.md lists what the policy pins and what it
#   leaves to the host.
#
#   HOST_DATA is chosen by the host. It is worth what the image makes of it: the
#   image must compare the hash of its configuration with it and halt if they differ.
#
#   Two ways to say which HOST_DATA belongs to a resource. A reference set goes one
#   way or the other:
#     1. it lists measurement and host_data together, and carries the name of one
#        workload as value "workload":
#          {"values": {"measurement": […], "host_data": […], "workload": ["payments"]}}
#     2. it lists measurement alone, and HOST_DATA is the SHA-256 of the workload's
#        name, for images that take their name from it.
package claviger.release.workload

import data.claviger.lib.common
import data.claviger.lib.reference
import data.claviger.lib.snp

default allow := false

allow if by_reference

allow if by_name

# The set that matches must be the set of the workload that is asked for:
# otherwise each known workload could ask for the secrets of every other. A set
# with two names does not tell whose HOST_DATA it lists, and counts for neither.
by_reference if {
	some name in reference.matching("sev-snp", ["host_data", "measurement"])
	data.reference[name].values.workload == [input.resource.params.workload]
}

# An image that is listed for certain workloads only is not one of these.
by_name if {
	input.attestation.host_data == crypto.sha256(input.resource.params.workload)
	some name in reference.matching("sev-snp", ["measurement"])
	not data.reference[name].values.host_data
	not data.reference[name].values.workload
}

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

deny contains r if some r in snp.production_denials(requirements)

deny contains r if {
	not by_reference
	not by_name
	some r in reference.denials("sev-snp", ["measurement"])
}

deny contains r if {
	not by_reference
	not by_name
	r := object.union(
		common.reason("host_data_not_this_workload", "HOST_DATA and image do not name the workload that the resource belongs to", "attestation.host_data", common.shown([v | v := input.attestation.host_data])),
		{"nearest": nearest},
	)
}

# What HOST_DATA should have been.
nearest := sprintf("%s (SHA-256 of %q)", [crypto.sha256(input.resource.params.workload), input.resource.params.workload]) if {
	input.resource.params.workload
} else := "none: the catalog entry has no variable {workload}"

obligations := {"ttl": "15m"}
