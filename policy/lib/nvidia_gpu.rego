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

# production_denials(r): all that an expert would demand of a GPU whose report came
# alone. r has each of these:
#   models   "Hopper", "Blackwell"
#   modes    as of mode_denials
#   drivers  versions
#   vbioses  versions
production_denials(r) := ((gpu_denials | model_denials(r.models)) | (mode_denials(r.modes) | driver_denials(r.drivers))) | vbios_denials(r.vbioses)

# production_gpus_denials(r): the same for all GPUs beside a CPU's evidence, of which
# there are at least r.least, linked to each other and to nothing else.
production_gpus_denials(r) := (gpus_denials(r.least, r.modes) | topology_denials) | {x |
	some device in gpus
	some x in ((model_denials(r.models) | driver_denials(r.drivers)) | vbios_denials(r.vbioses)) with input.attestation as device
}

device_denials(device) := set() if {
	report.device == device
} else := {object.union(
	common.reason("nvidia_device", "the report is of another kind of device", "attestation.nvidia_gpu.device", common.shown([v | v := report.device])),
	{"nearest": device},
)}

# rim_denials: all measurements that NVIDIA's manifests speak of are as they say.
rim_denials := set() if {
	report.rim == "matched"
} else := {common.reason("rim_not_matched", "the measurements are not those of a known driver and VBIOS", "attestation.nvidia_gpu.rim", common.shown([v | v := report.rim]))}

# revocation_denials: NVIDIA vouched for the device's certificates just now.
revocation_denials := set() if {
	report.revocation == "good"
} else := {common.reason("revocation_unknown", "a certificate of the device has no current OCSP answer", "attestation.nvidia_gpu.revocation", common.shown([v | v := report.revocation]))}

# model_denials(models): the device is of one of these, "Hopper" or "Blackwell" say.
model_denials(models) := set() if {
	input.attestation.hardware_model in models
} else := {common.reason("nvidia_model", "the device is of another model", "attestation.hardware_model", common.shown([v | v := input.attestation.hardware_model]))}

# mode_denials(modes): the GPU works alone ("spt"), or with others over an
# encrypted NVLink ("mpt"), or over one in the clear ("ppcie").
mode_denials(modes) := set() if {
	report.cc_mode in modes
} else := {common.reason("cc_mode", "the GPU is in another mode", "attestation.nvidia_gpu.cc_mode", common.shown([v | v := report.cc_mode]))}

# driver_denials(versions): the driver is one of these. A manifest is there for
# old versions too, with what was found in them since.
driver_denials(versions) := set() if {
	report.driver_version in versions
} else := {common.reason("driver_version", "the driver is of another version", "attestation.nvidia_gpu.driver_version", common.shown([v | v := report.driver_version]))}

# vbios_denials(versions): the VBIOS is one of these, as driver_denials says of drivers.
vbios_denials(versions) := set() if {
	report.vbios_version in versions
} else := {common.reason("vbios_version", "the VBIOS is of another version", "attestation.nvidia_gpu.vbios_version", common.shown([v | v := report.vbios_version]))}

# Devices beside a CPU's evidence (docs/evidence/composite.md): input.attestation.devices.

# gpus_denials(least): at least so many GPUs came with the evidence, each as
# gpu_denials wants it, each in one of these modes; switches as switch_denials wants them.
gpus_denials(least, modes) := ({r |
	count(gpus) < least
	r := object.union(
		common.reason("gpus_missing", "fewer GPUs came with the evidence than the policy asks for", "attestation.devices", sprintf("%d", [count(gpus)])),
		{"nearest": sprintf("%d", [least])},
	)
} | {r |
	some device in gpus
	some r in (gpu_denials | mode_denials(modes)) with input.attestation as device
}) | {r |
	some device in switches
	some r in switch_denials with input.attestation as device
}

gpus := [device | some device in common.devices_of("nvidia-gpu"); object.get(device, ["nvidia_gpu", "device"], "") != "nvswitch"]

switches := [device | some device in common.devices_of("nvidia-gpu"); device.nvidia_gpu.device == "nvswitch"]

# topology_denials: GPUs and switches name each other. This is where the hardware
# tells devices of one machine from those of two: each GPU is linked to the switches
# that came, and no others, and each switch to the GPUs that came.
topology_denials := ({r |
	some device in gpus
	linked := {pdi | some pdi in device.nvidia_gpu.switch_pdis}
	linked != {s.chip_id | some s in switches}
	r := common.reason("topology", "a GPU is linked to other switches than came with the evidence", "attestation.devices", device.chip_id)
} | {r |
	some device in switches
	linked := {pdi | some pdi in device.nvidia_gpu.gpu_pdis}
	linked != {g.chip_id | some g in gpus}
	r := common.reason("topology", "a switch is linked to other GPUs than came with the evidence", "attestation.devices", device.chip_id)
}) | {r |
	some device in array.concat(gpus, switches)
	not links(device)
	r := common.reason("topology", "a device does not say what it is linked to", "attestation.devices", object.get(device, "chip_id", ""))
}

links(device) if {
	is_array(device.nvidia_gpu.switch_pdis)
	is_array(device.nvidia_gpu.gpu_pdis)
	device.chip_id != ""
}
