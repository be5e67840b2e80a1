# METADATA
# title: A service in an SGX enclave
# description: |
#   Enclaves of our signer, by product and minimum security version, or of a
#   release that is listed by MRENCLAVE. Reference sets of type sgx list one:
#     {"values": {"mrenclave": […]}}
#   README.md lists what the policy pins and what it leaves to the host.
package claviger.release.enclave

import data.claviger.lib.reference
import data.claviger.lib.sgx

default allow := false

# SHA-256 of the signing key's modulus, as `sgx_sign dump` or `oesign dump` prints it.
signers := {"ffdcc4ba1ba029d91fb645eab1563010ee7bcfac6f321326f4eab298601b5bce"}

# ISVPRODID and the lowest ISVSVN, as in the enclave's configuration file. Raise
# the latter to shut out releases with a known hole.
product := 7

minimum := 3

# What the signing key's owner signs for this product is good…
trusted_signer if count(sgx.identity_denials(signers, product, minimum)) == 0

allow if trusted_signer

# …and so is one release that somebody listed, whoever signed it.
allow if reference.match("sgx", ["mrenclave"])

# Whoever is let in by neither reads why for both.
deny contains r if {
	not allow
	some r in (sgx.identity_denials(signers, product, minimum) | reference.denials("sgx", ["mrenclave"]))
}

# The enclave is built with the mitigations for these advisories, so that a
# platform which needs them in software will do. One whose BIOS is to be set up
# otherwise, or is out of date, will not.
requirements := {
	"tcb_statuses": {"UpToDate", "SWHardeningNeeded"},
	"advisories": {"INTEL-SA-00615"},
	"tcb_date": "2024-03-13T00:00:00Z",
	"tcb_evaluation": 17,
	"attributes": {"mode64bit": true, "provisionkey": false, "einittoken_key": false, "cet": "any", "kss": "any", "aex_notify": "any"},
	"xfrm": {"0300000000000000", "0700000000000000", "e700000000000000"},
	"miscselect": {"00000000"},
	"configid": {unset},
	"collateral": {"fresh", "stale"},
}

# CONFIGID: ours are built without key separation and sharing.
unset := "00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

deny contains r if some r in sgx.production_denials(requirements)

obligations := {"ttl": "1h"}
