package claviger.release.confidential_space_test

import data.claviger.release.confidential_space

# Written by hand in the form of a real token's claims: digests of one repeated byte.
request := object.union(data.fixtures.space_token, {"time": "2026-11-24T12:00:00Z"})

references := {"r1": {"name": "r1", "type": "attestation-result", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": {"image_digest": [request.attestation.measurements.image_digest]}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	confidential_space.allow with input as doc with data.reference as refs
	count(confidential_space.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in confidential_space.deny} with input as doc with data.reference as refs
}

# refused(changes, because): nothing is released, for just these reasons.
refused(changes, because) if {
	print(changes, rules(edit(changes), references))
	not released(edit(changes), references)
	rules(edit(changes), references) == because
}

# left(changes): the change does not matter, as it is left to others.
left(changes) if {
	print(changes, rules(edit(changes), references))
	edit(changes) != request
	released(edit(changes), references)
}

test_allowed if released(request, references)

test_nothing_is_denied if not released({}, references)

test_obligations if confidential_space.obligations == {"ttl": "1h"}

# Each row of README.md has its test here.

test_image_digest if refused([["attestation/measurements/image_digest", "00"]], {"image_digest_unknown"})

test_verifier if refused([["attestation/attestation_result/verified_by", "another"]], {"verifier_untrusted"})

test_dialect if refused([["attestation/attestation_result/dialect", "ear"]], {"dialect"})

test_swname if refused([["attestation/attestation_result/token/swname", "GCE"]], {"claim_unknown"})

test_hwmodel if refused([["attestation/attestation_result/token/hwmodel", "GCP_AMD_SEV_SNP"]], {"claim_unknown"})

test_tcb_status if refused([["attestation/tcb/status", "OutOfDate"]], {"tcb_status"})

test_tcb_date if refused([["attestation/tcb/date", "2023-08-09T00:00:00Z"]], {"tcb_date"})

test_secboot if refused([["attestation/attestation_result/token/secboot", false]], {"secure_boot"})

test_swversion if refused([["attestation/attestation_result/token/swversion", ["240900"]]], {"swversion"})

test_support if refused([["attestation/attestation_result/token/submods/confidential_space/support_attributes", ["EXPERIMENTAL"]]], {"claim_unknown"})

test_project if refused([["attestation/attestation_result/token/submods/gce/project_id", "others"]], {"claim_unknown"})

test_service_account if refused([["attestation/attestation_result/token/google_service_accounts", []]], {"claim_unknown"})

test_arguments if refused([["attestation/attestation_result/token/submods/container/cmd_override", ["/bin/sh"]]], {"cmd_override"})

test_environment if refused([["attestation/attestation_result/token/submods/container/env_override", {"LD_PRELOAD": "/tmp/x.so"}]], {"env_override"})

test_container if refused([["attestation/attestation_result/token/submods/container", {}]], {"container_missing"})

test_left_instance if left([["attestation/attestation_result/token/submods/gce/instance_id", "1"], ["attestation/attestation_result/token/submods/gce/zone", "us-east1-b"]])

test_left_reference if left([["attestation/attestation_result/token/submods/container/image_reference", "example/worker:latest"]])

test_left_migratable if left([["attestation/migratable", false]])

test_type if refused([["attestation/type", "tdx"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})

test_cpu if refused([["attestation/bound_to_cpu_tee", false]], {"not_bound_to_cpu_tee"})
