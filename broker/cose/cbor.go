package cose

import (
	"errors"

	"github.com/fxamacker/cbor/v2"
)

// Limits on what a token may hold. CCA platforms list some twenty components of six members each.
const (
	maxNesting = 6
	maxItems   = 64
)

// decMode takes each label once, in a definite length, and no tags: with two
// members of one label, what we read need not be what another reader sees.
var decMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  maxNesting,
		MaxArrayElements: maxItems,
		MaxMapPairs:      maxItems,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constant
	}
	return m
}()

// Unmarshal reads one CBOR item, and nothing but it, strictly: no label twice,
// no indefinite lengths, no tags. Labels that v does not name are passed over,
// as RFC 8392 wants it of claims.
func Unmarshal(b []byte, v any) error { return decMode.Unmarshal(b, v) }

// Bytes is a byte string. Unlike []byte it does not take an array of numbers for one.
type Bytes []byte

// UnmarshalCBOR implements cbor.Unmarshaler. Null is no byte string.
func (b *Bytes) UnmarshalCBOR(item []byte) error {
	const majorType = 2
	if len(item) == 0 || item[0]>>5 != majorType {
		return errors.New("not a byte string")
	}
	return decMode.Unmarshal(item, (*[]byte)(b))
}
