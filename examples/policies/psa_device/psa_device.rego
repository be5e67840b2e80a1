# METADATA
# title: Devices with TrustZone, each its own secret
# description: |
#   Sensors in the field ask for their own credentials (device/{device}), from
#   the non-secure side of their TrustZone. Their firmware is signed by us, in
#   versions that somebody listed. README.md lists what the policy pins and what it
#   leaves open.
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

requirements := {
	# SHA-256 of the key that signs our images: also of components that are in no
	# reference set, such as a boot loader.
	"signers": {"5555555555555555555555555555555555555555555555555555555555555555"},
	"versions": {"SPE": "2.1.0", "NSPE": "1.3.0"},
	# The secret will lie in memory that no TEE guards. What the device proves is
	# who it is, and what it booted: for credentials of its own that is what we want.
	"clients": {"nonsecure"},
}

deny contains r if some r in psa.production_denials(requirements)

deny contains r if some r in reference.denials("psa", components)

# One device does not get another's credentials.
deny contains r if some r in psa.own_denials("device")

obligations := {"ttl": "24h"}
