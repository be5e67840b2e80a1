# METADATA
# description: |
#   Confidential VMs of Azure (type azure-vtpm). The claims of the CPU stand under
#   sev_snp or tdx, those of the vTPM under tpm, those of the paravisor between
#   them under azure_vtpm; the libraries snp, tdx and tpm apply. All of it stands
#   on the paravisor, so that every policy needs paravisor_denials or a reference
#   set with "measurement" or "mrtd".
package claviger.lib.azure

import data.claviger.lib.common
import data.claviger.lib.reference
import data.claviger.lib.snp
import data.claviger.lib.tdx
import input.attestation.azure_vtpm as hcl

# production_denials(r): all that an expert would demand of a confidential VM. r has
# each of these, so that what a policy leaves to the host stands in it:
#   paravisors   as of paravisor_denials
#   boot         the PCRs that a reference set of type azure-vtpm lists together: boot, say
#   secure_boot  true or "any"; the host says so. What was booted is in the PCRs
#   sev_snp, tdx requirements as of snp.production_denials and tdx.production_denials, or "none" if no such VM will do
production_denials(r) := ((common.baseline_denials | paravisor_denials(r.paravisors)) | (reference.denials("azure-vtpm", r.boot) | hardware_reasons(r))) | (secure_boot_reasons(r.secure_boot) | ak_denials)

# boot: what a reference set lists, whichever boot loader the VM has. pcr2 is what
# devices brought with them, pcr4 what was started, pcr7 the keys of Secure Boot, pcr8
# and pcr9 GRUB's commands and files (or command line and initrd, by the kernel), pcr11
# and pcr12 a unified kernel image and what it was told. Of PCR 0 the paravisor's measurement says more.
boot := ["pcr4", "pcr2", "pcr7", "pcr8", "pcr9", "pcr11", "pcr12"]

# hardware_reasons: the CPU is as demanded, and of a kind that is.
hardware_reasons(r) := snp.platform_denials(r.sev_snp) if {
	hcl.hardware == "sev-snp"
	is_object(r.sev_snp)
} else := tdx.platform_denials(r.tdx) if {
	hcl.hardware == "tdx"
	is_object(r.tdx)
} else := {common.reason("hardware", "the policy accepts no such CPU", "attestation.azure_vtpm.hardware", common.shown([v | v := hcl.hardware]))}

secure_boot_reasons("any") := set()

secure_boot_reasons(true) := secure_boot_denials

secure_boot_reasons(false) := {common.reason("secure_boot", "Secure Boot cannot be demanded to be off", "policy", "false")}

# ak_denials: the vTPM's key is in the hardware report.
ak_denials := set() if {
	input.attestation.tpm.ak.trust == "hardware_report"
} else := {common.reason("ak_untrusted", "nobody vouches for the attestation key", "attestation.tpm.ak.trust", common.shown([v | v := input.attestation.tpm.ak.trust]))}

# paravisor_denials(allowed): the launch measurement (SNP) or MRTD (TDX), lower-case
# hex, is that of a paravisor that Microsoft is known to have built.
paravisor_denials(allowed) := set() if {
	launch in allowed
} else := {common.reason("paravisor_unknown", "the paravisor is not an accepted one", "attestation.measurements", shown_launch)}

launch := input.attestation.measurements.measurement if hcl.hardware == "sev-snp"

launch := input.attestation.measurements.mrtd if hcl.hardware == "tdx"

shown_launch := launch

default shown_launch := "missing"

# secure_boot_denials: the paravisor says that Secure Boot is on. The host set it;
# what was booted is in the PCRs (tpm.secure_boot_denials, with a log).
secure_boot_denials := set() if {
	hcl.vm_configuration.secure_boot == true
} else := {common.reason("secure_boot", "Secure Boot is not on", "attestation.azure_vtpm.vm_configuration.secure_boot", common.shown([v | v := hcl.vm_configuration.secure_boot]))}

# fresh_report_denials: the hardware report is of this very request (the guest wrote
# the digest into the vTPM before it read the report), and not one of the boot.
fresh_report_denials := set() if {
	hcl.user_data_bound == true
} else := {common.reason("user_data_not_bound", "the hardware report is not of this request", "attestation.azure_vtpm.user_data_bound", common.shown([v | v := hcl.user_data_bound]))}

# own_denials(param): the resource's parameter is the VM's unique id (lower case).
# The host gives that id, so that it keeps VMs apart, but binds nobody to a machine.
own_denials(param) := set() if {
	hcl.vm_configuration.vm_unique_id != ""
	input.resource.params[param] == hcl.vm_configuration.vm_unique_id
} else := {object.union(
	common.reason("not_own_resource", "the resource belongs to another VM", concat("", ["resource.params.", param]), common.shown([v | v := input.resource.params[param]])),
	{"nearest": common.shown([v | v := hcl.vm_configuration.vm_unique_id])},
)}
