# METADATA
# title: Strict production TDX
# description: |
#   Only TDs on fully patched platforms, of images whose firmware and boot
#   chain are both known. Reference sets of type tdx list MRTD (the TD's
#   firmware) and RTMR0 to RTMR2 (its configuration, boot loader, kernel and
#   command line) together:
#     {"values": {"mrtd": […], "rtmr0": […], "rtmr1": […], "rtmr2": […]}}
#   RTMR3 is for the running system and is left out.
package claviger.release.tdx_strict

import data.claviger.lib.common
import data.claviger.lib.reference
import data.claviger.lib.tdx

default allow := false

registers := ["mrtd", "rtmr0", "rtmr1", "rtmr2"]

# All four in one set: the firmware of one release with the kernel of another is
# not something that anybody tested.
allow if reference.match("tdx", registers)

# Intel's word on the platform. Anything but UpToDate waits for the patch.
tcb_accepted := {"UpToDate"}

# UpToDate is relative to the TCB info in use; this is absolute. Move it
# forward with each TCB recovery that you have rolled out.
tcb_date_minimum := "2024-03-13T00:00:00Z"

# Advisories that were looked at and found not to matter here, e.g. "INTEL-SA-00000".
advisories_accepted := set()

deny contains r if some r in common.baseline_denials

deny contains r if some r in reference.denials("tdx", registers)

deny contains r if some r in tdx.tcb_status_denials(tcb_accepted)

deny contains r if some r in tdx.tcb_date_denials(tcb_date_minimum)

deny contains r if some r in tdx.advisory_denials(advisories_accepted)

deny contains r if some r in tdx.attribute_denials

# Production also wants yesterday's collateral, not last month's.
deny contains r if {
	common.stale
	r := common.reason("collateral_stale", "the collateral is past its refresh age", "attestation.collateral.state", common.shown([v | v := input.attestation.collateral.state]))
}

# "Harvest now, decrypt later" is in scope: only the hybrid wrap.
obligations := {"ttl": "1h", "require_pq": true}
