package azure_test

import data.claviger.lib.azure

doc := {
	"attestation": {
		"type": "azure-vtpm", "measurements": {"measurement": "aa", "pcr4": "44"},
		"azure_vtpm": {"hardware": "sev-snp", "user_data_bound": true, "vm_configuration": {"secure_boot": true, "vm_unique_id": "vm-1"}},
	},
	"resource": {"params": {"vm": "vm-1"}},
}

edit(path, value) := json.patch(doc, [{"op": "add", "path": path, "value": value}])

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := union({azure.paravisor_denials({"aa"}), azure.secure_boot_denials, azure.fresh_report_denials, azure.own_denials("vm")}) with input as doc
	d == set()
}

test_no_claims if {
	every d in [{}, {"attestation": {}}, {"attestation": {"type": "azure-vtpm"}}] {
		sets := [azure.paravisor_denials({"aa"}), azure.secure_boot_denials, azure.fresh_report_denials, azure.own_denials("vm")] with input as d
		every s in sets {
			count(s) == 1
		}
	}
}

test_paravisor if {
	rules(azure.paravisor_denials({"bb"})) == {"paravisor_unknown"} with input as doc
	rules(azure.paravisor_denials({"aa"})) == {"paravisor_unknown"} with input as edit("/attestation/azure_vtpm/hardware", "tdx")
	rules(azure.paravisor_denials({"aa"})) == {"paravisor_unknown"} with input as edit("/attestation/azure_vtpm/hardware", "vbs")
	tdx := json.patch(doc, [
		{"op": "add", "path": "/attestation/azure_vtpm/hardware", "value": "tdx"},
		{"op": "add", "path": "/attestation/measurements/mrtd", "value": "cc"},
	])
	azure.paravisor_denials({"cc"}) == set() with input as tdx
	rules(azure.paravisor_denials({"aa"})) == {"paravisor_unknown"} with input as tdx
}

test_settings if {
	rules(azure.secure_boot_denials) == {"secure_boot"} with input as edit("/attestation/azure_vtpm/vm_configuration/secure_boot", false)
	rules(azure.fresh_report_denials) == {"user_data_not_bound"} with input as edit("/attestation/azure_vtpm/user_data_bound", false)
}

test_own if {
	rules(azure.own_denials("vm")) == {"not_own_resource"} with input as edit("/resource/params/vm", "vm-2")
	rules(azure.own_denials("vm")) == {"not_own_resource"} with input as edit("/attestation/azure_vtpm/vm_configuration/vm_unique_id", "")
	rules(azure.own_denials("other")) == {"not_own_resource"} with input as doc
}
