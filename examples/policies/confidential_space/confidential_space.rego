# METADATA
# title: A workload in Google Confidential Space
# description: |
#   Containers whose image somebody listed, in our project, on Intel TDX. The
#   policy trusts Google: the token says what ran, and no hardware says it to us.
#   "google" is the name of that issuer in the broker's configuration:
#     evidence: {results: [{name: google, dialect: google,
#       issuer: "https://confidentialcomputing.googleapis.com", audience: …, roots: google.pem}]}
#
#   Reference sets of type attestation-result list the digests of images, without
#   "sha256:":  {"values": {"image_digest": […]}}
package claviger.release.confidential_space

import data.claviger.lib.reference
import data.claviger.lib.result

default allow := false

measured := ["image_digest"]

# Google does not say whether a guest may be migrated. Who trusts it with the rest, trusts it with that.

# Anybody can run our image in a project of his own, and with arguments of his own
# if its launch policy lets him. STABLE leaves out images of Confidential Space
# that Google no longer supports.
claims := {
	"swname": {"CONFIDENTIAL_SPACE"},
	"submods/confidential_space/support_attributes": {"STABLE"},
	"submods/gce/project_id": {"example"},
	"google_service_accounts": {"worker@example.iam.gserviceaccount.com"},
}

allow if reference.match("attestation-result", measured)

deny contains r if some r in result.without_denials({"google"}, {"migratable"})

deny contains r if some r in reference.denials("attestation-result", measured)

deny contains r if some r in result.claim_denials(claims)

obligations := {"ttl": "1h"}
