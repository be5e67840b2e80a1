# METADATA
# title: Strict production TDX
# description: |
#   Only TDs on fully patched platforms, of images whose firmware and boot
#   chain are both known. README.md lists what the policy pins and what it leaves
#   to the host. Reference sets of type tdx list MRTD (the TD's
#   firmware) and RTMR0 to RTMR2 (its configuration, boot loader, kernel and
#   command line) together:
#     {"values": {"mrtd": […], "rtmr0": […], "rtmr1": […], "rtmr2": […]}}
#   RTMR3 is for the running system and is left out.
package claviger.release.tdx_strict

import data.claviger.lib.reference
import data.claviger.lib.tdx

default allow := false

registers := ["mrtd", "rtmr0", "rtmr1", "rtmr2"]

# All four in one set: the firmware of one release with the kernel of another is
# not something that anybody tested.
allow if reference.match("tdx", registers)

# Intel's word on the platform. Anything but UpToDate waits for the patch.
tcb_accepted := {"UpToDate"}

# UpToDate is relative to the TCB info in use; date and evaluation number (below) are
# absolute. Move them forward with each TCB recovery that you have rolled out.
tcb_date_minimum := "2024-03-13T00:00:00Z"

# Advisories that were looked at and found not to matter here, e.g. "INTEL-SA-00000".
advisories_accepted := set()

# MRCONFIGID, MROWNER and MROWNERCONFIG are what whoever starts the TD gives it. Our
# images do not read them: other values are somebody else's way of starting them.
unset := "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

# What the platform has to be. Yesterday's collateral, not last month's. XFAM lists
# the processor's features that our kernels clear: x87, SSE, AVX, AVX-512,
# PKRU, AMX, and the same with CET.
requirements := {
	"tcb_statuses": tcb_accepted,
	"advisories": advisories_accepted,
	"tcb_date": tcb_date_minimum,
	"tcb_evaluation": 17,
	"module_svn": {"TDX_01": 5, "TDX_03": 1},
	"tdattributes": {"icssd": "any", "lass": "any", "pks": "any", "kl": false, "tpa": false, "perfmon": false},
	"xfam": {"e702060000000000", "e71a060000000000"},
	"mrconfigid": {unset},
	"mrowner": {unset},
	"mrownerconfig": {unset},
	"collateral": {"fresh"},
}

deny contains r if some r in tdx.production_denials(requirements)

deny contains r if some r in reference.denials("tdx", registers)

# "Harvest now, decrypt later" is in scope: only the hybrid wrap.
obligations := {"ttl": "1h", "require_pq": true}
