# METADATA
# title: Devices with TrustZone, each its own secret
# description: |
#   Sensors in the field ask for their own credentials (device/{device}), from
#   the non-secure side of their TrustZone. Their firmware is signed by us, in
#   versions that somebody listed.
#
#   Reference sets of type psa list the components by their type, in lower case:
#     {"values": {"spe": […], "nspe": […]}}
package claviger.release.psa_device

import data.claviger.lib.psa
import data.claviger.lib.reference

default allow := false

components := ["spe", "nspe"]

# The secure and the non-secure image of one release together.
allow if reference.match("psa", components)

# SHA-256 of the key that signs our images.
signers := {"5555555555555555555555555555555555555555555555555555555555555555"}

# The secret will lie in memory that no TEE guards. What the device proves is
# who it is, and what it booted: for credentials of its own that is what we want.
deny contains r if some r in psa.nonsecure_denials

deny contains r if some r in reference.denials("psa", components)

# Also components that are not in the reference set, such as a boot loader.
deny contains r if some r in psa.signer_denials(signers)

# One device does not get another's credentials.
deny contains r if some r in psa.own_denials("device")

obligations := {"ttl": "24h"}
