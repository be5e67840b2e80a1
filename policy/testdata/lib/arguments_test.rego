package arguments_test

import data.claviger.lib.arguments

good := [
	["any", null], ["text", "a"], ["texts", {"a"}], ["texts", ["a", "b"]], ["exceptions", set()], ["exceptions", ["a"]], ["number", 0],
	["numbers", [0, 7]], ["floors", {"Milan": {"snp": 8}}], ["values", {"8": {"a", 1}}], ["time", "2026-01-01T00:00:00Z"],
]

bad := [
	["text", ""], ["text", 1], ["texts", set()], ["texts", "a"], ["texts", [1]], ["exceptions", {1}], ["exceptions", null], ["number", null],
	["number", -1], ["number", 1.5], ["numbers", []], ["numbers", ["a"]], ["numbers", 9], ["floors", {}], ["floors", {"Milan": {}}],
	["floors", {"Milan": {"snp": null}}], ["floors", {"Milan": 1}], ["floors", null], ["values", {"8": []}], ["values", {"8": [null]}], ["values", {"8": "a"}], ["values", {}],
	["values", 1], ["time", "2026-01-01"], ["time", 9],
]

test_good if {
	every x in good {
		arguments.wrong([["f", 1, x[0], [x[1]]]]) == set()
	}
}

test_bad if {
	every x in bad {
		{r.rule | some r in arguments.wrong([["f", 1, x[0], [x[1]]]])} == {"argument"}
	}
}

test_undefined if {
	{r.message | some r in arguments.wrong([["f", 2, "text", []]])} == {"f: argument 2 is not a text"}
	{r.got | some r in arguments.wrong([["f", 2, "text", []]])} == {"undefined"}
}

test_nothing if {
	{r.message | some r in arguments.wrong([["data.p.f", 0, "any", []]])} == {"data.p.f gives nothing"}
}

test_several if {
	arguments.wrong([["f", 1, "text", ["a", "b"]], ["f", 2, "number", [1]]]) == set()
	count(arguments.wrong([["f", 1, "text", ["a", ""]], ["f", 2, "number", [null]]])) == 2
}
