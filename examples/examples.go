// Package examples carries the example policies into `claviger dev` and `claviger policy init`.
package examples

import "embed"

// Policies holds policies/… as it stands in the repository.
//
//go:embed all:policies
var Policies embed.FS
