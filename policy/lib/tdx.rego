# METADATA
# description: |
#   Intel TDX. Names are those of the TD quote and of Intel's TCB info.
package claviger.lib.tdx

import data.claviger.lib.common
import input.attestation.tdx as quote

# tcb_status_denials(allowed): the joint TCB status, and those of platform,
# TDX module and quoting enclave where they are told apart, are all allowed.
# (The first body is the usual case, spelt out to be quick.)
tcb_status_denials(allowed) := set() if {
	input.attestation.tcb.status in allowed
	quote.platform_tcb.tcb_status in allowed
	quote.tdx_module_tcb.tcb_status in allowed
	quote.qe_tcb.tcb_status in allowed
} else := set() if {
	status_in(allowed)
	every name in parts {
		part_in(name, allowed)
	}
} else := common.at_least_one(tcb_status_reasons(allowed), common.reason("claims_missing", "there are no TDX claims", "attestation.tdx", "missing"))

tcb_status_reasons(allowed) := {r |
	not status_in(allowed)
	r := object.union(
		common.reason("tcb_status", "the TCB status is not accepted", "attestation.tcb.status", common.shown([v | v := input.attestation.tcb.status])),
		{"nearest": concat(", ", sort(allowed))},
	)
} | {r |
	quote.tdattributes
	some name in parts
	not part_in(name, allowed)
	r := common.reason("tcb_status", "the TCB status of a part is not accepted", concat(".", ["attestation.tdx", name, "tcb_status"]), common.shown([v | v := part[name].tcb_status]))
}

status_in(allowed) if input.attestation.tcb.status in allowed

# A part is absent where Intel's collateral does not tell it apart.
part_in(name, allowed) if part[name].tcb_status in allowed

part_in(name, _) if {
	quote.tdattributes
	not part[name]
}

# The levels that the joint status is made of.
parts := ["platform_tcb", "tdx_module_tcb", "qe_tcb"]

part["platform_tcb"] := quote.platform_tcb

part["tdx_module_tcb"] := quote.tdx_module_tcb

part["qe_tcb"] := quote.qe_tcb

# advisory_denials(exceptions): every advisory that applies to this TCB level is
# named here, which says that somebody looked at it.
advisory_denials(exceptions) := set() if {
	is_null(input.attestation.tcb.advisories)
} else := {r |
	some advisory in input.attestation.tcb.advisories
	not advisory in exceptions
	r := common.reason("tcb_advisory", "an advisory applies that the policy does not except", "attestation.tcb.advisories", advisory)
} if {
	is_array(input.attestation.tcb.advisories)
} else := {common.reason("tcb_advisory", "the advisories are missing", "attestation.tcb.advisories", "missing")}

# tcb_date_denials(minimum): the TCB level is of this date (RFC 3339) or later.
tcb_date_denials(minimum) := set() if {
	is_string(input.attestation.tcb.date)
	time.parse_rfc3339_ns(input.attestation.tcb.date) >= time.parse_rfc3339_ns(minimum)
} else := {object.union(
	common.reason("tcb_date", "the TCB level is older than the policy's minimum", "attestation.tcb.date", common.shown([v | v := input.attestation.tcb.date])),
	{"nearest": minimum},
)}

# attribute_denials: not debuggable, and SEPT_VE_DISABLE is set, without which
# the host can make the guest fault on its own private memory.
attribute_denials := set() if {
	quote.tdattributes.debug == false
	quote.tdattributes.sept_ve_disable == true
} else := attribute_reasons

attribute_reasons contains common.reason("tdattributes_debug", "TDATTRIBUTES.DEBUG is set", "attestation.tdx.tdattributes.debug", common.shown([v | v := quote.tdattributes.debug])) if not quote.tdattributes.debug == false

attribute_reasons contains common.reason("tdattributes_sept_ve_disable", "TDATTRIBUTES.SEPT_VE_DISABLE is not set", "attestation.tdx.tdattributes.sept_ve_disable", common.shown([v | v := quote.tdattributes.sept_ve_disable])) if not quote.tdattributes.sept_ve_disable == true

# module_denials(allowed): MRSEAM, the measurement of the TDX module, is one of these.
module_denials(allowed) := set() if {
	quote.mrseam in allowed
} else := {common.reason("mrseam_unknown", "the TDX module is not an accepted one", "attestation.tdx.mrseam", common.shown([v | v := quote.mrseam]))}

# owner_denials(field, allowed): MRCONFIGID, MROWNER or MROWNERCONFIG, lower-case hex.
owner_denials(name, allowed) := set() if {
	owner[name] in allowed
} else := {common.reason(concat("", [name, "_unknown"]), sprintf("%s is not an accepted value", [name]), concat(".", ["attestation.tdx", name]), common.shown([v | v := owner[name]]))}

owner["mrconfigid"] := quote.mrconfigid

owner["mrowner"] := quote.mrowner

owner["mrownerconfig"] := quote.mrownerconfig
