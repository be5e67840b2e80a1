# METADATA
# description: |
#   What other verifiers say: EAR (Veraison, Confidential Containers), Microsoft
#   Azure Attestation, Intel Trust Authority, Google Confidential Space. Whoever
#   holds a verifier's key can say anything of any machine, so that
#   common.baseline_denials refuses all of it (attestation_result). A policy that
#   trusts some says whom, by the names in the broker's configuration.
package claviger.lib.result

import data.claviger.lib.common
import input.attestation.attestation_result as result

# denials(issuers): the baseline for results of these verifiers (a set of names).
denials(issuers) := (({r |
	some r in common.baseline_denials
	r.rule != "attestation_result"
} | common.type_denials("attestation-result")) | issuer_denials(issuers)) | contraindicated_denials

# without_denials(issuers, missing): the same where the policy does without what these
# verifiers do not say: of "migratable" and "tcb.status". Google
# says nothing of migration, and Microsoft no TCB status of SGX. What a token says
# to be bad is denied all the same.
without_denials(issuers, missing) := {r |
	some r in denials(issuers)
	not excused(r, missing)
}

excused(r, missing) if {
	r.rule == "unstated"
	some name in missing
	r.claim == concat(".", ["attestation", name])
}

# contraindicated_denials: no part of an EAR is contraindicated by its verifier.
contraindicated_denials := set() if {
	result.status in {"", "affirming", "warning", "none"}
} else := {common.reason("contraindicated", "the verifier advises against a part of the machine, or its status is missing", "attestation.attestation_result.status", common.shown([v | v := result.status]))}

# without_cpu_denials(issuers): the same where the verifier need not say that a
# genuine CPU TEE is behind it: machines with AMD SEV, say, of which no CPU attests anything.
without_cpu_denials(issuers) := {r |
	some r in denials(issuers)
	r.rule != "not_bound_to_cpu_tee"
}

issuer_denials(issuers) := set() if {
	result.verified_by in issuers
} else := {object.union(
	common.reason("verifier_untrusted", "the policy does not trust the verifier", "attestation.attestation_result.verified_by", common.shown([v | v := result.verified_by])),
	{"nearest": concat(", ", sort(issuers))},
)}

# production_denials(r): all that an expert would demand of any verifier's token, but
# for reference values. (For Confidential Space there is more: space_denials.) r has each of these:
#   issuers       names of verifiers in the broker's configuration
#   unstated      as of without_denials: what the policy does without, or set()
#   submods       of an EAR, the parts that are there, each affirmed, and no others; set() for tokens without
#   tcb_statuses  what the verifier may say of the TCB: "Unknown" if it says nothing
#   claims        as of claim_denials
production_denials(r) := ((without_denials(r.issuers, r.unstated) | claim_denials(r.claims)) | (affirming_denials(r.submods) | status_reasons(r.tcb_statuses))) | {x |
	some name, _ in result.submods
	not name in r.submods
	x := common.reason("submod_unknown", "the token speaks of a part that the policy does not list", "attestation.attestation_result.submods", name)
}

# space_denials(r): all that an expert would demand of a token of Google
# Confidential Space, but for the reference value of the image. r has each of these:
#   issuers           names of verifiers in the broker's configuration
#   hwmodels          "GCP_INTEL_TDX", "GCP_AMD_SEV_SNP", …
#   tcb_statuses      Intel's: for a hardware model that has none, "Unknown"
#   tcb_date          RFC 3339; of a model that has none, nothing is later
#   swversion         the least version of the Confidential Space image: 250800
#   support           support_attributes, of which the image has one: "STABLE"
#   projects          project ids
#   service_accounts  of which the workload has one
#   env_overrides     names of variables that whoever starts the container may set
# Its arguments are the image's own, and Secure Boot is on. Whether the guest can be
# migrated, Google does not say.
space_denials(r) := (((without_denials(r.issuers, {"migratable"}) | claim_denials(space_claims(r))) | (tcb_reasons(r) | swversion_reasons(r.swversion))) | override_reasons(r.env_overrides)) | (secure_boot_denials | dialect_reasons)

dialect_reasons := set() if {
	result.dialect == "google"
} else := {common.reason("dialect", "the token is none of Google's", "attestation.attestation_result.dialect", common.shown([v | v := result.dialect]))}

space_claims(r) := {
	"swname": {"CONFIDENTIAL_SPACE"}, "hwmodel": r.hwmodels, "submods/confidential_space/support_attributes": r.support,
	"submods/gce/project_id": r.projects, "google_service_accounts": r.service_accounts,
}

status_reasons(allowed) := set() if {
	input.attestation.tcb.status in allowed
} else := {common.reason("tcb_status", "the TCB status is not accepted", "attestation.tcb.status", common.shown([v | v := input.attestation.tcb.status]))}

tcb_reasons(r) := status_reasons(r.tcb_statuses) | {x |
	not dated(r.tcb_date)
	x := object.union(
		common.reason("tcb_date", "the TCB level is older than the policy's minimum", "attestation.tcb.date", common.shown([v | v := input.attestation.tcb.date])),
		{"nearest": r.tcb_date},
	)
}

dated(minimum) if {
	is_string(input.attestation.tcb.date)
	time.parse_rfc3339_ns(input.attestation.tcb.date) >= time.parse_rfc3339_ns(minimum)
}

# (A list of one text, of digits.)
swversion_reasons(minimum) := set() if {
	count(result.token.swversion) == 1
	regex.match(`^[0-9]{1,15}$`, result.token.swversion[0])
	to_number(result.token.swversion[0]) >= minimum
} else := {object.union(
	common.reason("swversion", "the Confidential Space image is older than the policy's minimum", "attestation.attestation_result.token.swversion", sprintf("%v", [common.shown([v | v := result.token.swversion])])),
	{"nearest": sprintf("%d", [minimum])},
)}

# The token has cmd_override and env_override only where whoever started the
# container gave some. Without the container's claims nobody knows.
override_reasons(names) := ({r |
	some name, _ in container.env_override
	not name in names
	r := common.reason("env_override", "a variable was set that the policy does not list", "attestation.attestation_result.token.submods.container.env_override", name)
} | {r |
	container.cmd_override != []
	r := common.reason("cmd_override", "the container's arguments are not the image's own", "attestation.attestation_result.token.submods.container.cmd_override", sprintf("%v", [container.cmd_override]))
}) | {r |
	not plain_container
	r := common.reason("container_missing", "the token does not say how the container was started", "attestation.attestation_result.token.submods.container", "missing")
}

container := result.token.submods.container

plain_container if {
	is_array(container.args)
	is_object(container.env)
	is_object(object.get(container, "env_override", {}))
}

# secure_boot_denials: the token says that Secure Boot is on.
secure_boot_denials := set() if {
	result.token.secboot == true
} else := {common.reason("secure_boot", "Secure Boot is not on", "attestation.attestation_result.token.secboot", common.shown([v | v := result.token.secboot]))}

# affirming_denials(submods): of an EAR, each of these parts (a set) is there, and affirmed.
affirming_denials(submods) := {r |
	some name in submods
	not result.submods[name].status == "affirming"
	r := common.reason("not_affirming", "the verifier does not affirm a part", sprintf("attestation.attestation_result.submods.%s.status", [name]), common.shown([v | v := result.submods[name].status]))
}

# claim_denials(expected): claims of the token have one of the values that the
# policy lists for them. Names of members are divided by slashes:
# {"swname": {"CONFIDENTIAL_SPACE"}, "submods/gce/project_id": {"my-project"}}.
# Of a claim that is a list, one item has to be listed.
claim_denials(expected) := {r |
	some path, values in expected
	not listed(split(path, "/"), values)
	r := common.reason("claim_unknown", "a claim of the token has none of the accepted values", sprintf("attestation.attestation_result.token.%s", [replace(path, "/", ".")]), common.shown([v | v := object.get(result.token, split(path, "/"), "missing")]))
}

listed(path, values) if value(path) in values

listed(path, values) if {
	is_array(value(path))
	some v in value(path)
	v in values
}

value(path) := object.get(result.token, path, null)
