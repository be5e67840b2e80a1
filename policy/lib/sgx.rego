# METADATA
# description: |
#   Intel SGX. Names are those of the quote and of Intel's TCB info. Anybody can
#   build and sign an enclave, so every policy needs a reference value of
#   MRENCLAVE, or identity_denials.
package claviger.lib.sgx

import data.claviger.lib.common
import input.attestation.sgx as quote

# production_denials(r): all that an expert would demand of the platform and of
# how the enclave was built. Which enclave it is, is for identity_denials or a
# reference value to say. r has each of these:
#   tcb_statuses, advisories, tcb_date, tcb_evaluation  as of the helpers below
#   attributes   mode64bit, provisionkey, einittoken_key, cet, kss, aex_notify: true, false or "any"
#   xfrm, miscselect  their values, hex
#   configid     values of CONFIGID, hex; zeros for enclaves without key separation and sharing
#   collateral   "fresh", "stale"
production_denials(r) := (((common.baseline_denials | common.type_denials("sgx")) | (common.collateral_denials(r.collateral) | tcb_status_denials(r.tcb_statuses))) | ((advisory_denials(r.advisories) | tcb_date_denials(r.tcb_date)) | (tcb_evaluation_denials(r.tcb_evaluation) | state_denials))) | ((attribute_bit_denials(r.attributes) | xfrm_denials(r.xfrm)) | (miscselect_denials(r.miscselect) | configid_denials(r.configid)))

# state_denials: initialised, not debuggable, and no attribute that this broker does not know.
state_denials := set() if {
	quote.attributes.init == true
	quote.attributes.debug == false
	trim(quote.attributes.reserved, "0") == ""
} else := state_reasons

state_reasons contains r if {
	some r in attribute_reasons
	r.rule in {"attributes_init", "attributes_debug"}
}

state_reasons contains common.reason("attributes_reserved", "a reserved attribute is set", "attestation.sgx.attributes.reserved", common.shown([v | v := quote.attributes.reserved])) if not no_reserved

no_reserved if trim(quote.attributes.reserved, "0") == ""

# attribute_bit_denials(bits): attributes are as demanded, by name: true, false, or
# "any": mode64bit, provisionkey, einittoken_key, cet, kss, aex_notify.
attribute_bit_denials(bits) := {r |
	some name, bit in bits
	bit != "any"
	not has_attribute(name, bit)
	r := object.union(
		common.reason(concat("", ["attributes_", name]), "an attribute is not as the policy demands it", concat("", ["attestation.sgx.attributes.", name]), common.shown([v | v := attribute[name]])),
		{"nearest": sprintf("%v", [bit])},
	)
}

has_attribute(name, bit) if attribute[name] == bit

attribute := quote.attributes

# xfrm_denials(allowed): XFRM, the processor's extended features that the enclave
# may use, is one of these: the upper half of ATTRIBUTES, 16 hex digits as in the quote.
xfrm_denials(allowed) := set() if {
	xfrm in allowed
} else := {common.reason("xfrm_unknown", "XFRM is not an accepted value", "attestation.sgx.attributes.raw", common.shown([v | v := quote.attributes.raw]))}

xfrm := substring(quote.attributes.raw, 16, 16) if count(quote.attributes.raw) == 32

# miscselect_denials(allowed): MISCSELECT, what an exception tells of the enclave
# outside, is one of these (8 hex digits).
miscselect_denials(allowed) := set() if {
	quote.miscselect in allowed
} else := {common.reason("miscselect_unknown", "MISCSELECT is not an accepted value", "attestation.sgx.miscselect", common.shown([v | v := quote.miscselect]))}

# configid_denials(allowed): as config_denials, but an enclave without key
# separation and sharing, whose CONFIGID is zeros, will do if zeros are allowed.
configid_denials(allowed) := set() if {
	quote.configid in allowed
} else := {common.reason("configid_unknown", "CONFIGID is not an accepted value", "attestation.sgx.configid", common.shown([v | v := quote.configid]))}

# tcb_date_denials(minimum): the TCB level is of this date (RFC 3339) or later.
tcb_date_denials(minimum) := set() if {
	is_string(input.attestation.tcb.date)
	time.parse_rfc3339_ns(input.attestation.tcb.date) >= time.parse_rfc3339_ns(minimum)
} else := {object.union(
	common.reason("tcb_date", "the TCB level is older than the policy's minimum", "attestation.tcb.date", common.shown([v | v := input.attestation.tcb.date])),
	{"nearest": minimum},
)}

# tcb_evaluation_denials(minimum): Intel's collateral is of this TCB evaluation
# (tcbEvaluationDataNumber) or a later one. "UpToDate" by an older one means less.
tcb_evaluation_denials(minimum) := set() if {
	is_number(quote.tcb_evaluation_data_number)
	quote.tcb_evaluation_data_number >= minimum
} else := {object.union(
	common.reason("tcb_evaluation", "the TCB was evaluated by older collateral than the policy's minimum", "attestation.sgx.tcb_evaluation_data_number", common.shown([v | v := quote.tcb_evaluation_data_number])),
	{"nearest": sprintf("%d", [minimum])},
)}

# identity_denials(mrsigners, isvprodid, isvsvn): an enclave of one of these
# signers (MRSIGNER, lower-case hex), this product, and this security version
# or later. A signer's products share its MRSIGNER, so that ISVPRODID is not optional.
identity_denials(mrsigners, isvprodid, isvsvn) := set() if {
	quote.mrsigner in mrsigners
	quote.isvprodid == isvprodid
	is_number(quote.isvsvn)
	quote.isvsvn >= isvsvn
} else := common.at_least_one(identity_reasons(mrsigners, isvprodid, isvsvn), common.reason("claims_missing", "there are no SGX claims", "attestation.sgx", "missing"))

identity_reasons(mrsigners, isvprodid, isvsvn) := ({r |
	not quote.mrsigner in mrsigners
	r := common.reason("mrsigner_unknown", "the enclave's signer is not an accepted one", "attestation.sgx.mrsigner", common.shown([v | v := quote.mrsigner]))
} | {r |
	not quote.isvprodid == isvprodid
	r := object.union(
		common.reason("isvprodid", "the enclave is another product of its signer", "attestation.sgx.isvprodid", common.shown([v | v := quote.isvprodid])),
		{"nearest": isvprodid},
	)
}) | {r |
	not reached(isvsvn)
	r := object.union(
		common.reason("isvsvn", "the enclave's security version is below the policy's minimum", "attestation.sgx.isvsvn", common.shown([v | v := quote.isvsvn])),
		{"nearest": isvsvn},
	)
}

reached(isvsvn) if {
	is_number(quote.isvsvn)
	quote.isvsvn >= isvsvn
}

# attribute_denials: initialised, not debuggable, and without the provisioning
# key, which lets an enclave tell platforms apart for good.
attribute_denials := set() if {
	quote.attributes.init == true
	quote.attributes.debug == false
	quote.attributes.provisionkey == false
} else := attribute_reasons

attribute_reasons contains common.reason("attributes_init", "ATTRIBUTES.INIT is not set", "attestation.sgx.attributes.init", common.shown([v | v := quote.attributes.init])) if not quote.attributes.init == true

attribute_reasons contains common.reason("attributes_debug", "ATTRIBUTES.DEBUG is set", "attestation.sgx.attributes.debug", common.shown([v | v := quote.attributes.debug])) if not quote.attributes.debug == false

attribute_reasons contains common.reason("attributes_provisionkey", "ATTRIBUTES.PROVISIONKEY is set", "attestation.sgx.attributes.provisionkey", common.shown([v | v := quote.attributes.provisionkey])) if not quote.attributes.provisionkey == false

# config_denials(allowed): CONFIGID, lower-case hex (128 digits), is one of
# these, and the enclave was built for key separation and sharing, without
# which CONFIGID is always zero.
config_denials(allowed) := set() if {
	quote.attributes.kss == true
	quote.configid in allowed
} else := {common.reason("configid_unknown", "CONFIGID is not an accepted value", "attestation.sgx.configid", common.shown([v | v := quote.configid]))}

# tcb_status_denials(allowed): the joint TCB status, and those of platform and
# quoting enclave where they are told apart, are all allowed. Most SGX platforms
# are at best SWHardeningNeeded: whether the enclave is hardened (built with the
# mitigations that the advisories ask for) is for its signer to know.
tcb_status_denials(allowed) := set() if {
	input.attestation.tcb.status in allowed
	every name in ["platform_tcb", "qe_tcb"] {
		part_in(name, allowed)
	}
} else := {object.union(
	common.reason("tcb_status", "the TCB status is not accepted", "attestation.tcb.status", common.shown([v | v := input.attestation.tcb.status])),
	{"nearest": concat(", ", sort(allowed))},
)}

# A part is absent where there was no collateral; the joint status is then Unknown.
part_in(name, allowed) if part[name].tcb_status in allowed

part_in(name, _) if {
	quote.attributes
	not part[name]
}

part["platform_tcb"] := quote.platform_tcb

part["qe_tcb"] := quote.qe_tcb

# advisory_denials(exceptions): every advisory that applies to this TCB level is
# named here, which says that somebody looked at it.
advisory_denials(exceptions) := {r |
	some advisory in input.attestation.tcb.advisories
	not advisory in exceptions
	r := common.reason("tcb_advisory", "an advisory applies that the policy does not except", "attestation.tcb.advisories", advisory)
} if {
	is_array(input.attestation.tcb.advisories)
} else := {common.reason("tcb_advisory", "the advisories are missing", "attestation.tcb.advisories", "missing")}
