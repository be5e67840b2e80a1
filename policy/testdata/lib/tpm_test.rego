package tpm_test

import data.claviger.lib.tpm

doc := {
	"attestation": {
		"type": "tpm", "bound": true, "debuggable": false, "migratable": false, "simulated": false, "bound_to_cpu_tee": false, "chip_id": "aa",
		"collateral": {"state": "fresh"}, "tcb": {"status": "Unknown"},
		"tpm": {"ak": {"trust": "ek_activation"}, "event_log": "verified", "pcrs": {"4": "44", "15": tpm.closed_door_never}, "boot": {"secure_boot": "on"}},
	},
	"resource": {"params": {"chip": "aa"}},
}

edit(path, value) := json.patch(doc, [{"op": "add", "path": path, "value": value}])

rules(reasons) := {r.rule | some r in reasons}

test_alone if {
	tpm.alone_denials == set() with input as doc
	rules(tpm.alone_denials) == {"not_bound"} with input as edit("/attestation/bound", false)
	rules(tpm.alone_denials) == {"evidence_type"} with input as edit("/attestation/type", "tdx")
	count(tpm.alone_denials) > 3 with input as {}
}

test_log if {
	tpm.log_denials([4]) == set() with input as doc
	tpm.log_denials([4]) == set() with input as edit("/attestation/tpm/event_log", "partial")
	rules(tpm.log_denials([4])) == {"pcr_unexplained"} with input as edit("/attestation/tpm/event_log", "absent")
	rules(tpm.log_denials([4])) == {"pcr_unexplained"} with input as edit("/attestation/tpm/pcrs_unexplained", ["pcr4"])
	rules(tpm.log_denials([5])) == {"pcr_unexplained"} with input as doc
	rules(tpm.log_denials([4])) == {"pcr_unexplained"} with input as {}
}

test_secure_boot if {
	tpm.secure_boot_denials == set() with input as doc
	rules(tpm.secure_boot_denials) == {"secure_boot"} with input as edit("/attestation/tpm/boot/secure_boot", "off")
	rules(tpm.secure_boot_denials) == {"secure_boot"} with input as {}
}

test_door if {
	tpm.door_denials(15) == set() with input as doc
	rules(tpm.door_denials(15)) == {"door_closed"} with input as edit("/attestation/tpm/pcrs/15", "11")
	rules(tpm.door_denials(14)) == {"door_closed"} with input as doc
}

test_ak if {
	tpm.ak_denials == set() with input as doc
	rules(tpm.ak_denials) == {"ak_untrusted"} with input as edit("/attestation/tpm/ak/trust", "none")
	rules(tpm.ak_denials) == {"ak_untrusted"} with input as {}
}

test_own if {
	tpm.own_denials("chip") == set() with input as doc
	rules(tpm.own_denials("chip")) == {"not_own_resource"} with input as edit("/resource/params/chip", "bb")
	rules(tpm.own_denials("chip")) == {"not_own_resource"} with input as edit("/attestation/chip_id", "")
	rules(tpm.own_denials("vm")) == {"not_own_resource"} with input as doc
}
