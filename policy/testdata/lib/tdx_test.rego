package tdx_test

import data.claviger.lib.tdx

good := {"attestation": {
	"type": "tdx", "tcb": {"status": "UpToDate", "advisories": [], "date": "2024-03-13T00:00:00Z"},
	"tdx": {
		"mrseam": "aa", "mrconfigid": "bb", "mrowner": "cc", "mrownerconfig": "dd", "tdattributes": {"debug": false, "sept_ve_disable": true},
		"platform_tcb": {"tcb_status": "UpToDate"}, "tdx_module_tcb": {"tcb_status": "UpToDate"}, "qe_tcb": {"tcb_status": "UpToDate"},
	},
}}

edit(path, value) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value}])

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({
		tdx.tcb_status_denials({"UpToDate"}), tdx.advisory_denials(set()), tdx.tcb_date_denials("2024-03-13T00:00:00Z"),
		tdx.attribute_denials, tdx.module_denials({"aa"}), tdx.owner_denials("mrconfigid", {"bb"}), tdx.owner_denials("mrowner", {"cc"}),
	}) with input as good
	d == set()
}

test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "tdx"}}] {
		d := [
			tdx.tcb_status_denials({"UpToDate"}), tdx.advisory_denials(set()), tdx.tcb_date_denials("2024-03-13T00:00:00Z"),
			tdx.attribute_denials, tdx.module_denials({"aa"}), tdx.owner_denials("mrowner", {"cc"}),
		] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_status if {
	every path in ["tcb/status", "tdx/platform_tcb/tcb_status", "tdx/tdx_module_tcb/tcb_status", "tdx/qe_tcb/tcb_status"] {
		rules(tdx.tcb_status_denials({"UpToDate"})) == {"tcb_status"} with input as edit(path, "OutOfDate")
		tdx.tcb_status_denials({"UpToDate", "OutOfDate"}) == set() with input as edit(path, "OutOfDate")
	}
	rules(tdx.tcb_status_denials({"UpToDate"})) == {"claims_missing"} with input as json.remove(good, ["attestation/tdx"])
	rules(tdx.tcb_status_denials({"UpToDate"})) == {"tcb_status"} with input as json.remove(good, ["attestation/tcb/status"])
	rules(tdx.tcb_status_denials({"UpToDate"})) == {"tcb_status"} with input as json.remove(good, ["attestation/tdx/qe_tcb/tcb_status"])
	tdx.tcb_status_denials({"UpToDate"}) == set() with input as json.remove(good, ["attestation/tdx/qe_tcb"])
}

test_advisories if {
	doc := edit("tcb/advisories", ["INTEL-SA-00001", "INTEL-SA-00002"])
	d := tdx.advisory_denials({"INTEL-SA-00001"}) with input as doc
	{r.got | some r in d} == {"INTEL-SA-00002"}
	tdx.advisory_denials({"INTEL-SA-00001", "INTEL-SA-00002"}) == set() with input as doc
	tdx.advisory_denials(set()) == set() with input as edit("tcb/advisories", null)
	rules(tdx.advisory_denials(set())) == {"tcb_advisory"} with input as edit("tcb/advisories", "x")
}

test_date if {
	rules(tdx.tcb_date_denials("2024-03-13T00:00:01Z")) == {"tcb_date"} with input as good
	rules(tdx.tcb_date_denials("2024-03-13T00:00:00Z")) == {"tcb_date"} with input as edit("tcb/date", null)
	tdx.tcb_date_denials("2024-03-13T00:00:00Z") == set() with input as edit("tcb/date", "2024-03-13T02:00:00+02:00")
}

test_attributes if {
	rules(tdx.attribute_denials) == {"tdattributes_debug"} with input as edit("tdx/tdattributes/debug", true)
	rules(tdx.attribute_denials) == {"tdattributes_sept_ve_disable"} with input as edit("tdx/tdattributes/sept_ve_disable", false)
}

test_module_and_owner if {
	rules(tdx.module_denials({"bb"})) == {"mrseam_unknown"} with input as good
	rules(tdx.owner_denials("mrconfigid", {"xx"})) == {"mrconfigid_unknown"} with input as good
	rules(tdx.owner_denials("mrtd", {"xx"})) == {"mrtd_unknown"} with input as good
}
