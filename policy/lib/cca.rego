# METADATA
# description: |
#   Arm CCA. Names are those of the tokens: "platform" is what the firmware says of
#   the machine, "realm" what the monitor says of the confidential VM. A policy
#   needs both: reference values for the realm (rim), and for the platform
#   platform_signer_denials, or reference values (platform_rmm, …).
package claviger.lib.cca

import data.claviger.lib.common
import input.attestation.cca as token

# denials are the baseline, for CCA.
denials := common.baseline_denials | common.type_denials("cca")

# production_denials(r): all that an expert would demand of a realm and its platform,
# but for reference values. r has each of these:
#   signers          as of platform_signer_denials
#   versions         as of version_denials
#   config           as of config_denials
#   personalization  as of personalization_denials
#   unextended       as of unextended_denials, or []
production_denials(r) := ((denials | platform_signer_denials(r.signers)) | (version_denials(r.versions) | config_denials(r.config))) | (personalization_denials(r.personalization) | unextended_denials(r.unextended))

# version_denials(minimums): every software component has a minimum for its type,
# and at least that version, number by number: {"RMM": "1.4.2"}. One without a
# minimum, or whose version is no such number, is denied; so is a type that is not there.
version_denials(minimums) := {r |
	some i, c in token.platform.sw_components
	not new_enough(c, minimums)
	r := object.union(
		common.reason("component_version", "a software component is older than the policy's minimum, or has none", sprintf("attestation.cca.platform.sw_components[%d].version", [i]), common.shown([v | v := c.version])),
		{"nearest": sprintf("%s %s", [common.shown([v | v := c.measurement_type]), object.get(minimums, common.shown([v | v := c.measurement_type]), "has no minimum")])},
	)
} | {r |
	some type in object.keys(minimums)
	not type in {c.measurement_type | some c in token.platform.sw_components}
	r := common.reason("component_missing", "a software component is missing", "attestation.cca.platform.sw_components", type)
}

new_enough(c, minimums) if common.version(c.version) >= common.version(minimums[c.measurement_type])

# platform_signer_denials(signers): every software component of the platform was
# signed with one of these keys (signer ids, lower-case hex), and there is one at least.
platform_signer_denials(signers) := set() if {
	count(token.platform.sw_components) > 0
	every c in token.platform.sw_components {
		c.signer_id in signers
	}
} else := common.at_least_one(unknown_signers(signers), common.reason("components_missing", "the platform measured no software", "attestation.cca.platform.sw_components", common.shown([v | v := token.platform.sw_components])))

unknown_signers(signers) := {r |
	some i, c in token.platform.sw_components
	signer := object.get(c, "signer_id", "missing")
	not signer in signers
	r := common.reason("signer_unknown", "a software component was signed with a key that is not an accepted one", sprintf("attestation.cca.platform.sw_components[%d].signer_id", [i]), signer)
}

# config_denials(allowed): the platform's configuration, lower-case hex in its
# maker's encoding, is one of these. It says, for example, whether memory is encrypted.
config_denials(allowed) := set() if {
	token.platform.config in allowed
} else := {common.reason("platform_config", "the platform's configuration is not an accepted one", "attestation.cca.platform.config", common.shown([v | v := token.platform.config]))}

# personalization_denials(allowed): the realm's personalization value, lower-case
# hex (128 digits), is one of these. Who creates the realm chooses it; it is not
# in the RIM.
personalization_denials(allowed) := set() if {
	token.realm.personalization_value in allowed
} else := {common.reason("personalization_unknown", "the realm's personalization value is not an accepted one", "attestation.cca.realm.personalization_value", common.shown([v | v := token.realm.personalization_value]))}

# unextended_denials(numbers): these extensible measurements (0 to 3) are still
# zero: nothing was measured into them since the realm was created.
unextended_denials(numbers) := {r |
	some n in numbers
	not unextended(n)
	r := common.reason("extended", "something was measured since the realm was created", sprintf("attestation.cca.realm.extensible_measurements[%d]", [n]), common.shown([v | v := token.realm.extensible_measurements[n]]))
}

unextended(n) if regex.match(`^0+$`, token.realm.extensible_measurements[n])
