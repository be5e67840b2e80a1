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
} else := common.at_least_one(
	{r |
		some argument in given
		some got in faults(argument)
		r := common.reason("argument", message(argument), "policy", got)
	},
	common.reason("argument", "an argument of a helper is not what it takes", "policy", ""),
)

message(argument) := sprintf("%s gives nothing", [argument[0]]) if {
	argument[1] == 0
} else := sprintf("%s: argument %d is not %s", [argument[0], argument[1], words[argument[2]]]) if {
	words[argument[2]]
} else := sprintf("%s: argument %d is not an object of exactly %s", [argument[0], argument[1], concat(", ", sort(names(argument[2])))])

names(kind) := bits[kind] if {
	bits[kind]
} else := object.keys(shapes[optional[kind]]) if {
	optional[kind]
} else := object.keys(shapes[kind])

faults(argument) := {"undefined"} if {
	count(argument[3]) == 0
} else := {got |
	some value in argument[3]
	not is_kind(argument[2], value)
	some got in fault(argument[2], value)
}

# fault says of requirements which member is wrong, and of other values what they are.
fault(kind, value) := {got |
	shape := shapes[kind]
	some name in (object.keys(shape) | object.keys(value))
	not has_member(shape, value, name)
	got := sprintf("%s: %s", [name, substring(sprintf("%v", [object.get(value, [name], "missing")]), 0, 100)])
} if {
	shapes[kind]
	is_object(value)
} else := {substring(sprintf("%v", [value]), 0, 100)}

# (A member that is false has to be told from one that is not there, and x[name] in a negation is undefined.)
has_member(shape, value, name) if is_member(shape[name], value[name])

words := {
	"any": "defined", "text": "a text", "texts": "a set or list of texts with one at least", "exceptions": "a set or list of texts",
	"number": "a whole number from 0 on", "numbers": "a set or list of whole numbers from 0 on, with one at least", "indices": "a set or list of whole numbers from 0 on",
	"floors": "a minimum for each component, by model, with one at least", "values": "the accepted values by name, with one at least each", "time": "a time in RFC 3339",
	"minimums": "a whole number from 0 on by name, with one at least", "versions": "a version (1.2.3) by name, with one at least",
	"bit": "true, false or \"any\"",
}

# shapes are what the requirements of production helpers are made of: the kind of
# each member. All have to be there, and no others: what a policy leaves to the
# host, it says. (policy/arguments.go reads this table, and bits, too.)
shapes := {
	"snp": {
		"tcb": "floors", "report_version": "number", "vmpl": "number", "policy": "snp_policy", "platform_info": "snp_platform_info",
		"mitigations": "indices", "signing_keys": "texts", "csp_ids": "exceptions", "collateral": "texts",
	},
	"tdx": {
		"tcb_statuses": "texts", "advisories": "exceptions", "tcb_date": "time", "tcb_evaluation": "number", "module_svn": "minimums", "tdattributes": "tdx_attributes",
		"xfam": "texts", "mrconfigid": "texts", "mrowner": "texts", "mrownerconfig": "texts", "collateral": "texts",
	},
	"sgx": {
		"tcb_statuses": "texts", "advisories": "exceptions", "tcb_date": "time", "tcb_evaluation": "number", "attributes": "sgx_attributes",
		"xfrm": "texts", "miscselect": "texts", "configid": "texts", "collateral": "texts",
	},
	"tpm": {"loader": "text", "secure_boot": "bit"},
	"azure": {"paravisors": "texts", "boot": "texts", "secure_boot": "bit", "sev_snp": "snp_or_none", "tdx": "tdx_or_none"},
	"gce": {"projects": "texts", "sev_snp": "snp_or_none", "tdx": "tdx_or_none"},
	"cca": {"signers": "texts", "versions": "versions", "config": "texts", "personalization": "texts", "unextended": "indices"},
	"psa": {"signers": "texts", "versions": "versions", "clients": "texts"},
	"nitro": {"kind": "text", "pcrs": "values"},
	"keystone": {"monitors": "texts"},
	"nvidia": {"models": "texts", "modes": "texts", "drivers": "texts", "vbioses": "texts"},
	"nvidia_beside": {"least": "number", "models": "texts", "modes": "texts", "drivers": "texts", "vbioses": "texts"},
	"result": {"issuers": "texts", "unstated": "exceptions", "submods": "exceptions", "tcb_statuses": "texts", "claims": "values"},
	"space": {
		"issuers": "texts", "hwmodels": "texts", "tcb_statuses": "texts", "tcb_date": "time", "swversion": "number", "support": "texts",
		"projects": "texts", "service_accounts": "texts", "env_overrides": "exceptions",
	},
}

# optional requirements may be "none", where a policy accepts no such hardware.
optional := {"snp_or_none": "snp", "tdx_or_none": "tdx"}

# bits are the flags of a field that a policy demands, each true or false, or
# leaves to the host: "any".
bits := {
	"snp_policy": {"smt", "single_socket", "cxl_allow", "mem_aes_256_xts", "rapl_dis", "ciphertext_hiding_dram", "page_swap_disable"},
	"snp_platform_info": {"smt_en", "tsme_en", "ecc_en", "rapl_dis", "ciphertext_hiding_dram_en", "alias_check_complete", "tio_en"},
	"tdx_attributes": {"icssd", "lass", "pks", "kl", "tpa", "perfmon"},
	"sgx_attributes": {"mode64bit", "provisionkey", "einittoken_key", "cet", "kss", "aex_notify"},
}

# (Rego has no recursion: requirements hold requirements, but no deeper.)
is_kind(kind, v) if is_simple(kind, v)

is_kind(kind, v) if {
	same_names(shapes[kind], v)
	every name, member in shapes[kind] {
		is_member(member, v[name])
	}
}

is_member(kind, v) if is_simple(kind, v)

is_member(kind, v) if {
	shape := shapes[optional[kind]]
	same_names(shape, v)
	every name, member in shape {
		is_simple(member, v[name])
	}
}

is_member(kind, "none") if optional[kind]

same_names(shape, v) if {
	is_object(v)
	object.keys(v) == object.keys(shape)
}

is_simple("bit", v) if is_bit(v)

is_simple(kind, v) if {
	is_object(v)
	object.keys(v) == bits[kind]
	every bit in v {
		is_bit(bit)
	}
}

is_simple("indices", v) if {
	is_list(v)
	every x in v {
		is_whole(x)
	}
}

is_simple("minimums", v) if {
	is_object(v)
	count(v) > 0
	every x in v {
		is_whole(x)
	}
}

is_simple("versions", v) if {
	is_object(v)
	count(v) > 0
	every x in v {
		is_string(x)
		regex.match(`^[0-9]+([.+][0-9]+)*$`, x)
	}
}

is_bit(v) if v == true

is_bit(v) if v == false

is_bit(v) if v == "any"

is_simple("any", _)

is_simple("text", v) if is_text(v)

is_simple("texts", v) if {
	is_list(v)
	count(v) > 0
	every x in v {
		is_text(x)
	}
}

is_simple("exceptions", v) if {
	is_list(v)
	every x in v {
		is_text(x)
	}
}

is_simple("number", v) if is_whole(v)

is_simple("numbers", v) if {
	is_list(v)
	count(v) > 0
	every x in v {
		is_whole(x)
	}
}

is_simple("floors", v) if {
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

is_simple("values", v) if {
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

is_simple("time", v) if {
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
