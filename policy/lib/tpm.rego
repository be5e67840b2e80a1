# METADATA
# description: |
#   TPM 2.0 evidence. A TPM says what was booted. It does not keep the host out
#   of the machine's memory, so that common.baseline_denials refuses it
#   (not_bound_to_cpu_tee). A policy that wants a TPM alone says so by using
#   alone_denials in their place.
package claviger.lib.tpm

import data.claviger.lib.common
import data.claviger.lib.reference
import input.attestation.tpm as tpm

# production_denials(r): all that an expert would demand of a TPM that stands
# alone: its key vouched for, a log that explains the boot, Secure Boot, and the
# measurements of the boot loader in one reference set. r has each of these:
#   loader       "direct", "uki" or "grub": see boot_direct, boot_uki, boot_grub
#   secure_boot  true or "any"
# Not in it, as they are about the resource: own_denials and door_denials.
production_denials(r) := ((alone_denials | ak_denials) | (loader_denials(r.loader) | measured_reasons(r.loader))) | secure_boot_reasons(r.secure_boot)

# Which measurements a reference set lists together, by who starts the kernel. Of
# each: pcr0 is the firmware, pcr2 what devices and drivers brought with them and ran
# before the kernel, pcr4 what was started, pcr7 the keys of Secure Boot. PCR 1
# (boot order, disks) is each machine's own, PCR 3 and 5 are settings of what is in 2
# and 4, PCR 6 is the maker's; they are left out. pcr4 stands first: it says who wrote the rest.

# boot_direct: the firmware starts a kernel that measures its command line and initrd by itself.
boot_direct := ["pcr4", "pcr0", "pcr2", "pcr7", "cmdline", "initrd"]

# boot_uki: the firmware, or systemd-boot, starts a unified kernel image. pcr11 has
# its sections, pcr12 a command line and credentials from elsewhere, pcr13 extensions.
boot_uki := ["pcr4", "pcr0", "pcr2", "pcr7", "pcr11", "pcr12", "pcr13"]

# boot_grub: shim and GRUB. pcr8 has GRUB's commands with the kernel's command line, pcr9 the files that it read.
boot_grub := ["pcr4", "pcr0", "pcr2", "pcr7", "pcr8", "pcr9"]

measured := {"direct": boot_direct, "uki": boot_uki, "grub": boot_grub}

# The PCRs that the log must explain, by loader.
explaining := {"direct": [0, 2, 4, 7, 9], "uki": [0, 2, 4, 7], "grub": [0, 2, 4, 7, 8, 9]}

# loader_denials(name): the name is one of those whose measurements are known here.
loader_denials(name) := set() if {
	measured[name]
} else := {object.union(
	common.reason("loader_unknown", sprintf("there is no boot loader %q", [name]), "policy", name),
	{"nearest": concat(", ", sort(object.keys(measured)))},
)}

# (loader_denials speaks of those that are not.)
measured_reasons(name) := reference.denials("tpm", measured[name]) | log_denials(explaining[name]) if {
	measured[name]
} else := set()

secure_boot_reasons("any") := set()

secure_boot_reasons(true) := secure_boot_denials

secure_boot_reasons(false) := {common.reason("secure_boot", "Secure Boot cannot be demanded to be off", "policy", "false")}

# alone_denials are the baseline for a TPM that no CPU TEE stands behind.
alone_denials := {r |
	some r in common.baseline_denials
	r.rule != "not_bound_to_cpu_tee"
} | common.type_denials("tpm")

# log_denials: a log came with the quote and explains all PCRs of the list
# (numbers). Without it the claims about the boot mean nothing.
log_denials(pcrs) := {r |
	some n in pcrs
	not explained(n)
	r := common.reason("pcr_unexplained", "the event log does not explain a PCR that the policy relies on", sprintf("attestation.tpm.pcrs.%d", [n]), common.shown([v | v := tpm.event_log]))
}

explained(n) if {
	tpm.event_log in {"verified", "partial"}
	tpm.pcrs[sprintf("%d", [n])]
	not sprintf("pcr%d", [n]) in unexplained
}

default unexplained := []

unexplained := tpm.pcrs_unexplained

# secure_boot_denials: Secure Boot was on.
secure_boot_denials := set() if {
	tpm.boot.secure_boot == "on"
} else := {common.reason("secure_boot", "Secure Boot is not on", "attestation.tpm.boot.secure_boot", common.shown([v | v := tpm.boot.secure_boot]))}

# door_denials(pcr): the PCR was not extended since boot. `claviger-agent unlock`
# extends it once the key has arrived, so that nothing that runs later gets it again.
door_denials(pcr) := set() if {
	tpm.pcrs[sprintf("%d", [pcr])] == closed_door_never
} else := {object.union(
	common.reason("door_closed", "a key was released in this boot already, or the PCR was not quoted", sprintf("attestation.tpm.pcrs.%d", [pcr]), common.shown([v | v := tpm.pcrs[sprintf("%d", [pcr])]])),
	{"nearest": closed_door_never},
)}

closed_door_never := "0000000000000000000000000000000000000000000000000000000000000000"

# ak_denials: the attestation key is in a TPM with a certified endorsement key, or certified itself.
ak_denials := set() if {
	tpm.ak.trust in {"ek_activation", "ak_certificate"}
} else := {common.reason("ak_untrusted", "nobody vouches for the attestation key", "attestation.tpm.ak.trust", common.shown([v | v := tpm.ak.trust]))}

# own_denials(param): the resource's parameter names this very TPM (its chip id),
# so that one machine does not get another's disk key.
own_denials(param) := set() if {
	input.attestation.chip_id != ""
	input.resource.params[param] == input.attestation.chip_id
} else := {object.union(
	common.reason("not_own_resource", "the resource belongs to another TPM", concat("", ["resource.params.", param]), common.shown([v | v := input.resource.params[param]])),
	{"nearest": common.shown([v | v := input.attestation.chip_id])},
)}
