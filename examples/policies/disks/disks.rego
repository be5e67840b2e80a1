# METADATA
# title: Disk keys for a fleet
# description: |
#   Every VM that runs one of the fleet's images gets the key of its disk.
#   Copy this file, and change the TCB minimum to what you run.
#
#   Reference sets of type sev-snp list the images' launch digests:
#     {"values": {"measurement": ["<96 hex digits>"]}}
package claviger.release.disks

import data.claviger.lib.common
import data.claviger.lib.reference
import data.claviger.lib.snp

# Nothing is released that no rule allows.
default allow := false

# The image is one that we built. Everything else below only takes away:
# a request with any deny reason is refused, whatever allow says.
allow if reference.match("sev-snp", ["measurement"])

# The oldest firmware that we accept, per processor model. A model that is not
# listed is refused. Raise these after each AMD security bulletin; the claim to
# look at is attestation.sev_snp.reported_tcb (`claviger evidence show`).
tcb_minimum := {
	"Milan": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115},
	"Genoa": {"bootloader": 4, "tee": 0, "snp": 14, "microcode": 72},
}

# Bound to this request, not debuggable, not simulated, collateral in date, …
deny contains r if some r in common.baseline_denials

# Why the image is not one that we built.
deny contains r if some r in reference.denials("sev-snp", ["measurement"])

# The report speaks for the whole guest, firmware included.
deny contains r if some r in snp.vmpl_denials(0)

deny contains r if some r in snp.policy_denials

deny contains r if some r in snp.tcb_denials(tcb_minimum)

# How long the guest may use what it got before it has to ask again.
obligations := {"ttl": "1h"}
