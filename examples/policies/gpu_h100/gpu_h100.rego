# METADATA
# title: A model's key for an H100 in confidential mode
# description: |
#   One GPU of the Hopper generation, passed through alone, whose driver and VBIOS
#   are as NVIDIA's manifests say (evidence.nvidia_gpu.rims), and whose certificates
#   NVIDIA has not revoked. The policy is about the GPU only: what machine asks,
#   and whether the GPU is in it, has to be decided beside this.
package claviger.release.gpu_h100

import data.claviger.lib.nvidia_gpu

default allow := false

# Drivers without a known hole. NVIDIA publishes manifests of the others as well.
drivers := {"550.127.05", "580.95.05"}

allow if {
	input.attestation.type == "nvidia-gpu"
	input.attestation.nvidia_gpu.rim == "matched"
}

deny contains r if some r in nvidia_gpu.gpu_denials

deny contains r if some r in nvidia_gpu.model_denials({"Hopper"})

deny contains r if some r in nvidia_gpu.mode_denials({"spt"})

deny contains r if some r in nvidia_gpu.driver_denials(drivers)

obligations := {"ttl": "1h"}
