package broker

import (
	"fmt"
	"strconv"

	"github.com/claviger/claviger/broker/strictjson"
)

// VersionInput is what a workload may send with a resource whose entry says
// Rekey, as JSON with exactly one field: {"version":"3"} for that version in
// place of the newest, {"next_of":"3"} to have version 4 made if the newest is
// 3, else for the newest, so that asking twice makes one. The zero value asks for the newest.
type VersionInput struct {
	Version int
	NextOf  int
}

// ParseVersionInput reads the input of a secret of KindKV. Its error wraps ErrInput.
func ParseVersionInput(e CatalogEntry, input []byte) (VersionInput, error) {
	if len(input) == 0 {
		return VersionInput{}, nil
	}
	if !e.Rekey {
		return VersionInput{}, fmt.Errorf("%w: the catalog entry does not say rekey", ErrInput)
	}
	var m struct {
		Version string `json:"version"`
		NextOf  string `json:"next_of"`
	}
	if err := strictjson.UnmarshalKnown(input, &m); err != nil {
		return VersionInput{}, fmt.Errorf("%w: %w", ErrInput, err)
	}
	if (m.Version == "") == (m.NextOf == "") {
		return VersionInput{}, fmt.Errorf("%w: want version or next_of", ErrInput)
	}
	n, err := strconv.ParseInt(m.Version+m.NextOf, 10, 31)
	if err != nil || n < 1 {
		return VersionInput{}, fmt.Errorf("%w: %q is not a version", ErrInput, m.Version+m.NextOf)
	}
	if m.Version != "" {
		return VersionInput{Version: int(n)}, nil
	}
	return VersionInput{NextOf: int(n)}, nil
}
