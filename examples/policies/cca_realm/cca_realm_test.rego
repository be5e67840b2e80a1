package claviger.release.cca_realm_test

import data.claviger.release.cca_realm

# Written by hand: digests of one repeated digit.
claims := data.fixtures.cca_token.attestation

request := {"attestation": claims, "time": "2026-11-24T12:00:00Z"}

references := {"r1": {"name": "r1", "type": "cca", "state": "active", "provenance": {"added_at": "2026-11-01T00:00:00Z"}, "values": {"rim": [claims.measurements.rim]}}}

# edit(changes): the request with other values, by path.
edit(changes) := json.patch(request, [{"op": "add", "path": c[0], "value": c[1]} | some c in changes])

released(doc, refs) if {
	cca_realm.allow with input as doc with data.reference as refs
	count(cca_realm.deny) == 0 with input as doc with data.reference as refs
}

rules(doc, refs) := found if {
	found := {r.rule | some r in cca_realm.deny} with input as doc with data.reference as refs
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

test_obligations if cca_realm.obligations == {"ttl": "1h"}

# Each row of README.md has its test here.

test_rim if refused([["attestation/measurements/rim", "00"]], {"rim_unknown"})

test_signer if refused([["attestation/cca/platform/sw_components/0/signer_id", "66"]], {"signer_unknown"})

test_version if refused([["attestation/cca/platform/sw_components/0/version", "1.4.1"]], {"component_version"})

test_component if refused([["attestation/cca/platform/sw_components/1/measurement_type", "BL99"]], {"component_missing", "component_version"})

test_config if refused([["attestation/cca/platform/config", "00"]], {"platform_config"})

test_personalization if refused([["attestation/cca/realm/personalization_value", "66"]], {"personalization_unknown"})

test_unextended if refused([["attestation/cca/realm/extensible_measurements/0", "66"]], {"extended"})

test_left_registers if left([["attestation/cca/realm/extensible_measurements/3", "66"]])

test_left_chip if left([["attestation/chip_id", "00"]])

test_type if refused([["attestation/type", "psa"]], {"evidence_type"})

test_bound if refused([["attestation/bound", false]], {"not_bound"})

test_debuggable if refused([["attestation/debuggable", true]], {"debuggable"})

test_not_migratable if refused([["attestation/migratable", true]], {"migratable"})

test_simulated if refused([["attestation/simulated", true]], {"simulated"})
