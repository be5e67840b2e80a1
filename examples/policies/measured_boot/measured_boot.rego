# METADATA
# title: Disk keys for machines with a TPM
# description: |
#   A machine gets the key of its own disk if it booted firmware, boot loader,
#   kernel, command line and initrd that we built, and asks once per boot.
#   This is measured boot, not confidential computing: whoever runs the host
#   can read the machine's memory. README.md lists what the policy pins and what
#   it leaves open.
#
#   Resources are named after the TPM: disks/{chip}, where chip is the SHA-256
#   of its endorsement key (`claviger-agent unlock --resource 'disks/{chip}'`).
#
#   Reference sets of type tpm list what `claviger reference compute` predicts (tpm.boot_direct):
#     {"values": {"pcr0": […], "pcr2": […], "pcr4": […], "pcr7": […], "cmdline": […], "initrd": […]}}
package claviger.release.measured_boot

import data.claviger.lib.reference
import data.claviger.lib.tpm

default allow := false

# All in one set: the kernel of one release with the initrd of another is not a release.
allow if reference.match("tpm", tpm.boot_direct)

requirements := {"loader": "direct", "secure_boot": true}

deny contains r if some r in tpm.production_denials(requirements)

deny contains r if some r in tpm.own_denials("chip")

# Once per boot: the agent extends PCR 15 when it has the key.
deny contains r if some r in tpm.door_denials(15)

obligations := {"ttl": "10m", "require_pq": true}
