package cose

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Limits on what a token may hold. CCA platforms list some twenty components of six members each.
const (
	maxNesting = 6
	maxItems   = 64
)

// decMode takes each label once and as it is written, and no tags: with two
// members of one label, what we read need not be what another reader sees.
func decMode(lengths cbor.IndefLengthMode) cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		IndefLength:       lengths,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   maxNesting,
		MaxArrayElements:  maxItems,
		MaxMapPairs:       maxItems,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constant
	}
	return m
}

var (
	definite  = decMode(cbor.IndefLengthForbidden)
	anyLength = decMode(cbor.IndefLengthAllowed)
)

// Unmarshal reads one CBOR item, and nothing but it, strictly: no label twice,
// no indefinite lengths, no tags, no text that is not UTF-8, and no labels but
// integers and text. Labels that v does not name are passed over, as RFC 8392
// wants it of claims, but what they hold is checked all the same: another reader looks there.
func Unmarshal(b []byte, v any) error { return unmarshal(definite, b, v) }

// UnmarshalAnyLength is Unmarshal for formats whose genuine documents have indefinite lengths, such as AWS Nitro's.
func UnmarshalAnyLength(b []byte, v any) error { return unmarshal(anyLength, b, v) }

func unmarshal(mode cbor.DecMode, b []byte, v any) error {
	var whole any
	if err := mode.Unmarshal(b, &whole); err != nil {
		return err
	}
	if err := checkLabels(whole); err != nil {
		return err
	}
	return mode.Unmarshal(b, v)
}

// checkLabels refuses labels that some readers take for others, as 1.0 for 1.
func checkLabels(item any) error {
	switch item := item.(type) {
	case []any:
		for i, x := range item {
			if err := checkLabels(x); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
	case map[any]any:
		for label, x := range item {
			switch label.(type) {
			case uint64, int64, string:
			default:
				return fmt.Errorf("the label %v is a %T, neither an integer nor text", label, label)
			}
			if err := checkLabels(x); err != nil {
				return fmt.Errorf("%v: %w", label, err)
			}
		}
	}
	return nil
}

// Bytes is a byte string. Unlike []byte it does not take an array of numbers for one.
type Bytes []byte

// UnmarshalCBOR implements cbor.Unmarshaler. Null is no byte string.
func (b *Bytes) UnmarshalCBOR(item []byte) error {
	const majorType = 2
	if len(item) == 0 || item[0]>>5 != majorType {
		return errors.New("not a byte string")
	}
	return anyLength.Unmarshal(item, (*[]byte)(b)) // Unmarshal has checked its length
}
