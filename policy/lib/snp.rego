# METADATA
# description: |
#   AMD SEV-SNP. Names are those of the ATTESTATION_REPORT (SEV-SNP firmware
#   ABI, 56860). AMD publishes no TCB status, so a policy states the versions
#   that it accepts.
package claviger.lib.snp

import data.claviger.lib.common
import input.attestation.sev_snp as report

# production_denials(r): all that an expert would demand of a guest. r has each of
# these, so that what a policy leaves to the host stands in it ("any", [] or set()):
#   tcb             the least TCB by model, as of tcb_denials; REPORTED, COMMITTED and LAUNCH have it
#   report_version  the least version of the report; what older ones do not tell counts as 0
#   vmpl            the highest VMPL
#   policy          bits of the guest policy, by name: true, false or "any"
#   platform_info   the same for PLATFORM_INFO
#   mitigations     numbers of bits that both mitigation vectors have (reports of version 5)
#   signing_keys    "VCEK", "VLEK"
#   csp_ids         the providers (CSP_ID) whose VLEK will do
#   collateral      "fresh", "stale": how old AMD's revocation list may be
production_denials(r) := set() if {
	input.attestation.type == "sev-snp"
	common.baseline_denials == set()
	as_demanded(r)
} else := (common.baseline_denials | common.type_denials("sev-snp")) | platform_denials(r)

# platform_denials(r): the same without baseline and type, for evidence of other
# types with such a report in it (libraries azure and gce).
platform_denials(r) := set() if {
	as_demanded(r)
} else := (((((tcb_denials(r.tcb) | launch_tcb_denials(r.tcb)) | committed_tcb_denials(r.tcb)) | report_version_denials(r.report_version)) | (vmpl_denials(r.vmpl) | policy_denials)) | ((policy_bit_denials(r.policy) | platform_info_denials(r.platform_info)) | (mitigation_denials(r.mitigations) | signing_keys_denials(r.signing_keys)))) | (csp_denials(r.csp_ids) | common.collateral_denials(r.collateral))

# as_demanded is the usual case, spelt out to be quick: a VCEK, firmware that was not
# changed since the launch, and nothing wrong with any of it. Bits that are "any" are
# not in what it is given (policy/arguments.go). Texts and all else are more than 255.
as_demanded(r) if {
	report.signing_key == "VCEK"
	"VCEK" in r.signing_keys
	input.attestation.collateral.state in r.collateral
	tcb := report.reported_tcb
	report.launch_tcb == tcb
	report.committed_tcb == tcb
	floor := r.tcb[input.attestation.hardware_model]
	count(floor) == 4
	tcb.bootloader >= floor.bootloader
	tcb.tee >= floor.tee
	tcb.snp >= floor.snp
	tcb.microcode >= floor.microcode
	report.version >= r.report_version
	report.vmpl <= r.vmpl
	report.vmpl >= 0
	max([report.version, report.vmpl, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode]) <= 255
	object.subset(report.policy, {"debug": false, "migrate_ma": false, "unknown_bits": "0"})
	object.subset(report.policy, r.policy)
	object.subset(report.platform_info, r.platform_info)
	report.platform_info.unknown_bits == "0"
	r.mitigations == []
}

# tcb_denials(floors): REPORTED_TCB is at least the floor for the processor
# model, component by component (versions of different components do not add
# up). A model without a floor is denied. Not the TCB that the chip could run,
# but the one whose key signed the report.
#   {"Milan": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}}
tcb_denials(floors) := level_reasons("reported_tcb", "tcb_floor", floors)

# launch_tcb_denials(floors): the same for LAUNCH_TCB, the firmware that launched,
# and measured, the guest. It may have been updated since.
launch_tcb_denials(floors) := level_reasons("launch_tcb", "launch_tcb_floor", floors)

# committed_tcb_denials(floors): the same for COMMITTED_TCB, below which the host
# cannot take the firmware back.
committed_tcb_denials(floors) := level_reasons("committed_tcb", "committed_tcb_floor", floors)

level["reported_tcb"] := report.reported_tcb

level["launch_tcb"] := report.launch_tcb

level["committed_tcb"] := report.committed_tcb

level_reasons(name, rule, floors) := set() if {
	floor := floors[input.attestation.hardware_model]
	tcb := level[name]
	every component, minimum in floor {
		is_number(tcb[component])
		tcb[component] >= minimum
	}
} else := common.at_least_one(tcb_reasons(name, rule, floors), common.reason(rule, "there is no such TCB to compare", concat("", ["attestation.sev_snp.", name]), common.shown([v | v := level[name]])))

tcb_reasons(name, rule, floors) := {r |
	some component, minimum in floors[input.attestation.hardware_model]
	not at_least(name, component, minimum)
	r := object.union(
		common.reason(rule, sprintf("%s firmware is older than the policy's minimum", [component]), concat(".", ["attestation.sev_snp", name, component]), common.shown([v | v := level[name][component]])),
		{"nearest": sprintf("%v", [minimum])},
	)
} | {r |
	not has_floor(floors)
	r := object.union(
		common.reason("tcb_no_floor", "the policy has no TCB minimum for this processor model", "attestation.hardware_model", common.shown([v | v := input.attestation.hardware_model])),
		{"nearest": concat(", ", sort(object.keys(floors)))},
	)
}

# (A function, because "not floors[input…]" is undefined, and not true, where the claim is missing.)
has_floor(floors) if floors[input.attestation.hardware_model]

at_least(name, component, minimum) if {
	is_number(level[name][component])
	level[name][component] >= minimum
}

# report_version_denials(minimum): older reports lack claims: the processor's model
# before version 3, mitigation vectors before version 5.
report_version_denials(minimum) := set() if {
	is_number(report.version)
	report.version >= minimum
} else := {common.reason("report_version", sprintf("the report is older than version %v", [minimum]), "attestation.sev_snp.version", common.shown([v | v := report.version]))}

# vmpl_denials(highest): the report was asked for from VMPL 0 to highest. A
# paravisor at VMPL 0 can hand reports to the guest above it; evidence of a less
# privileged level does not speak for the whole guest.
vmpl_denials(highest) := set() if {
	is_number(report.vmpl)
	is_number(highest) # a number is less than any set or text
	report.vmpl <= highest
} else := {common.reason("vmpl", sprintf("the report is from a VMPL above %v", [highest]), "attestation.sev_snp.vmpl", common.shown([v | v := report.vmpl]))}

# policy_denials: the guest policy that the chip enforces forbids debugging and
# migration agents.
policy_denials := set() if {
	report.policy.debug == false
	report.policy.migrate_ma == false
} else := policy_reasons

policy_reasons contains common.reason("policy_debug", "the guest policy allows debugging", "attestation.sev_snp.policy.debug", common.shown([v | v := report.policy.debug])) if not report.policy.debug == false

policy_reasons contains common.reason("policy_migrate_ma", "the guest policy allows a migration agent", "attestation.sev_snp.policy.migrate_ma", common.shown([v | v := report.policy.migrate_ma])) if not report.policy.migrate_ma == false

# policy_bit_denials(bits): bits of the guest policy, which the host sets at launch
# and the chip enforces, are as demanded, by name: true, false, or "any" for what is
# left to the host. Bits that have no name here are not set.
#   smt, single_socket, cxl_allow, mem_aes_256_xts, rapl_dis, ciphertext_hiding_dram, page_swap_disable
policy_bit_denials(bits) := field_reasons("policy", bits)

# platform_info_denials(bits): the same for PLATFORM_INFO, the state of the machine.
#   smt_en, tsme_en, ecc_en, rapl_dis, ciphertext_hiding_dram_en, alias_check_complete, tio_en
platform_info_denials(bits) := field_reasons("platform_info", bits)

field_reasons(field, bits) := {r |
	some name, bit in bits
	bit != "any"
	not has_bit(field, name, bit)
	r := object.union(
		common.reason(concat("_", [field, name]), "a bit is not as the policy demands it", concat(".", ["attestation.sev_snp", field, name]), common.shown([v | v := flags[field][name]])),
		{"nearest": sprintf("%v", [bit])},
	)
} | {r |
	not has_no_others(field)
	r := common.reason(concat("", [field, "_unknown_bits"]), "a bit is set that this broker does not know", concat(".", ["attestation.sev_snp", field, "unknown_bits"]), common.shown([v | v := flags[field].unknown_bits]))
}

flags["policy"] := report.policy

flags["platform_info"] := report.platform_info

has_bit(field, name, bit) if flags[field][name] == bit

has_no_others(field) if trim(flags[field].unknown_bits, "0") == ""

# mitigation_denials(bits): both mitigation vectors, at launch and now, have these
# bits (numbers, 0 is the least significant; AMD's bulletins say what they stand
# for). Reports before version 5 have no vectors.
mitigation_denials(bits) := {r |
	some name in ["launch_mit_vector", "current_mit_vector"]
	some bit in bits
	not has_mitigation(name, bit)
	r := object.union(
		common.reason("mitigation", "a mitigation is not in force", concat(".", ["attestation.sev_snp", name]), common.shown([v | v := vector[name]])),
		{"nearest": sprintf("bit %d", [bit])},
	)
}

vector["launch_mit_vector"] := report.launch_mit_vector

vector["current_mit_vector"] := report.current_mit_vector

# (The vectors are 64 bits wide, and decimal texts.)
has_mitigation(name, bit) if {
	bit < 64
	regex.match(`^[0-9]{1,20}$`, vector[name])
	bits.and(bits.rsh(to_number(vector[name]), bit), 1) == 1
}

# signing_keys_denials(kinds): the report is signed by a key of one of these kinds.
signing_keys_denials(kinds) := set() if {
	report.signing_key in kinds
} else := {common.reason("signing_key", "the report is signed by a key of another kind", "attestation.sev_snp.signing_key", common.shown([v | v := report.signing_key]))}

# csp_denials(ids): a VLEK is that of one of these providers (the certificate's
# CSP_ID). A VCEK is nobody's but the chip's.
csp_denials(ids) := set() if {
	report.signing_key == "VCEK"
} else := set() if {
	report.csp_id in ids
} else := {common.reason("csp_unknown", "the key is of another cloud provider", "attestation.sev_snp.csp_id", common.shown([v | v := report.csp_id]))}

# host_data_denials(name): HOST_DATA is the SHA-256 of the name. Whoever starts the
# guest chooses it: it keeps guests apart from each other, and not from the host.
host_data_denials(name) := set() if {
	input.attestation.host_data == crypto.sha256(name)
} else := {object.union(
	common.reason("host_data_other_name", "HOST_DATA does not name what the resource belongs to", "attestation.host_data", common.shown([v | v := input.attestation.host_data])),
	{"nearest": sprintf("%s (SHA-256 of %q)", [crypto.sha256(name), name])},
)}

# smt_denials: no sibling thread shares the core with the guest.
smt_denials := set() if {
	report.policy.smt == false
} else := {common.reason("policy_smt", "the guest policy allows simultaneous multithreading", "attestation.sev_snp.policy.smt", common.shown([v | v := report.policy.smt]))}

# single_socket_denials: the guest's memory does not cross a socket.
single_socket_denials := set() if {
	report.policy.single_socket == true
} else := {common.reason("policy_single_socket", "the guest policy allows several sockets", "attestation.sev_snp.policy.single_socket", common.shown([v | v := report.policy.single_socket]))}

# id_key_denials(allowed): the launch was signed by one of these ID keys
# (SHA-384 of the key as in the ID authentication block, lower-case hex).
id_key_denials(allowed) := set() if {
	report.id_key_digest in allowed
} else := {common.reason("id_key_unknown", "the ID block is not signed by an accepted key", "attestation.sev_snp.id_key_digest", common.shown([v | v := report.id_key_digest]))}

# author_key_denials(allowed): the ID key was certified by one of these author keys.
author_key_denials(allowed) := set() if {
	report.author_key_en == true
	report.author_key_digest in allowed
} else := {common.reason("author_key_unknown", "the ID key is not certified by an accepted author key", "attestation.sev_snp.author_key_digest", common.shown([v | v := report.author_key_digest]))}

# guest_svn_denials(minimum): the ID block's own version number.
guest_svn_denials(minimum) := set() if {
	is_number(report.guest_svn)
	report.guest_svn >= minimum
} else := {common.reason("guest_svn", sprintf("GUEST_SVN is below %v", [minimum]), "attestation.sev_snp.guest_svn", common.shown([v | v := report.guest_svn]))}

# signing_key_denials(kind): "VCEK" for keys of one chip, "VLEK" for a cloud provider's.
signing_key_denials(kind) := set() if {
	report.signing_key == kind
} else := {common.reason("signing_key", sprintf("the report is not signed by a %s", [kind]), "attestation.sev_snp.signing_key", common.shown([v | v := report.signing_key]))}
