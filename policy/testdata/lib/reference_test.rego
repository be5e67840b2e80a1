package reference_test

import data.claviger.lib.reference

doc := {"time": "2026-11-24T12:00:00Z", "attestation": {"type": "sev-snp", "measurements": {"measurement": "aa"}, "host_data": "h1"}}

entry(state, values, added) := {"name": "n", "type": "sev-snp", "state": state, "values": values, "provenance": {"added_at": added}}

sets := {
	"old": object.union(entry("retired", {"measurement": ["dd"]}, "2026-01-01T00:00:00Z"), {"name": "old"}),
	"one": object.union(entry("active", {"measurement": ["aa"], "host_data": ["h1", "h2"]}, "2026-02-01T00:00:00Z"), {"name": "one"}),
	"two": object.union(entry("canary", {"measurement": ["bb"], "host_data": ["h3"]}, "2026-03-01T00:00:00Z"), {"name": "two"}),
	"past": object.union(entry("active", {"measurement": ["cc"]}, "2026-02-02T00:00:00Z"), {"name": "past", "not_after": "2026-11-01T00:00:00Z"}),
	"next": object.union(entry("active", {"measurement": ["ee"]}, "2026-02-02T00:00:00Z"), {"name": "next", "not_before": "2026-12-01T00:00:00Z"}),
	"during": object.union(entry("active", {"measurement": ["ff"]}, "2026-02-02T00:00:00Z"), {"name": "during", "not_before": "2026-11-01T00:00:00Z", "not_after": "2026-12-01T00:00:00Z"}),
	"blank": object.union(entry("active", {"measurement": [""], "mrtd": [""]}, "2025-01-01T00:00:00Z"), {"name": "blank"}),
}

of(measurement, host_data) := json.patch(doc, [
	{"op": "replace", "path": "attestation/measurements/measurement", "value": measurement},
	{"op": "replace", "path": "attestation/host_data", "value": host_data},
])

matches(measurement, host_data, claims) if {
	reference.match("sev-snp", claims) with input as of(measurement, host_data) with data.reference as sets
}

denials(measurement, host_data, claims) := d if {
	d := reference.denials("sev-snp", claims) with input as of(measurement, host_data) with data.reference as sets
}

only(measurement, host_data, claims) := r if {
	d := denials(measurement, host_data, claims)
	count(d) == 1
	some r in d
}

test_match if {
	matches("aa", "h1", ["measurement"])
	matches("aa", "h2", ["measurement", "host_data"])
	matches("aa", "h2", ["host_data", "measurement"])
	matches("bb", "x", ["measurement"])
	matches("ff", "x", ["measurement"])
	denials("aa", "h1", ["measurement", "host_data"]) == set()
}

test_no_match if {
	not matches("zz", "h1", ["measurement"])
	not matches("dd", "h1", ["measurement"])
	not matches("cc", "h1", ["measurement"])
	not matches("ee", "h1", ["measurement"])
	not matches("", "h1", ["measurement"])
	not matches("aa", "h1", ["measurement", "mrtd"])
	not matches("aa", "h1", [])
	not matches(null, "h1", ["measurement"])
	not matches("AA", "h1", ["measurement"])
}

test_mixing_two_releases_is_not_a_match if {
	not matches("aa", "h3", ["measurement", "host_data"])
	r := only("aa", "h3", ["measurement", "host_data"])
	r.rule == "reference_mixed"
	r.got == "measurement in one, host_data in two"
}

test_matching_names if {
	reference.matching("sev-snp", ["measurement"]) == {"one"} with input as doc with data.reference as sets
	reference.matching("tdx", ["measurement"]) == set() with input as doc with data.reference as sets
}

test_other_evidence_type if {
	not reference.match("tdx", ["measurement"]) with input as doc with data.reference as sets
	d := reference.denials("tdx", ["measurement"]) with input as doc with data.reference as sets
	{"evidence_type"} == {r.rule | some r in d}
}

test_no_references if {
	not reference.match("sev-snp", ["measurement"]) with input as doc with data.reference as {}
	d := reference.denials("sev-snp", ["measurement"]) with input as doc with data.reference as {}
	{r.nearest | some r in d} == {"none: no reference set of type sev-snp lists measurement"}
}

test_missing_input_is_denied if {
	not reference.match("sev-snp", ["measurement"]) with input as {} with data.reference as sets
	{"evidence_type"} == {r.rule | some r in reference.denials("sev-snp", ["measurement"])} with input as {} with data.reference as sets
	d := reference.denials("sev-snp", ["measurement"]) with input as {"time": "2026-11-24T12:00:00Z", "attestation": {"type": "sev-snp"}} with data.reference as sets
	{"measurement_unknown"} == {r.rule | some r in d}
	{r.got | some r in d} == {"missing"}
}

test_unknown if {
	r := only("zz", "h1", ["measurement"])
	r.rule == "measurement_unknown"
	r.claim == "attestation.measurements.measurement"
	r.got == "zz"
	r.nearest == "bb (set two, canary)" # the last added of those that can be used
}

test_nearest_agrees_in_most_other_claims if {
	r := only("zz", "h1", ["measurement", "host_data"])
	r.nearest == "aa (set one, active)"
}

test_retired if {
	r := only("dd", "h1", ["measurement"])
	r.rule == "measurement_retired"
	r.nearest == "dd (set old, retired)"
}

test_not_valid_now if {
	only("cc", "h1", ["measurement"]).rule == "measurement_not_valid_now"
	only("ee", "h1", ["measurement"]).rule == "measurement_not_valid_now"
	only("ee", "h1", ["measurement"]).nearest == "ee (set next, active)"
}

test_host_data_unknown if {
	r := only("aa", "zz", ["measurement", "host_data"])
	r.rule == "host_data_unknown"
	r.claim == "attestation.host_data"
	r.nearest == "h2 (set one, active)"
}

# A measurement that is called host_data is not HOST_DATA.
test_host_data_is_no_measurement if {
	not reference.match("sev-snp", ["host_data"]) with input as {"attestation": {"type": "sev-snp", "measurements": {"host_data": "h1"}}} with data.reference as sets
}

test_no_claims_named if only("aa", "h1", []).rule == "reference_unmatched"

# The broker's index proposes candidates, and decides nothing: names that do not
# hold what it says are not believed.
index := {"sev-snp": {"measurement": {"aa": ["one"], "bb": ["one", "gone"], "dd": ["old"], "ff": ["during"], "": ["blank"]}}}

indexed(measurement, host_data, claims) if {
	reference.match("sev-snp", claims) with input as of(measurement, host_data) with data.reference as sets with data.reference_index as index
}

names(measurement, host_data, claims) := found if {
	found := reference.matching("sev-snp", claims) with input as of(measurement, host_data) with data.reference as sets with data.reference_index as index
}

test_index if {
	indexed("aa", "h2", ["measurement", "host_data"])
	names("aa", "h2", ["measurement", "host_data"]) == {"one"}
	indexed("ff", "h1", ["measurement"])
}

test_index_is_not_believed if {
	not indexed("bb", "h1", ["measurement"])
	not indexed("aa", "h9", ["measurement", "host_data"])
	not indexed("dd", "h1", ["measurement"])
	not indexed("", "h1", ["measurement"])
	names("bb", "h1", ["measurement"]) == set()
	names("dd", "h1", ["measurement"]) == set()
}

chips := {
	"rack": {"name": "rack", "type": "sev-snp", "state": "active", "values": {"chip_id": ["c1", ""]}, "provenance": {}},
	"gone": {"name": "gone", "type": "sev-snp", "state": "retired", "values": {"chip_id": ["c2"]}, "provenance": {}},
	"other": {"name": "other", "type": "tdx", "state": "active", "values": {"chip_id": ["c3"]}, "provenance": {}},
}

chip_index := {"sev-snp": {"chip_id": {"c1": ["rack"], "c2": ["gone"], "c3": ["other"]}}}

test_chip_enrolled if {
	every index in [false, chip_index] {
		reference.chip_denials("sev-snp") == set() with input as {"attestation": {"chip_id": "c1"}} with data.reference as chips with data.reference_index as index
	}
	reference.chip_denials("sev-snp") == set() with input as {"attestation": {"chip_id": "c1"}} with data.reference as chips
	every chip in ["c2", "c3", "c4", ""] {
		every index in [false, chip_index] {
			{r.rule | some r in reference.chip_denials("sev-snp")} == {"chip_not_enrolled"} with input as {"attestation": {"chip_id": chip}} with data.reference as chips with data.reference_index as index
		}
	}
	{r.rule | some r in reference.chip_denials("sev-snp")} == {"chip_not_enrolled"} with input as {} with data.reference as chips
}
