# METADATA
# description: |
#   TPM 2.0 evidence. A TPM says what was booted. It does not keep the host out
#   of the machine's memory, so that common.baseline_denials refuses it
#   (not_bound_to_cpu_tee). A policy that wants a TPM alone says so by using
#   alone_denials in their place.
package claviger.lib.tpm

import data.claviger.lib.common
import input.attestation.tpm as tpm

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
