# METADATA
# title: Secrets of one workload
# description: |
#   The image alone does not say which of its workloads runs in it. HOST_DATA
#   does: the host sets it at launch, the chip reports it, and the image
#   refuses to run anything whose configuration does not hash to it. So both
#   together are the workload.
#
#   HOST_DATA is chosen by the host. It is worth what the image makes of it: the
#   image must compare the hash of its configuration with it and halt if they differ.
#
#   Two ways to say which HOST_DATA belongs to a resource, either is enough:
#     1. a reference set lists measurement and host_data together and carries
#        the workload's name as value "workload":
#          {"values": {"measurement": […], "host_data": […], "workload": ["payments"]}}
#     2. HOST_DATA is the SHA-256 of the workload's name, for images that take
#        their name from it.
package claviger.release.workload

import data.claviger.lib.common
import data.claviger.lib.reference
import data.claviger.lib.snp

default allow := false

allow if by_reference

allow if by_name

# The set that matches must be the set of the workload that is asked for:
# otherwise each known workload could ask for the secrets of every other.
by_reference if {
	some name in reference.matching("sev-snp", ["host_data", "measurement"])
	input.resource.params.workload in data.reference[name].values.workload
}

by_name if {
	reference.match("sev-snp", ["measurement"])
	input.attestation.host_data == crypto.sha256(input.resource.params.workload)
}

tcb_minimum := {
	"Milan": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115},
	"Genoa": {"bootloader": 4, "tee": 0, "snp": 14, "microcode": 72},
}

deny contains r if some r in common.baseline_denials

deny contains r if {
	not by_reference
	some r in reference.denials("sev-snp", ["measurement"])
}

deny contains r if {
	not by_reference
	not by_name
	r := object.union(
		common.reason("host_data_not_this_workload", "HOST_DATA does not name the workload that the resource belongs to", "attestation.host_data", common.shown([v | v := input.attestation.host_data])),
		{"nearest": nearest},
	)
}

# What HOST_DATA should have been.
nearest := sprintf("%s (SHA-256 of %q)", [crypto.sha256(input.resource.params.workload), input.resource.params.workload]) if {
	input.resource.params.workload
} else := "none: the catalog entry has no variable {workload}"

deny contains r if some r in snp.vmpl_denials(0)

deny contains r if some r in snp.policy_denials

deny contains r if some r in snp.tcb_denials(tcb_minimum)

obligations := {"ttl": "15m"}
