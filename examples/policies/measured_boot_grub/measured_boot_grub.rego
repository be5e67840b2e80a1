# METADATA
# title: Disk keys for machines with a TPM that boot through shim and GRUB
# description: |
#   As measured_boot, for machines whose boot loader is a distribution's shim and
#   GRUB under Secure Boot. There the kernel measures neither its command line
#   nor its initrd; GRUB measures each command (PCR 8) and each file (PCR 9).
#   This is measured boot, not confidential computing.
#
#   Reference sets of type tpm, with PCR 4 computed from the files and the rest
#   taken from the log of a machine that you trust:
#     claviger reference compute tpm --efi shimx64.efi --efi grubx64.efi --efi vmlinuz --efi vmlinuz \
#       --from-log binary_bios_measurements --observe 8,9
package claviger.release.measured_boot_grub

import data.claviger.lib.reference
import data.claviger.lib.tpm

default allow := false

# pcr0 is the firmware, pcr4 what was started, pcr7 the keys of Secure Boot,
# pcr8 GRUB's commands and the kernel's command line, pcr9 the files that GRUB read.
measured := ["pcr0", "pcr4", "pcr7", "pcr8", "pcr9"]

allow if reference.match("tpm", measured)

deny contains r if some r in tpm.alone_denials

deny contains r if some r in tpm.ak_denials

deny contains r if some r in tpm.own_denials("chip")

deny contains r if some r in reference.denials("tpm", measured)

deny contains r if some r in tpm.log_denials([0, 4, 7, 8, 9])

deny contains r if some r in tpm.secure_boot_denials

# Once per boot: the agent extends PCR 15 when it has the key.
deny contains r if some r in tpm.door_denials(15)

obligations := {"ttl": "10m", "require_pq": true}
