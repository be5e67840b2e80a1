# METADATA
# title: A model's key for an SEV-SNP guest with H100s
# description: |
#   A guest of an image that we built, and with it at least one GPU of the Hopper
#   generation in confidential mode, whose driver and VBIOS are as NVIDIA's
#   manifests say. The guest's evidence vouches for the GPU's: the image that we
#   know fetched it. That the GPU is in the same machine follows from that image,
#   which asks its own driver, and not from the hardware (docs/evidence/composite.md).
#
#   Reference sets of type sev-snp list the images' launch digests:
#     {"values": {"measurement": […]}}
package claviger.release.gpu_guest

import data.claviger.lib.common
import data.claviger.lib.nvidia_gpu
import data.claviger.lib.reference
import data.claviger.lib.snp

default allow := false

allow if reference.match("sev-snp", ["measurement"])

deny contains r if some r in common.baseline_denials

deny contains r if some r in reference.denials("sev-snp", ["measurement"])

deny contains r if some r in snp.vmpl_denials(0)

# One GPU by itself, or several that talk over an encrypted NVLink.
deny contains r if some r in nvidia_gpu.gpus_denials(1, {"spt", "mpt"})

deny contains r if {
	some device in nvidia_gpu.gpus
	some r in nvidia_gpu.model_denials({"Hopper"}) with input.attestation as device
}

# Drivers without a known hole. NVIDIA publishes manifests of the others as well.
deny contains r if {
	some device in nvidia_gpu.gpus
	some r in nvidia_gpu.driver_denials({"550.127.05", "580.95.05"}) with input.attestation as device
}

deny contains r if some r in nvidia_gpu.topology_denials

# One chip in two networks at once is one key in two hands, or a guest that moves.
deny contains r if some r in common.chip_networks_denials(2)

obligations := {"ttl": "1h", "require_pq": true}
