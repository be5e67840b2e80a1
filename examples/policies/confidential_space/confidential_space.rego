# METADATA
# title: A workload in Google Confidential Space
# description: |
#   Containers whose image somebody listed, in our project, on Intel TDX. The
#   policy trusts Google: the token says what ran, and no hardware says it to us.
#   "google" is the name of that issuer in the broker's configuration:
#     evidence: {results: [{name: google, dialect: google,
#       issuer: "https://confidentialcomputing.googleapis.com", audience: …, roots: google.pem}]}
#   README.md lists what the policy pins and what it leaves to others.
#
#   Reference sets of type attestation-result list the digests of images, without
#   "sha256:":  {"values": {"image_digest": […]}}
package claviger.release.confidential_space

import data.claviger.lib.reference
import data.claviger.lib.result

default allow := false

measured := ["image_digest"]

allow if reference.match("attestation-result", measured)

# Anybody can run our image in a project of his own, and with arguments and variables
# of his own if its launch policy lets him. STABLE leaves out images of Confidential
# Space that Google no longer supports.
requirements := {
	"issuers": {"google"},
	"hwmodels": {"GCP_INTEL_TDX"},
	"tcb_statuses": {"UpToDate"},
	"tcb_date": "2024-03-13T00:00:00Z",
	"swversion": 250800,
	"support": {"STABLE"},
	"projects": {"example"},
	"service_accounts": {"worker@example.iam.gserviceaccount.com"},
	"env_overrides": set(),
}

deny contains r if some r in result.space_denials(requirements)

deny contains r if some r in reference.denials("attestation-result", measured)

obligations := {"ttl": "1h"}
