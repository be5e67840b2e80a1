# METADATA
# title: Realms of Arm CCA
# description: |
#   Confidential VMs whose initial measurement somebody listed, with a
#   personalization value of ours, on platforms whose firmware is signed by a
#   maker that we accept, in versions that we accept. README.md lists what the
#   policy pins and what it leaves to the host.
#
#   Reference sets of type cca list what the realm was created with:
#     {"values": {"rim": […]}}
package claviger.release.cca_realm

import data.claviger.lib.cca
import data.claviger.lib.reference

default allow := false

allow if reference.match("cca", ["rim"])

requirements := {
	# Hashes of the keys that sign platform firmware: the monitor above all, whose
	# word the initial measurement is.
	"signers": {"5555555555555555555555555555555555555555555555555555555555555555"},
	# A signer's old versions have the holes that were found in them since.
	"versions": {"RMM": "1.4.2", "AP_BL31": "2.10.4"},
	# The platform's configuration, in its maker's encoding: memory is encrypted.
	"config": {"cfcfcfcf"},
	# Whoever creates a realm chooses this value. Ours names the cluster, so that a
	# realm of another one, from the same image, gets nothing.
	"personalization": {"77777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777"},
	# Our images measure what they load later into the first register. The key is
	# for before that.
	"unextended": {0},
}

deny contains r if some r in cca.production_denials(requirements)

deny contains r if some r in reference.denials("cca", ["rim"])

obligations := {"ttl": "1h"}
