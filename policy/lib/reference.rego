# METADATA
# description: |
#   Comparison with reference values: data.reference, by set name. All claims
#   of one question must be found in one set: a kernel of one release and an
#   initrd of another, each good by itself, are not a release. A policy sees the sets
#   that are for it, and those of policies that it names in references_of.
package claviger.lib.reference

import data.claviger.lib.common

# match(type, claims): a set of this type, in a state and at a time to be
# used, lists the present value of every claim named.
match(type, claims) if {
	input.attestation.type == type
	got := present
	first := claims[0]
	some name in data.reference_index[type][first][got[first]]
	set := data.reference[name]
	set.type == type
	every claim in claims {
		got[claim] != ""
		got[claim] in set.values[claim]
	}
	usable(set)
} else if {
	not data.reference_index # as in tests: look at all sets
	input.attestation.type == type
	first := claims[0]
	v := present[first] # cheap, and rules most sets out
	v != ""
	some set in data.reference
	v in set.values[first]
	set.type == type
	agrees(set, claims)
	usable(set)
}

# matching(type, claims) are the names of all such sets.
matching(type, claims) := {name |
	input.attestation.type == type
	first := claims[0]
	some name in data.reference_index[type][first][present[first]]
	set := data.reference[name]
	set.type == type
	agrees(set, claims)
	usable(set)
} if {
	data.reference_index
} else := {name |
	input.attestation.type == type
	first := claims[0]
	v := present[first]
	v != ""
	some name, set in data.reference
	v in set.values[first]
	set.type == type
	agrees(set, claims)
	usable(set)
}

agrees(set, claims) if {
	every claim in claims {
		v := present[claim]
		v != ""
		v in set.values[claim]
	}
}

# listed: an empty or missing claim equals nothing, not even an empty reference value.
listed(set, claim) if {
	v := present[claim]
	v != ""
	v in set.values[claim]
}

# present are the claims that can be compared: the measurements by name, and host_data.
# (The first body is the usual case, spelt out to be quick.)
present := object.union(input.attestation.measurements, {"host_data": input.attestation.host_data}) if {
	is_object(input.attestation.measurements)
} else := object.union(measured, host)

default measured := {}

measured := input.attestation.measurements if is_object(input.attestation.measurements)

default host := {"host_data": ""}

host := {"host_data": input.attestation.host_data}

# value(claim) is a measurement by name, or host_data.
value(claim) := object.get(present, claim, "")

path("host_data") := "attestation.host_data"

path(claim) := concat("", ["attestation.measurements.", claim]) if claim != "host_data"

# usable: canary, active and retiring sets, within their validity, for this resource.
usable(set) if {
	set.state in {"canary", "active", "retiring"}
	not set.resources
	not set.not_before
	not set.not_after
} else if {
	set.state in {"canary", "active", "retiring"}
	begun(set)
	not ended(set)
	for_resource(set)
}

for_resource(set) if not set.resources

# A pattern is one of the catalog's: disks/{vm}.
for_resource(set) if {
	path := split(input.resource.path, "/")
	some pattern in set.resources
	segments := split(pattern, "/")
	count(segments) == count(path)
	every i, segment in segments {
		covers(segment, path[i])
	}
}

covers(segment, part) if segment == part

covers(segment, part) if {
	startswith(segment, "{")
	part != ""
}

begun(set) if not set.not_before

begun(set) if time.parse_rfc3339_ns(set.not_before) <= now

ended(set) if time.parse_rfc3339_ns(set.not_after) < now

now := time.parse_rfc3339_ns(input.time)

# chip_denials(type): the chip is enrolled, that is, a usable set of this type
# lists it as chip_id. Such sets are apart from those of measurements:
#   claviger reference set rack-7 --type sev-snp --value chip_id=…
chip_denials(type) := set() if {
	chip := input.attestation.chip_id
	chip != ""
	some name in data.reference_index[type].chip_id[chip]
	data.reference[name].type == type
	usable(data.reference[name])
} else := set() if {
	not data.reference_index # as in tests: look at all sets
	chip := input.attestation.chip_id
	chip != ""
	some set in data.reference
	set.type == type
	chip in set.values.chip_id
	usable(set)
} else := {common.reason("chip_not_enrolled", "no reference set in use lists this chip", "attestation.chip_id", common.shown([v | v := input.attestation.chip_id]))}

# denials(type, claims) explains why match does not hold, and is empty where it does.
denials(type, claims) := set() if {
	match(type, claims)
} else := common.at_least_one(explain(type, claims), common.reason("reference_unmatched", "no reference set matches", "attestation.measurements", "")) if {
	input.attestation.type == type
} else := common.type_denials(type)

explain(type, claims) := {r |
	some claim in claims
	not known(type, claim)
	r := object.union(
		common.reason(concat("", [claim, "_", problem(type, claim)]), message(type, claim), path(claim), shown(claim)),
		nearest_member(type, claims, claim),
	)
} | {r |
	# Each value is known by itself, so the fault is in the combination.
	every claim in claims {
		known(type, claim)
	}
	r := common.reason("reference_mixed", "each value is known, but no one reference set lists them all", path(claims[0]), concat(", ", [s | some claim in claims; s := concat(" ", [claim, "in", concat("/", holders(type, claim))])]))
}

known(type, claim) if {
	some set in data.reference
	set.type == type
	listed(set, claim)
	usable(set)
}

holders(type, claim) := sort([name |
	some name, set in data.reference
	set.type == type
	listed(set, claim)
	usable(set)
])

# problem tells a value never heard of from one that is no longer, or not yet, accepted.
problem(type, claim) := "retired" if {
	some set in data.reference
	set.type == type
	listed(set, claim)
	set.state == "retired"
} else := "not_for_resource" if {
	some set in data.reference
	set.type == type
	listed(set, claim)
	not for_resource(set)
} else := "not_valid_now" if {
	some set in data.reference
	set.type == type
	listed(set, claim)
} else := "unknown"

message(type, claim) := sprintf("%s is in a retired reference set only", [claim]) if {
	problem(type, claim) == "retired"
} else := sprintf("%s is in a reference set outside its validity only", [claim]) if {
	problem(type, claim) == "not_valid_now"
} else := sprintf("%s is in a reference set for other resources only", [claim]) if {
	problem(type, claim) == "not_for_resource"
} else := sprintf("%s is in no reference set of type %s that is for this policy", [claim, type])

shown(claim) := "missing" if {
	value(claim) == ""
} else := value(claim)

# nearest(type, claims, claim): digests have no distance, so the nearest set is
# the one that lists this very value though it cannot be used; else the one that
# agrees in most other claims; else the one last added. Ties go by name.
nearest(type, claims, claim) := set if {
	ranked := [[rank, name] |
		some name, set in data.reference
		set.type == type
		count(set.values[claim]) > 0
		rank := [
			listed_rank(set, claim),
			count([1 | some c in claims; listed(set, c)]),
			usable_rank(set),
			object.get(set, ["provenance", "added_at"], ""),
		]
	]
	set := data.reference[max(ranked)[1]]
}

listed_rank(set, claim) := 1 if {
	listed(set, claim)
} else := 0

usable_rank(set) := 1 if {
	usable(set)
} else := 0

nearest_member(type, claims, claim) := {"nearest": text} if {
	set := nearest(type, claims, claim)
	text := sprintf("%s (set %s, %s)", [best_value(set, claim), set.name, set.state])
} else := {"nearest": sprintf("none: no reference set of type %s lists %s", [type, claim])}

# best_value: the value itself if it is there, else the one listed last.
best_value(set, claim) := value(claim) if {
	listed(set, claim)
} else := set.values[claim][count(set.values[claim]) - 1]
