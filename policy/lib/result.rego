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
