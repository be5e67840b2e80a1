# METADATA
# title: Disk keys of confidential VMs on Azure
# description: |
#   The disk of one VM, on SNP or TDX, whose boot chain and initial RAM disk are
#   those of a release. Reference sets of type azure-vtpm list the PCRs together:
#     {"values": {"pcr4": […], "pcr7": […], "pcr9": […]}}
#   The catalog's pattern names the VM, for example disks/{vm}.
package claviger.release.azure_disk

import data.claviger.lib.azure
import data.claviger.lib.common
import data.claviger.lib.reference

default allow := false

boot := ["pcr4", "pcr7", "pcr9"]

allow if reference.match("azure-vtpm", boot)

# Launch measurements (SNP) and MRTDs (TDX) of Azure's paravisor. Whoever launches
# one of his own has the PCRs say what he likes: without this list the rest means
# nothing. It changes when Microsoft updates the paravisor: take the value of a new
# VM, and see that Microsoft's endorsement or attestation service agrees.
paravisors := {"e065c5e83db0d1b4a7cd8e3f82d19494221b1dff5e39551d3f09ec733bf3fd1ffeaffdb128723bd2f46a73c6931c2721"}

deny contains r if some r in azure.paravisor_denials(paravisors)

deny contains r if some r in common.baseline_denials

deny contains r if some r in reference.denials("azure-vtpm", boot)

deny contains r if some r in azure.secure_boot_denials

deny contains r if some r in azure.own_denials("vm")

obligations := {"ttl": "10m"}
