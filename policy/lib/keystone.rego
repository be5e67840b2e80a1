# METADATA
# description: |
#   Reports of Keystone enclaves (RISC-V). The device signs for whatever security
#   monitor was booted, and the monitor for the enclave, so that a policy relies on
#   the monitor first: common.baseline_denials refuses those that the broker's
#   configuration does not endorse (not_bound_to_cpu_tee), and those whose key can
#   be guessed (weak_sm_key, which makes the report debuggable).
package claviger.lib.keystone

import data.claviger.lib.common
import input.attestation.keystone as report

# denials are the baseline, for Keystone.
denials := common.baseline_denials | common.type_denials("keystone")

# production_denials(r): all that an expert would demand, but for the reference value
# of the enclave. r.monitors are as of monitor_denials.
production_denials(r) := monitor_denials(r.monitors)

# monitor_denials(hashes): the baseline for a policy that endorses monitors by
# itself, whatever the broker's configuration says: their hashes, lower-case hex (128 digits).
monitor_denials(hashes) := {r |
	some r in denials
	r.rule != "not_bound_to_cpu_tee"
} | unknown(hashes)

# weak_monitor_denials(hashes): monitor_denials, but a weak key is accepted.
# Whoever tries 256 seeds can then sign for every enclave on the device: this is
# for boards on a desk.
weak_monitor_denials(hashes) := {r |
	some r in monitor_denials(hashes)
	not excused(r)
}

excused(r) if {
	r.rule == "debuggable"
	report.weak_sm_key == true
}

unknown(hashes) := set() if {
	report.sm_hash in hashes
} else := {common.reason("sm_unknown", "the security monitor is not an accepted one", "attestation.keystone.sm_hash", common.shown([v | v := report.sm_hash]))}
