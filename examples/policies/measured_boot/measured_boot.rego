# METADATA
# title: Disk keys for machines with a TPM
# description: |
#   A machine gets the key of its own disk if it booted firmware, boot loader,
#   kernel, command line and initrd that we built, and asks once per boot.
#   This is measured boot, not confidential computing: whoever runs the host
#   can read the machine's memory.
#
#   Resources are named after the TPM: disks/{chip}, where chip is the SHA-256
#   of its endorsement key (`claviger-agent unlock --resource 'disks/{chip}'`).
#
#   Reference sets of type tpm list what `claviger reference compute` predicts:
#     {"values": {"pcr0": […], "pcr4": […], "cmdline": […], "initrd": […]}}
package claviger.release.measured_boot

import data.claviger.lib.reference
import data.claviger.lib.tpm

default allow := false

# pcr0 is the firmware; pcr4 the boot loader and kernel, which are what measured the rest.
measured := ["pcr0", "pcr4", "cmdline", "initrd"]

# All in one set: the kernel of one release with the initrd of another is not a release.
allow if reference.match("tpm", measured)

deny contains r if some r in tpm.alone_denials

deny contains r if some r in tpm.ak_denials

deny contains r if some r in tpm.own_denials("chip")

deny contains r if some r in reference.denials("tpm", measured)

deny contains r if some r in tpm.log_denials([0, 4, 9])

# Once per boot: the agent extends PCR 15 when it has the key.
deny contains r if some r in tpm.door_denials(15)

obligations := {"ttl": "10m", "require_pq": true}
