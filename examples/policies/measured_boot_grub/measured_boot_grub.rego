# METADATA
# title: Disk keys for machines with a TPM that boot through shim and GRUB
# description: |
#   As measured_boot, for machines whose boot loader is a distribution's shim and
#   GRUB under Secure Boot. There the kernel measures neither its command line
#   nor its initrd; GRUB measures each command (PCR 8) and each file (PCR 9).
#   This is measured boot, not confidential computing. README.md lists what the
#   policy pins and what it leaves open.
#
#   Reference sets of type tpm, with PCR 4 computed from the files and the rest
#   (tpm.boot_grub) taken from the log of a machine that you trust:
#     claviger reference compute tpm --efi shimx64.efi --efi grubx64.efi --efi vmlinuz --efi vmlinuz \
#       --from-log binary_bios_measurements --observe 8,9
package claviger.release.measured_boot_grub

import data.claviger.lib.reference
import data.claviger.lib.tpm

default allow := false

allow if reference.match("tpm", tpm.boot_grub)

requirements := {"loader": "grub", "secure_boot": true}

deny contains r if some r in tpm.production_denials(requirements)

deny contains r if some r in tpm.own_denials("chip")

# Once per boot: the agent extends PCR 15 when it has the key.
deny contains r if some r in tpm.door_denials(15)

obligations := {"ttl": "10m", "require_pq": true}
