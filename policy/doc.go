// Package policy decides releases with Rego (DESIGN §5). It is the only
// importer of OPA, whose parts it drives directly: OPA's SDK was seen to
// evaluate http.send although the configured capabilities forbade it.
//
// A policy is a package claviger.release.<name> in an OPA bundle. The Engine
// loads bundles from a folder, keeps the last good ones, and answers Decide
// from an immutable snapshot, so that a decision sees one bundle and one set of
// reference values from beginning to end. README.md is for policy authors.
//
// The package verifies no evidence and keeps no state beyond memory. OPA has
// no memory limit: whoever lets strangers write policies needs a process of its own for them.
package policy
