# METADATA
# description: |
#   Confidential VMs of Azure (type azure-vtpm). The claims of the CPU stand under
#   sev_snp or tdx, those of the vTPM under tpm, those of the paravisor between
#   them under azure_vtpm; the libraries snp, tdx and tpm apply. All of it stands
#   on the paravisor, so that every policy needs paravisor_denials or a reference
#   set with "measurement" or "mrtd".
package claviger.lib.azure

import data.claviger.lib.common
import input.attestation.azure_vtpm as hcl

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
