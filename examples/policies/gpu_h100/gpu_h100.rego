# METADATA
# title: A model's key for an H100 in confidential mode
# description: |
#   One GPU of the Hopper generation, passed through alone, whose driver and VBIOS
#   are as NVIDIA's manifests say (evidence.nvidia_gpu.rims), and whose certificates
#   NVIDIA has not revoked. The policy is about the GPU only: what machine asks,
#   and whether the GPU is in it, has to be decided beside this.
#   README.md lists what the policy pins and what it leaves to the host.
package claviger.release.gpu_h100

import data.claviger.lib.nvidia_gpu

default allow := false

allow if {
	input.attestation.type == "nvidia-gpu"
	input.attestation.nvidia_gpu.rim == "matched"
}

# Drivers and VBIOSes without a known hole. NVIDIA publishes manifests of the others as well.
requirements := {
	"models": {"Hopper"},
	"modes": {"spt"},
	"drivers": {"550.127.05", "580.95.05"},
	"vbioses": {"96.00.74.00.1A"},
}

deny contains r if some r in nvidia_gpu.production_denials(requirements)

obligations := {"ttl": "1h"}
