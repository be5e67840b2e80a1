# METADATA
# description: |
#   Reports of NVIDIA's confidential GPUs and NVSwitches. A report says what a
#   device is, and not which machine it is in: common.baseline_denials refuses it
#   alone (not_bound_to_cpu_tee). A policy that releases on a device's word says so
#   by using gpu_denials or switch_denials in its place.
package claviger.lib.nvidia_gpu

import data.claviger.lib.common
import input.attestation.nvidia_gpu as report

# gpu_denials are the baseline for a GPU: known to its vendor and not revoked,
# with a driver and a VBIOS that NVIDIA released, and that the broker was given the manifests of.
gpu_denials := without_cpu | device_denials("gpu")

# switch_denials are the same for an NVSwitch.
switch_denials := without_cpu | device_denials("nvswitch")

without_cpu := (({r |
	some r in common.baseline_denials
	r.rule != "not_bound_to_cpu_tee"
} | common.type_denials("nvidia-gpu")) | rim_denials) | revocation_denials

device_denials(device) := set() if {
	report.device == device
} else := {object.union(
	common.reason("nvidia_device", "the report is of another kind of device", "attestation.nvidia_gpu.device", shown(["device"])),
	{"nearest": device},
)}

# rim_denials: all measurements that NVIDIA's manifests speak of are as they say.
rim_denials := set() if {
	report.rim == "matched"
} else := {common.reason("rim_not_matched", "the measurements are not those of a known driver and VBIOS", "attestation.nvidia_gpu.rim", shown(["rim"]))}

# revocation_denials: NVIDIA vouched for the device's certificates just now.
revocation_denials := set() if {
	report.revocation == "good"
} else := {common.reason("revocation_unknown", "a certificate of the device has no current OCSP answer", "attestation.nvidia_gpu.revocation", shown(["revocation"]))}

# model_denials(models): the device is of one of these, "Hopper" or "Blackwell" say.
model_denials(models) := set() if {
	input.attestation.hardware_model in models
} else := {common.reason("nvidia_model", "the device is of another model", "attestation.hardware_model", common.got("hardware_model"))}

# mode_denials(modes): the GPU works alone ("spt"), or with others over an
# encrypted NVLink ("mpt"), or over one in the clear ("ppcie").
mode_denials(modes) := set() if {
	report.cc_mode in modes
} else := {common.reason("cc_mode", "the GPU is in another mode", "attestation.nvidia_gpu.cc_mode", shown(["cc_mode"]))}

# driver_denials(versions): the driver is one of these. A manifest is there for
# old versions too, with what was found in them since.
driver_denials(versions) := set() if {
	report.driver_version in versions
} else := {common.reason("driver_version", "the driver is of another version", "attestation.nvidia_gpu.driver_version", shown(["driver_version"]))}

shown(path) := common.got_in(array.concat(["nvidia_gpu"], path))
