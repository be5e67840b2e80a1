# METADATA
# title: Realms of Arm CCA
# description: |
#   Confidential VMs whose initial measurement somebody listed, with a
#   personalization value of ours, on platforms whose firmware is signed by a
#   maker that we accept.
#
#   Reference sets of type cca list what the realm was created with:
#     {"values": {"rim": […]}}
package claviger.release.cca_realm

import data.claviger.lib.cca
import data.claviger.lib.reference

default allow := false

allow if reference.match("cca", ["rim"])

# Hashes of the keys that sign platform firmware: the monitor above all, whose
# word the initial measurement is.
signers := {"5555555555555555555555555555555555555555555555555555555555555555"}

# Whoever creates a realm chooses this value. Ours names the cluster, so that a
# realm of another one, from the same image, gets nothing.
clusters := {"77777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777"}

deny contains r if some r in cca.denials

deny contains r if some r in reference.denials("cca", ["rim"])

deny contains r if some r in cca.platform_signer_denials(signers)

deny contains r if some r in cca.personalization_denials(clusters)

# Our images measure what they load later into the first register. The key is
# for before that.
deny contains r if some r in cca.unextended_denials({0})

obligations := {"ttl": "1h"}
