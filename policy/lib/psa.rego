# METADATA
# description: |
#   PSA attestation tokens (TrustZone). The device's secure firmware says what was
#   booted and who asked. A client on the non-secure side keeps its keys where no
#   TEE guards them, so that common.baseline_denials refuses it
#   (not_bound_to_cpu_tee). A policy that serves such clients says so by using
#   nonsecure_denials in place of denials.
package claviger.lib.psa

import data.claviger.lib.common
import input.attestation.psa as token

# denials are the baseline, for PSA: a client in a secure partition of a secured device.
denials := common.baseline_denials | common.type_denials("psa")

# production_denials(r): all that an expert would demand of a device, but for
# reference values. r has each of these:
#   signers   as of signer_denials
#   versions  as of version_denials
#   clients   "secure", "nonsecure": who may have asked. What a client on the
#             non-secure side gets lies in memory that no TEE guards
production_denials(r) := ((nonsecure_denials | client_denials(r.clients)) | signer_denials(r.signers)) | version_denials(r.versions)

# client_denials(sides): the client is in a secure partition ("secure"), or not ("nonsecure").
client_denials(sides) := set() if {
	"secure" in sides
	token.client_id > 0
	is_number(token.client_id)
} else := set() if {
	"nonsecure" in sides
	token.client_id < 0
	is_number(token.client_id) # null is less than any number
} else := {common.reason("psa_client", "the client is on the other side", "attestation.psa.client_id", common.shown([v | v := token.client_id]))}

# version_denials(minimums): every software component has a minimum for its type,
# and at least that version, number by number: {"SPE": "2.1.0"}. One without a
# minimum, or whose version is no such number, is denied; so is a type that is not there.
version_denials(minimums) := {r |
	some i, c in token.software_components
	not new_enough(c, minimums)
	r := object.union(
		common.reason("component_version", "a software component is older than the policy's minimum, or has none", sprintf("attestation.psa.software_components[%d].version", [i]), common.shown([v | v := c.version])),
		{"nearest": sprintf("%s %s", [common.shown([v | v := c.measurement_type]), object.get(minimums, common.shown([v | v := c.measurement_type]), "has no minimum")])},
	)
} | {r |
	some type in object.keys(minimums)
	not type in {c.measurement_type | some c in token.software_components}
	r := common.reason("component_missing", "a software component is missing", "attestation.psa.software_components", type)
}

new_enough(c, minimums) if common.version(c.version) >= common.version(minimums[c.measurement_type])

# nonsecure_denials: denials, but the client may be on the non-secure side.
nonsecure_denials := {r |
	some r in denials
	not excused(r)
}

excused(r) if {
	r.rule == "not_bound_to_cpu_tee"
	token.client_id < 0
	is_number(token.client_id) # null is less than any number
}

# signer_denials(signers): every software component was signed with one of these
# keys (signer ids, lower-case hex), and there is one at least.
signer_denials(signers) := set() if {
	count(token.software_components) > 0
	every c in token.software_components {
		c.signer_id in signers
	}
} else := common.at_least_one(unknown_signers(signers), common.reason("components_missing", "the device measured no software", "attestation.psa.software_components", common.shown([v | v := token.software_components])))

unknown_signers(signers) := {r |
	some i, c in token.software_components
	signer := object.get(c, "signer_id", "missing")
	not signer in signers
	r := common.reason("signer_unknown", "a software component was signed with a key that is not an accepted one", sprintf("attestation.psa.software_components[%d].signer_id", [i]), signer)
}

# own_denials(param): the resource's parameter names this very device (its chip
# id, which is the instance id).
own_denials(param) := set() if {
	input.attestation.chip_id != ""
	input.resource.params[param] == input.attestation.chip_id
} else := {object.union(
	common.reason("not_own_resource", "the resource belongs to another device", concat("", ["resource.params.", param]), common.shown([v | v := input.resource.params[param]])),
	{"nearest": common.shown([v | v := input.attestation.chip_id])},
)}
