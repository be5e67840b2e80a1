package cose

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestOneReading: CBOR that two readers could understand differently, as claims are read.
func TestOneReading(t *testing.T) {
	type claims struct {
		Nonce Bytes          `cbor:"10,keyasint,omitempty"`
		Sub   map[string]any `cbor:"20,keyasint,omitempty"`
		Name  string         `cbor:"name,omitempty"`
		Any   any            `cbor:"21,keyasint,omitempty"`
	}
	for name, doc := range map[string]string{
		"label twice":                            "a2 0a 41 01 0a 41 02",
		"label twice, one not minimal":           "a2 0a 41 01 180a 41 02",
		"label twice, 64 bits":                   "a2 0a 41 01 1b000000000000000a 41 02",
		"unknown label twice":                    "a2 1863 01 1863 02",
		"unknown label twice, not minimal":       "a2 1863 01 190063 02",
		"unknown name twice":                     "a2 6178 01 6178 02",
		"name twice":                             "a2 646e616d65 6161 646e616d65 6162",
		"name as a byte string":                  "a1 446e616d65 6161",
		"inner name twice":                       "a1 14 a2 6161 01 6161 02",
		"name twice where nobody looks":          "a1 1863 a2 01 01 01 02",
		"name twice in any":                      "a1 15 a2 01 01 1801 02",
		"a float for a label":                    "a2 0a 41 01 f94900 41 02",
		"a float for a label where nobody looks": "a1 1863 a1 f94900 01",
		"a label that is null":                   "a1 f6 01",
		"a label that is true":                   "a1 f5 01",
		"invalid UTF-8":                          "a1 646e616d65 61ff",
		"invalid UTF-8 in a name":                "a1 61ff 01",
		"invalid UTF-8 where nobody looks":       "a1 1863 61ff",
		"trailing byte":                          "a1 0a 41 01 00",
		"two items":                              "a0 a0",
		"indefinite map":                         "bf 0a 41 01 ff",
		"indefinite bytes":                       "a1 0a 5f 41 01 ff",
		"indefinite text":                        "a1 646e616d65 7f 6161 ff",
		"tag":                                    "a1 0a c2 41 01",
		"tag on the whole":                       "d9d9f7 a0",
		"bytes as an array":                      "a1 0a 82 01 02",
		"bytes as text":                          "a1 0a 6161",
		"null for bytes":                         "a1 0a f6",
		"an array":                               "80",
		"cut short":                              "a2 0a 41 01",
		"deep":                                   "a1 15 81 81 81 81 81 81 81 81 00",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(doc, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var c claims
		if err := Unmarshal(b, &c); err == nil {
			t.Errorf("%s: read as %+v", name, c)
		}
	}
	for name, doc := range map[string]string{
		"all":           "a4 0a 41 01 14 a1 6161 01 646e616d65 6161 15 82 f6 f5",
		"unknown label": "a2 0a 41 01 1863 a1 20 81 01",
		"another name":  "a1 644e616d65 6162",
		"and the right": "a2 646e616d65 6161 644e616d65 6162",
		"no order":      "a2 14 a0 0a 41 01",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(doc, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var c claims
		if err := Unmarshal(b, &c); err != nil || c.Name != "" && c.Name != "a" {
			t.Errorf("%s: read as %+v, %v", name, c, err)
		}
	}
}
