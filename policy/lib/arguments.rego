# METADATA
# description: |
#   What helpers are given. A helper that is called with something undefined is
#   undefined itself, and denies nothing; one that is given a text in place of a
#   set may find nothing to deny. So loading puts wrong before every call of a
#   helper in a policy (policy/arguments.go): policies do not call it themselves.
package claviger.lib.arguments

import data.claviger.lib.common

# wrong(given): a reason for each argument that is not what a helper takes. given
# has, for each argument, the helper's name, the argument's number, its kind, and
# its values: none if it is undefined.
wrong(given) := set() if {
	every argument in given {
		count(argument[3]) > 0
		every value in argument[3] {
			is_kind(argument[2], value)
		}
	}
} else := {r |
	some argument in given
	some got in faults(argument)
	r := common.reason("argument", message(argument), "policy", got)
}

message(argument) := sprintf("%s gives nothing", [argument[0]]) if {
	argument[1] == 0
} else := sprintf("%s: argument %d is not %s", [argument[0], argument[1], words[argument[2]]])

faults(argument) := {"undefined"} if {
	count(argument[3]) == 0
} else := {got |
	some value in argument[3]
	not is_kind(argument[2], value)
	got := substring(sprintf("%v", [value]), 0, 100)
}

words := {
	"any": "defined", "text": "a text", "texts": "a set or list of texts with one at least", "exceptions": "a set or list of texts",
	"number": "a whole number from 0 on", "numbers": "a set or list of whole numbers from 0 on, with one at least",
	"floors": "a minimum for each component, by model, with one at least", "values": "the accepted values by name, with one at least each", "time": "a time in RFC 3339",
}

is_kind("any", _)

is_kind("text", v) if is_text(v)

is_kind("texts", v) if {
	is_list(v)
	count(v) > 0
	every x in v {
		is_text(x)
	}
}

is_kind("exceptions", v) if {
	is_list(v)
	every x in v {
		is_text(x)
	}
}

is_kind("number", v) if is_whole(v)

is_kind("numbers", v) if {
	is_list(v)
	count(v) > 0
	every x in v {
		is_whole(x)
	}
}

is_kind("floors", v) if {
	is_object(v)
	count(v) > 0
	every floor in v {
		is_object(floor)
		count(floor) > 0
		every minimum in floor {
			is_whole(minimum)
		}
	}
}

is_kind("values", v) if {
	is_object(v)
	count(v) > 0
	every values in v {
		is_list(values)
		count(values) > 0
		every x in values {
			not is_null(x)
		}
	}
}

is_kind("time", v) if {
	is_string(v)
	regex.match(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T`, v)
	time.parse_rfc3339_ns(v)
}

is_text(v) if {
	is_string(v)
	v != ""
}

is_whole(v) if {
	is_number(v)
	v >= 0
	v == floor(v)
}

is_list(v) if is_set(v)

is_list(v) if is_array(v)
