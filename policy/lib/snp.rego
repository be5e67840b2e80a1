# METADATA
# description: |
#   AMD SEV-SNP. Names are those of the ATTESTATION_REPORT (SEV-SNP firmware
#   ABI, 56860). AMD publishes no TCB status, so a policy states the versions
#   that it accepts.
package claviger.lib.snp

import data.claviger.lib.common
import input.attestation.sev_snp as report

# tcb_denials(floors): REPORTED_TCB is at least the floor for the processor
# model, component by component (versions of different components do not add
# up). A model without a floor is denied. Not the TCB that the chip could run,
# but the one whose key signed the report.
#   {"Milan": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}}
tcb_denials(floors) := set() if {
	floor := floors[input.attestation.hardware_model]
	tcb := report.reported_tcb
	every component, minimum in floor {
		is_number(tcb[component])
		tcb[component] >= minimum
	}
} else := common.at_least_one(tcb_reasons(floors), common.reason("tcb_floor", "there is no reported TCB to compare", "attestation.sev_snp.reported_tcb", common.shown([v | v := report.reported_tcb])))

tcb_reasons(floors) := {r |
	some component, minimum in floors[input.attestation.hardware_model]
	not at_least(component, minimum)
	r := object.union(
		common.reason("tcb_floor", sprintf("%s firmware is older than the policy's minimum", [component]), concat(".", ["attestation.sev_snp.reported_tcb", component]), common.shown([v | v := report.reported_tcb[component]])),
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

at_least(component, minimum) if {
	is_number(report.reported_tcb[component])
	report.reported_tcb[component] >= minimum
}

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
