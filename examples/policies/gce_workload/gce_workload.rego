# METADATA
# title: A workload in our project on Google Compute Engine
# description: |
#   TDX guests of one project. What was booted is told by the CPU: reference sets of
#   type gce-vtpm list MRTD and RTMR0 to RTMR2 together, which no host can forge.
#     {"values": {"mrtd": […], "rtmr0": […], "rtmr1": […], "rtmr2": […]}}
#   RTMR0 has the firmware's configuration, Secure Boot's keys and the VM's devices:
#   it has a value for each machine type.
#   Google's certificate adds whose VM it is, which no CPU knows. The vTPM's PCRs are
#   left out: they are Google's word on what the RTMRs say already.
#   README.md lists what the policy pins and what it leaves to the host.
package claviger.release.gce_workload

import data.claviger.lib.gce
import data.claviger.lib.reference

default allow := false

registers := ["mrtd", "rtmr0", "rtmr1", "rtmr2"]

allow if reference.match("gce-vtpm", registers)

# MRCONFIGID, MROWNER and MROWNERCONFIG: Google sets none.
unset := "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

requirements := {"projects": {"project-1"}, "sev_snp": "none", "tdx": td}

# What Google's platform has to be. Date and evaluation number are absolute: move
# them forward with each TCB recovery that Google has rolled out.
td := {
	"tcb_statuses": {"UpToDate"},
	"advisories": set(),
	"tcb_date": "2024-03-13T00:00:00Z",
	"tcb_evaluation": 17,
	"module_svn": {"TDX_01": 5, "TDX_03": 1},
	"tdattributes": {"icssd": "any", "lass": "any", "pks": "any", "kl": false, "tpa": false, "perfmon": false},
	"xfam": {"e702060000000000", "e71a060000000000"},
	"mrconfigid": {unset},
	"mrowner": {unset},
	"mrownerconfig": {unset},
	"collateral": {"fresh", "stale"},
}

deny contains r if some r in gce.production_denials(requirements)

deny contains r if some r in reference.denials("gce-vtpm", registers)

obligations := {"ttl": "1h"}
