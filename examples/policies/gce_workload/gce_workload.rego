# METADATA
# title: A workload in our project on Google Compute Engine
# description: |
#   TDX guests of one project. What was booted is told by the CPU: reference sets of
#   type gce-vtpm list MRTD and RTMR1 and RTMR2 together, which no host can forge.
#     {"values": {"mrtd": […], "rtmr1": […], "rtmr2": […]}}
#   Google's certificate adds whose VM it is, which no CPU knows. The vTPM's PCRs are
#   left out: they are Google's word on what the RTMRs say already.
package claviger.release.gce_workload

import data.claviger.lib.common
import data.claviger.lib.gce
import data.claviger.lib.reference
import data.claviger.lib.tdx

default allow := false

registers := ["mrtd", "rtmr1", "rtmr2"]

allow if reference.match("gce-vtpm", registers)

deny contains r if some r in common.baseline_denials

deny contains r if some r in reference.denials("gce-vtpm", registers)

deny contains r if some r in gce.project_denials({"project-1"})

deny contains r if some r in tdx.attribute_denials

deny contains r if some r in tdx.tcb_status_denials({"UpToDate"})

obligations := {"ttl": "1h"}
