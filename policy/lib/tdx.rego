# METADATA
# description: |
#   Intel TDX. Names are those of the TD quote and of Intel's TCB info.
package claviger.lib.tdx

import data.claviger.lib.common
import input.attestation.tdx as quote

# production_denials(r): all that an expert would demand of a TD. r has each of
# these, so that what a policy leaves to the host stands in it ("any"):
#   tcb_statuses    as of tcb_status_denials
#   advisories      exceptions, as of advisory_denials
#   tcb_date        RFC 3339, as of tcb_date_denials
#   tcb_evaluation  the least number of Intel's TCB evaluation
#   module_svn      the least SVN of the TDX module, by its identity: {"TDX_01": 6}
#   tdattributes    icssd, lass, pks, kl, tpa, perfmon: true, false or "any"
#   xfam            values of XFAM, hex
#   mrconfigid, mrowner, mrownerconfig  their values, hex
#   collateral      "fresh", "stale"
# Never debugged, profiled, migrated, or served by a service TD.
production_denials(r) := set() if {
	input.attestation.type == "tdx"
	common.baseline_denials == set()
	as_demanded(r)
} else := (common.baseline_denials | common.type_denials("tdx")) | platform_denials(r)

# platform_denials(r): the same without baseline and type, for evidence of other
# types with a quote in it (libraries azure and gce).
platform_denials(r) := set() if {
	as_demanded(r)
} else := ((((tcb_status_denials(r.tcb_statuses) | advisory_denials(r.advisories)) | (tcb_date_denials(r.tcb_date) | tcb_evaluation_denials(r.tcb_evaluation))) | ((attribute_denials | migration_denials) | (profiling_denials | reserved_denials))) | ((attribute_bit_denials(r.tdattributes) | xfam_denials(r.xfam)) | (owner_denials("mrconfigid", r.mrconfigid) | owner_denials("mrowner", r.mrowner)))) | ((owner_denials("mrownerconfig", r.mrownerconfig) | module_svn_denials(r.module_svn)) | common.collateral_denials(r.collateral))

# as_demanded is the usual case, spelt out to be quick. Bits that are "any" are not in
# what it is given (policy/arguments.go).
as_demanded(r) if {
	input.attestation.collateral.state in r.collateral
	input.attestation.tcb.status in r.tcb_statuses
	quote.platform_tcb.tcb_status in r.tcb_statuses
	quote.tdx_module_tcb.tcb_status in r.tcb_statuses
	quote.qe_tcb.tcb_status in r.tcb_statuses
	input.attestation.tcb.advisories in [[], null]
	is_number(quote.tcb_evaluation_data_number)
	quote.tcb_evaluation_data_number >= r.tcb_evaluation
	is_string(input.attestation.tcb.date)
	time.parse_rfc3339_ns(input.attestation.tcb.date) >= time.parse_rfc3339_ns(r.tcb_date)
	quote.xfam in r.xfam
	quote.mrconfigid in r.mrconfigid
	quote.mrowner in r.mrowner
	quote.mrownerconfig in r.mrownerconfig
	object.subset(quote.tdattributes, {"debug": false, "hgs_plus_prof": false, "perf_prof": false, "pmt_prof": false, "migratable": false, "sept_ve_disable": true, "reserved": ""})
	object.subset(quote.tdattributes, r.tdattributes)
	no_service_td
	recent_module(r.module_svn)
}

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

# migration_denials: the TD cannot be migrated, and no service TD is bound to it
# (MRSERVICETD), which could export its memory. Neither is in MRTD or the RTMRs.
migration_denials := set() if {
	quote.tdattributes.migratable == false
	no_service_td
} else := migration_reasons

migration_reasons contains common.reason("tdattributes_migratable", "TDATTRIBUTES.MIGRATABLE is set", "attestation.tdx.tdattributes.migratable", common.shown([v | v := quote.tdattributes.migratable])) if not quote.tdattributes.migratable == false

migration_reasons contains common.reason("mrservicetd", "a service TD is bound to the TD", "attestation.tdx.mrservicetd", common.shown([v | v := quote.mrservicetd])) if not no_service_td

# (TD reports of 1.0, which is all that quotes of version 4 have, know of no service TDs.)
no_service_td if trim(quote.mrservicetd, "0") == ""

no_service_td if {
	quote.td_report == "1.0"
	not quote.mrservicetd
}

# profiling_denials: nobody outside profiles the TD.
profiling_denials := {r |
	some name in ["hgs_plus_prof", "perf_prof", "pmt_prof"]
	not attribute[name] == false
	r := common.reason(concat("", ["tdattributes_", name]), "the host may profile the TD", concat("", ["attestation.tdx.tdattributes.", name]), common.shown([v | v := attribute[name]]))
}

# reserved_denials: no attribute is set that this broker does not know.
reserved_denials := set() if {
	trim(quote.tdattributes.reserved, "0") == ""
} else := {common.reason("tdattributes_reserved", "a reserved attribute is set", "attestation.tdx.tdattributes.reserved", common.shown([v | v := quote.tdattributes.reserved]))}

# attribute_bit_denials(bits): attributes are as demanded, by name: true, false, or
# "any" for what is left to the host: icssd, lass, pks, kl, tpa, perfmon.
attribute_bit_denials(bits) := {r |
	some name, bit in bits
	bit != "any"
	not has_attribute(name, bit)
	r := object.union(
		common.reason(concat("", ["tdattributes_", name]), "an attribute is not as the policy demands it", concat("", ["attestation.tdx.tdattributes.", name]), common.shown([v | v := attribute[name]])),
		{"nearest": sprintf("%v", [bit])},
	)
}

has_attribute(name, bit) if attribute[name] == bit

attribute := quote.tdattributes

# xfam_denials(allowed): XFAM, the processor's extended features that the TD may
# use, is one of these (hex as in the quote: little-endian). A feature that the guest
# does not know may be state that it does not clear.
xfam_denials(allowed) := set() if {
	quote.xfam in allowed
} else := {common.reason("xfam_unknown", "XFAM is not an accepted value", "attestation.tdx.xfam", common.shown([v | v := quote.xfam]))}

# tcb_evaluation_denials(minimum): Intel's collateral is of this TCB evaluation
# (tcbEvaluationDataNumber) or a later one. "UpToDate" by an older one means less.
tcb_evaluation_denials(minimum) := set() if {
	is_number(quote.tcb_evaluation_data_number)
	quote.tcb_evaluation_data_number >= minimum
} else := {object.union(
	common.reason("tcb_evaluation", "the TCB was evaluated by older collateral than the policy's minimum", "attestation.tdx.tcb_evaluation_data_number", common.shown([v | v := quote.tcb_evaluation_data_number])),
	{"nearest": sprintf("%d", [minimum])},
)}

# module_svn_denials(minimums): the TDX module has at least this SVN, by its
# identity in Intel's TCB info: {"TDX_01": 6}. Both are in TEE_TCB_SVN. A module
# without a minimum is denied.
module_svn_denials(minimums) := set() if {
	recent_module(minimums)
} else := {object.union(
	common.reason("module_svn", "the TDX module is older than the policy's minimum, or has none", "attestation.tdx.tee_tcb_svn", common.shown([v | v := quote.tee_tcb_svn])),
	{"nearest": concat(", ", sort([sprintf("%s: %d", [id, n]) | some id, n in minimums]))},
)}

# Byte 0 of TEE_TCB_SVN is the SVN, byte 1 the number in the identity. (Hex digits compare as numbers do.)
recent_module(minimums) if {
	minimum := minimums[concat("", ["TDX_", substring(quote.tee_tcb_svn, 2, 2)])]
	minimum < 256
	substring(quote.tee_tcb_svn, 0, 2) >= sprintf("%02x", [minimum])
}

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
