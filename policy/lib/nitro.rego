# METADATA
# description: |
#   Documents of AWS Nitro, of an enclave or of NitroTPM. The Nitro hypervisor
#   isolates the machine and signs for it; no CPU vendor vouches for either, so
#   that common.baseline_denials refuses both (not_bound_to_cpu_tee). A policy that
#   trusts AWS with this says so by using enclave_denials or tpm_denials in its place.
package claviger.lib.nitro

import data.claviger.lib.common
import input.attestation.nitro as document

# enclave_denials are the baseline for a Nitro enclave. Debug mode stays denied.
enclave_denials := without_cpu | kind_denials("enclave")

# tpm_denials are the baseline for an EC2 instance with NitroTPM. Unlike an
# enclave, an instance may have a way in for whoever administers it: its image decides.
tpm_denials := without_cpu | kind_denials("nitrotpm")

# production_denials(r): all that an expert would demand, but for reference values
# (pcr0 to pcr2 of an enclave). r has each of these:
#   kind  "enclave" or "nitrotpm"
#   pcrs  as of pcr_denials: whose enclave it is, above all
production_denials(r) := (without_cpu | kind_denials(r.kind)) | pcr_denials(r.pcrs)

without_cpu := {r |
	some r in common.baseline_denials
	r.rule != "not_bound_to_cpu_tee"
} | common.type_denials("nitro")

kind_denials(kind) := set() if {
	document.kind == kind
} else := {object.union(
	common.reason("nitro_kind", "the document is of another kind", "attestation.nitro.kind", common.shown([v | v := document.kind])),
	{"nearest": kind},
)}

# pcr_denials(expected): each PCR has one of the values that the policy lists for
# it: {"8": {"…"}}, numbers as strings, lower-case hex. Zeros are what an enclave's
# PCR holds that nothing was measured into, and are never accepted. Of an enclave:
#   0 the image, 1 kernel and boot, 2 the application, 3 the IAM role of the
#   instance, 4 the instance, 8 the certificate that signed the image.
pcr_denials(expected) := {r |
	some n, values in expected
	not listed(n, values)
	r := common.reason("pcr_unknown", "a PCR has none of the accepted values", sprintf("attestation.nitro.pcrs.%s", [n]), common.shown([v | v := document.pcrs[n]]))
}

listed(n, values) if {
	value := document.pcrs[n]
	value in values
	regex.match(`[^0]`, value)
}

# own_denials(param): the resource's parameter names this very instance, so that
# one does not get another's secret. An instance is no hardware: it keeps its
# name when it is stopped and started elsewhere.
own_denials(param) := set() if {
	document.instance_id != ""
	input.resource.params[param] == document.instance_id
} else := {object.union(
	common.reason("not_own_resource", "the resource belongs to another instance", concat("", ["resource.params.", param]), common.shown([v | v := input.resource.params[param]])),
	{"nearest": common.shown([v | v := document.instance_id])},
)}
