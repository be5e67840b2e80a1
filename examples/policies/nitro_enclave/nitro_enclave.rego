# METADATA
# title: A service in a Nitro enclave
# description: |
#   Enclaves whose image somebody listed, started by an instance with our IAM
#   role. The policy trusts AWS: its hypervisor keeps the enclave apart, and
#   nothing but its signature says so. README.md lists what the policy pins and
#   what it leaves to AWS.
#
#   Reference sets of type nitro list what `nitro-cli build-enclave` prints:
#     {"values": {"pcr0": […], "pcr1": […], "pcr2": […]}}
package claviger.release.nitro_enclave

import data.claviger.lib.nitro
import data.claviger.lib.reference

default allow := false

# The image, its kernel and boot ramdisk, and the application, all of one release.
measured := ["pcr0", "pcr1", "pcr2"]

allow if reference.match("nitro", measured)

# PCR3 is the SHA-384 of 48 zero bytes and the role's ARN (arn:aws:iam::…:role/…):
# another customer of AWS can run our image, but not in our role.
requirements := {"kind": "enclave", "pcrs": {"3": {"333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333"}}}

deny contains r if some r in nitro.production_denials(requirements)

deny contains r if some r in reference.denials("nitro", measured)

obligations := {"ttl": "1h"}
