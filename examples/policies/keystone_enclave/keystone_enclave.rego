# METADATA
# title: An enclave on RISC-V boards
# description: |
#   Keystone enclaves whose hash somebody listed, under a security monitor of
#   ours. A board whose monitor's key can be guessed, as upstream's boot ROM
#   derives it, gets nothing. README.md lists what the policy pins and what it
#   leaves open.
#
#   Reference sets of type keystone list what the build of the enclave measures:
#     {"values": {"enclave_hash": […]}}
package claviger.release.keystone_enclave

import data.claviger.lib.keystone
import data.claviger.lib.reference

default allow := false

# SHA3-512 of the monitor's image as the boot ROM reads it. Another monitor can
# say of our enclave what it likes: without this list the hash below means nothing.
requirements := {"monitors": {"55555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555"}}

allow if reference.match("keystone", ["enclave_hash"])

deny contains r if some r in keystone.production_denials(requirements)

deny contains r if some r in reference.denials("keystone", ["enclave_hash"])

obligations := {"ttl": "1h"}
