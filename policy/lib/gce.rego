# METADATA
# description: |
#   Confidential VMs of Google Compute Engine (type gce-vtpm). The claims of the
#   CPU stand under sev_snp or tdx, those of the vTPM under tpm, those of Google's
#   certificate under gce_vtpm; the libraries snp, tdx and tpm apply. Google's host
#   runs the vTPM: a policy that relies on PCRs relies on Google.
package claviger.lib.gce

import data.claviger.lib.common
import data.claviger.lib.snp
import data.claviger.lib.tdx
import input.attestation.gce_vtpm as gce

# production_denials(r): all that an expert would demand of an instance, but for
# reference values. r has each of these:
#   projects     as of project_denials
#   sev_snp, tdx requirements as of snp.production_denials and tdx.production_denials, or "none" if no such instance will do
production_denials(r) := ((common.baseline_denials | common.type_denials("gce-vtpm")) | project_denials(r.projects)) | hardware_reasons(r)

# hardware_reasons: the CPU is as demanded, and of a kind that is.
hardware_reasons(r) := snp.platform_denials(r.sev_snp) if {
	gce.hardware == "sev-snp"
	is_object(r.sev_snp)
} else := tdx.platform_denials(r.tdx) if {
	gce.hardware == "tdx"
	is_object(r.tdx)
} else := {common.reason("hardware", "the policy accepts no such CPU", "attestation.gce_vtpm.hardware", common.shown([v | v := gce.hardware]))}

# project_denials(allowed): the vTPM is of an instance of one of these projects (ids).
project_denials(allowed) := set() if {
	gce.instance.project_id in allowed
} else := {common.reason("project_unknown", "the instance is of another project", "attestation.gce_vtpm.instance.project_id", common.shown([v | v := gce.instance.project_id]))}

# own_denials(param): the resource's parameter is the instance's id. Names can be
# given again, ids cannot.
own_denials(param) := set() if {
	gce.instance.id != ""
	input.resource.params[param] == gce.instance.id
} else := {object.union(
	common.reason("not_own_resource", "the resource belongs to another instance", concat("", ["resource.params.", param]), common.shown([v | v := input.resource.params[param]])),
	{"nearest": common.shown([v | v := gce.instance.id])},
)}
