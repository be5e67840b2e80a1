# METADATA
# description: |
#   What every release policy should deny, whatever the evidence. All helpers
#   named *_denials give a set of reasons, and are written so that a missing
#   claim is a reason and not a silent pass.
package claviger.lib.common

# baseline_denials are the secure defaults. A policy that leaves one of them
# out does so in writing, by building its own set from the rules below, and by
# naming it in waived if it is one of floor_denials.
# (The first body is the usual case, spelt out to be quick.)
baseline_denials := set() if {
	input.attestation.bound == true
	input.attestation.debuggable == false
	input.attestation.migratable == false
	input.attestation.simulated == false
	input.attestation.collateral.state in {"fresh", "stale"}
	input.attestation.bound_to_cpu_tee == true
	input.attestation.tcb.status in {"UpToDate", "Unknown"} # the other known_statuses are rarer
	input.attestation.type != "attestation-result"
	not input.attestation.unstated
	not input.attestation.devices
} else := {r | some r in baseline_reasons}

# floor_denials hold for every policy, also one that does not ask for them, but for
# those whose rule it names in waived (ADR 0036). What stands behind the evidence,
# whose word it is, and what that leaves unsaid, is for each policy to say.
floor_denials := set() if {
	baseline_denials == set()
} else := {r |
	some r in baseline_denials
	not r.rule in {"not_bound_to_cpu_tee", "attestation_result", "unstated"}
}

baseline_reasons contains reason("not_bound", "the evidence is not bound to this request", "attestation.bound", shown([v | v := input.attestation.bound])) if not bound

baseline_reasons contains reason("debuggable", "the host can read or change a debuggable TEE", "attestation.debuggable", shown([v | v := input.attestation.debuggable])) if debuggable

baseline_reasons contains reason("migratable", "an agent of the host's choice can take a migratable TEE's memory elsewhere", "attestation.migratable", shown([v | v := input.attestation.migratable])) if {
	migratable
	not unstated("migratable")
}

baseline_reasons contains reason("simulated", "the evidence ends at a test root, and this broker does not allow that", "attestation.simulated", shown([v | v := input.attestation.simulated])) if simulated_refused

baseline_reasons contains reason("collateral_expired", "the vendor's collateral is older than allowed", "attestation.collateral.state", shown([v | v := input.attestation.collateral.state])) if stale_refused

baseline_reasons contains reason("not_bound_to_cpu_tee", "the evidence is not tied to a CPU TEE", "attestation.bound_to_cpu_tee", shown([v | v := input.attestation.bound_to_cpu_tee])) if not cpu_bound

baseline_reasons contains reason("tcb_revoked", "the vendor revoked this TCB level, or its status is missing", "attestation.tcb.status", shown([v | v := input.attestation.tcb.status])) if {
	tcb_revoked
	not unstated("tcb.status")
}

# What another verifier does not say is not assumed to be good. (One that does not say whether it can be debugged is debuggable.)
baseline_reasons contains reason("unstated", "the evidence does not say, and the policy does not do without it", concat(".", ["attestation", name]), "unstated") if {
	some name in input.attestation.unstated
	name != "debuggable"
}

baseline_reasons contains reason("attestation_result", "another verifier's word is no evidence, unless a policy names whom it trusts", "attestation.type", shown([v | v := input.attestation.type])) if input.attestation.type == "attestation-result"

# Further devices in the request meet the same, but for bound_to_cpu_tee: see docs/evidence/composite.md.
baseline_reasons contains r if {
	some i, device in input.attestation.devices
	some fault in device_faults(device)
	r := reason(concat("", ["device_", fault[0]]), fault[1], sprintf("attestation.devices.%d.%s", [i, fault[2]]), object.get(device, ["type"], "missing"))
}

device_faults(device) := (((({["not_bound", "the evidence of a device is not bound to this request", "bound"] | not device.bound == true} | {["debuggable", "a device is debuggable", "debuggable"] | not device.debuggable == false}) | {["migratable", "a device is migratable", "migratable"] | not device.migratable == false}) | {["unstated", "the evidence of a device does not say", name] | some name in device.unstated}) | {["collateral_expired", "the collateral of a device is older than allowed", "collateral.state"] | not device_collateral_used(device)}) | {["tcb_revoked", "the TCB level of a device is revoked, or its status is missing", "tcb.status"] | not device_tcb_known(device)}

# (Rules of their own: "not x in y" is not true where x is missing.)
device_collateral_used(device) if device.collateral.state in {"fresh", "stale"}

device_tcb_known(device) if device.tcb.status in known_statuses

# devices_of(type) are the claims of the further devices of a type. The helpers of
# that type's library are for one of them at a time:
#   some r in nvidia_gpu.cc_denials with input.attestation as device
devices_of(type) := [device | some device in input.attestation.devices; device.type == type]

# chip_networks_denials(most): this broker released secrets for the chip, with these
# measurements, to no more networks than that lately, the one that asks included. A guest
# that moves has two for a while; so has one whose key was stolen. A chip is the host's:
# guests of one image on one host count together, so most is at least the number of networks
# that a host's guests have.
# 0 is where the evidence does not say which chip it is: that denies.
chip_networks_denials(most) := set() if {
	is_number(most) # a number is less than any set or text
	input.chip.networks >= 1
	input.chip.networks <= most
} else := {reason("chip_networks", "the chip was seen in several networks at once", "chip.networks", sprintf("%v", [shown([v | v := input.chip.networks])]))}

# bound: report_data is the digest of this very request.
bound if input.attestation.bound == true

# debuggable: yes, or not known to be not.
debuggable if not input.attestation.debuggable == false

# migratable: yes, or not known to be not.
migratable if not input.attestation.migratable == false

# unstated(name): the evidence says nothing of the claim. (A rule of its own, as those of devices above.)
unstated(name) if name in input.attestation.unstated

# simulated: the chain ends at a test root, or that is not known.
simulated if not input.attestation.simulated == false

# The operator of a development broker sets data.claviger.config.allow_simulated.
simulated_refused if {
	simulated
	not data.claviger.config.allow_simulated == true
}

# stale: the collateral is past its refresh age; within its limit unless stale_refused.
stale if not input.attestation.collateral.state == "fresh"

stale_refused if {
	stale
	not input.attestation.collateral.state == "stale"
}

cpu_bound if input.attestation.bound_to_cpu_tee == true

tcb_revoked if not tcb_not_revoked

tcb_not_revoked if input.attestation.tcb.status in known_statuses

# Every status but Revoked. A word that we do not know counts as revoked.
known_statuses := {
	"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded",
	"OutOfDate", "OutOfDateConfigurationNeeded", "Unknown",
}

# type_denials(type): the evidence is of one type only.
type_denials(type) := set() if {
	input.attestation.type == type
} else := {reason("evidence_type", sprintf("the policy is for %s evidence", [type]), "attestation.type", shown([v | v := input.attestation.type]))}

# collateral_denials(states): the vendor's collateral is "fresh", or "stale" (past
# its refresh age), as the policy lists.
collateral_denials(states) := set() if {
	input.attestation.collateral.state in states
} else := {collateral_stale}

collateral_stale := reason("collateral_stale", "the collateral is past its refresh age", "attestation.collateral.state", shown([v | v := input.attestation.collateral.state]))

# pq_denials: the guest must have offered the hybrid post-quantum wrap. The
# obligation require_pq says the same; this one explains itself.
pq_denials := set() if {
	input.request.post_quantum == true
} else := {reason("post_quantum_required", "the key is not a hybrid post-quantum one", "request.post_quantum", "false")}

# version("1.2.3+4") is [1, 2, 3, 4], to be compared; undefined for what is no version.
# (MCUboot writes a build's number behind a plus.)
version(text) := [to_number(n) | some n in split(replace(text, "+", "."), ".")] if {
	is_string(text)
	regex.match(`^[0-9]+([.+][0-9]+)*$`, text)
}

# at_least_one(reasons, fallback): where the positive check failed, there is a
# reason, even if none of the negative ones found out why.
at_least_one(reasons, fallback) := reasons | {r | count(reasons) == 0; r := fallback}

# reason builds one entry of deny.
reason(rule, message, claim, value) := {"rule": rule, "message": message, "claim": claim, "got": value}

# shown([v | v := input.attestation.x]) is a claim for display, or "missing". (The
# comprehension is there whether or not the claim is, and names it where
# everybody can see what the policy reads.)
shown(found) := found[0]

shown([]) := "missing"

# got(name) and got_in(path) are the same for names that are computed. A policy
# that calls them reads the whole of its input: policy/README.md, "What a policy reads".
got(name) := object.get(input, ["attestation", name], "missing")

got_in(path) := object.get(input, array.concat(["attestation"], path), "missing")
