package gce_test

import data.claviger.lib.gce

doc := {
	"attestation": {"type": "gce-vtpm", "gce_vtpm": {"hardware": "tdx", "instance": {"project_id": "project-1", "id": "17", "name": "vm"}}},
	"resource": {"params": {"instance": "17"}},
}

edit(path, value) := json.patch(doc, [{"op": "add", "path": path, "value": value}])

rules(denials) := {r.rule | some r in denials}

test_good if {
	d := gce.project_denials({"project-1", "project-2"}) | gce.own_denials("instance") with input as doc
	d == set()
}

test_no_claims if {
	every d in [{}, {"attestation": {}}, {"attestation": {"gce_vtpm": {"hardware": "tdx"}}}] {
		rules(gce.project_denials({"project-1"})) == {"project_unknown"} with input as d
		rules(gce.own_denials("instance")) == {"not_own_resource"} with input as d
	}
}

test_other if {
	rules(gce.project_denials({"project-2"})) == {"project_unknown"} with input as doc
	rules(gce.own_denials("instance")) == {"not_own_resource"} with input as edit("/attestation/gce_vtpm/instance/id", "18")
	rules(gce.own_denials("vm")) == {"not_own_resource"} with input as doc
	rules(gce.own_denials("instance")) == {"not_own_resource"} with input as edit("/attestation/gce_vtpm/instance/id", "")
}
