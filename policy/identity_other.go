//go:build !linux

package policy

import "io/fs"

// identity is nothing: outside Linux, names, sizes and times have to do.
func identity(fs.FileInfo) []byte { return nil }
