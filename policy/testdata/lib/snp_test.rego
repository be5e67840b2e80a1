package snp_test

import data.claviger.lib.snp

floors := {"Milan": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}}

good := {"attestation": {"type": "sev-snp", "hardware_model": "Milan", "sev_snp": {
	"vmpl": 0, "guest_svn": 2, "signing_key": "VCEK", "id_key_digest": "aa", "author_key_digest": "bb", "author_key_en": true,
	"policy": {"debug": false, "migrate_ma": false, "smt": false, "single_socket": true},
	"reported_tcb": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115, "fmc": 0},
}}}

edit(path, value) := json.patch(good, [{"op": "add", "path": concat("/", ["attestation", path]), "value": value}])

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({
		snp.tcb_denials(floors), snp.vmpl_denials(0), snp.policy_denials, snp.smt_denials, snp.single_socket_denials,
		snp.id_key_denials({"aa"}), snp.author_key_denials({"bb"}), snp.guest_svn_denials(2), snp.signing_key_denials("VCEK"),
	}) with input as good
	d == set()
}

# Without claims every helper has a reason: an absent section is no pass.
test_no_claims if {
	every doc in [{}, {"attestation": {}}, {"attestation": {"type": "sev-snp", "hardware_model": "Milan"}}, {"attestation": {"hardware_model": "Milan", "sev_snp": null}}] {
		d := [
			snp.tcb_denials(floors), snp.vmpl_denials(3), snp.policy_denials, snp.smt_denials, snp.single_socket_denials,
			snp.id_key_denials({"aa"}), snp.author_key_denials({"bb"}), snp.guest_svn_denials(0), snp.signing_key_denials("VCEK"),
		] with input as doc
		every x in d {
			count(x) > 0
		}
	}
}

test_tcb_component_by_component if {
	every c in ["bootloader", "snp", "microcode"] {
		d := snp.tcb_denials(floors) with input as edit(concat("/", ["sev_snp/reported_tcb", c]), floors.Milan[c] - 1)
		{r.claim | some r in d} == {concat(".", ["attestation.sev_snp.reported_tcb", c])}
		rules(d) == {"tcb_floor"}
	}

	# A higher one does not make up for a lower one.
	d := snp.tcb_denials(floors) with input as edit("sev_snp/reported_tcb", {"bootloader": 2, "tee": 9, "snp": 99, "microcode": 255})
	d == {{"rule": "tcb_floor", "message": "bootloader firmware is older than the policy's minimum", "claim": "attestation.sev_snp.reported_tcb.bootloader", "got": 2, "nearest": "3"}}
}

test_tcb_odd_values if {
	every odd in [null, "200", true, [], {}] {
		d := snp.tcb_denials(floors) with input as edit("sev_snp/reported_tcb/snp", odd)
		rules(d) == {"tcb_floor"}
	}
}

test_tcb_model_without_floor if {
	d := snp.tcb_denials(floors) with input as edit("hardware_model", "Turin")
	rules(d) == {"tcb_no_floor"}
	{r.nearest | some r in d} == {"Milan"}
}

test_tcb_missing if {
	every path in ["sev_snp/reported_tcb", "sev_snp/reported_tcb/snp", "hardware_model", "sev_snp"] {
		count(snp.tcb_denials(floors)) > 0 with input as json.remove(good, [concat("/", ["attestation", path])])
	}
	rules(snp.tcb_denials({"Milan": {}})) == {"tcb_floor"} with input as json.remove(good, ["attestation/sev_snp"])
}

test_vmpl if {
	rules(snp.vmpl_denials({0})) == {"vmpl"} with input as good
	every odd in [1, 3, null, "0", false] {
		rules(snp.vmpl_denials(0)) == {"vmpl"} with input as edit("sev_snp/vmpl", odd)
	}
	snp.vmpl_denials(1) == set() with input as edit("sev_snp/vmpl", 1)
}

test_policy_bits if {
	rules(snp.policy_denials) == {"policy_debug"} with input as edit("sev_snp/policy/debug", true)
	rules(snp.policy_denials) == {"policy_migrate_ma"} with input as edit("sev_snp/policy/migrate_ma", true)
	rules(snp.smt_denials) == {"policy_smt"} with input as edit("sev_snp/policy/smt", true)
	rules(snp.single_socket_denials) == {"policy_single_socket"} with input as edit("sev_snp/policy/single_socket", false)
}

test_keys if {
	rules(snp.id_key_denials({"cc"})) == {"id_key_unknown"} with input as good
	rules(snp.author_key_denials({"cc"})) == {"author_key_unknown"} with input as good
	rules(snp.author_key_denials({"bb"})) == {"author_key_unknown"} with input as edit("sev_snp/author_key_en", false)
	rules(snp.signing_key_denials("VCEK")) == {"signing_key"} with input as edit("sev_snp/signing_key", "VLEK")
	rules(snp.guest_svn_denials(3)) == {"guest_svn"} with input as good
}
