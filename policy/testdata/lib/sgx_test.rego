package sgx_test

import data.claviger.lib.sgx

good := {"attestation": {
	"type": "sgx", "tcb": {"status": "SWHardeningNeeded", "advisories": ["INTEL-SA-00615"]},
	"sgx": {
		"mrsigner": "aa", "isvprodid": 1, "isvsvn": 3, "configid": "cc",
		"attributes": {"init": true, "debug": false, "provisionkey": false, "kss": true},
		"platform_tcb": {"tcb_status": "SWHardeningNeeded"}, "qe_tcb": {"tcb_status": "UpToDate"},
	},
}}

edit(path, value) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value}])

drop(path) := json.patch(good, [{"op": "remove", "path": concat("/", ["attestation", path])}])

rules(denials) := {r.rule | some r in denials}

accepted := {"UpToDate", "SWHardeningNeeded"}

test_good if {
	d := union({
		sgx.identity_denials({"aa", "bb"}, 1, 3), sgx.identity_denials({"aa"}, 1, 0), sgx.attribute_denials, sgx.config_denials({"cc"}),
		sgx.tcb_status_denials(accepted), sgx.advisory_denials({"INTEL-SA-00615"}),
	}) with input as good
	d == set()
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "sgx"}}] {
		d := [
			sgx.identity_denials({"aa"}, 1, 3), sgx.attribute_denials, sgx.config_denials({"cc"}),
			sgx.tcb_status_denials(accepted), sgx.advisory_denials(set()),
		] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_identity if {
	rules(sgx.identity_denials({"aa"}, 1, 3)) == {"mrsigner_unknown"} with input as edit("sgx/mrsigner", "bb")
	rules(sgx.identity_denials({"aa"}, 1, 3)) == {"isvprodid"} with input as edit("sgx/isvprodid", 2)
	rules(sgx.identity_denials({"aa"}, 1, 3)) == {"isvsvn"} with input as edit("sgx/isvsvn", 2)
	rules(sgx.identity_denials({"aa"}, 1, 3)) == {"isvsvn"} with input as edit("sgx/isvsvn", "9")
	rules(sgx.identity_denials({"aa"}, 1, 0)) == {"isvsvn"} with input as drop("sgx/isvsvn")
	rules(sgx.identity_denials({"aa"}, 0, 0)) == {"isvprodid"} with input as drop("sgx/isvprodid")
	rules(sgx.identity_denials(set(), 1, 3)) == {"mrsigner_unknown"} with input as good
}

test_attributes if {
	rules(sgx.attribute_denials) == {"attributes_debug"} with input as edit("sgx/attributes/debug", true)
	rules(sgx.attribute_denials) == {"attributes_init"} with input as edit("sgx/attributes/init", false)
	rules(sgx.attribute_denials) == {"attributes_provisionkey"} with input as edit("sgx/attributes/provisionkey", true)
	rules(sgx.attribute_denials) == {"attributes_provisionkey"} with input as drop("sgx/attributes/provisionkey")
}

test_config if {
	rules(sgx.config_denials({"dd"})) == {"configid_unknown"} with input as good
	rules(sgx.config_denials({"cc"})) == {"configid_unknown"} with input as edit("sgx/attributes/kss", false)
}

test_status if {
	every path in ["tcb/status", "sgx/platform_tcb/tcb_status", "sgx/qe_tcb/tcb_status"] {
		rules(sgx.tcb_status_denials(accepted)) == {"tcb_status"} with input as edit(path, "OutOfDate")
	}
	sgx.tcb_status_denials({"UpToDate", "SWHardeningNeeded"}) == set() with input as drop("sgx/qe_tcb")
}

test_advisories if {
	rules(sgx.advisory_denials(set())) == {"tcb_advisory"} with input as good
	rules(sgx.advisory_denials(set())) == {"tcb_advisory"} with input as drop("tcb/advisories")
	rules(sgx.advisory_denials(set())) == {"tcb_advisory"} with input as edit("tcb/advisories", "INTEL-SA-00615")
}
