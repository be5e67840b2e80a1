package gce

import (
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"testing"
)

// TestSecurityHasOneReading: each field once, and nothing behind it.
func TestSecurityHasOneReading(t *testing.T) {
	for name, c := range map[string]struct {
		der string
		ok  bool
	}{
		"both":                       {"a00c 300a a003020107 a1030101ff", true},
		"one more, unknown":          {"a011 300f a003020107 a1030101ff a203020101", true},
		"production twice":           {"a011 300f a003020107 a103010100 a1030101ff", false},
		"a second value in a field":  {"a00f 300d a003020107 a106010100 0101ff", false},
		"bytes behind the fields":    {"a00e 300a a003020107 a1030101ff 0500", false},
		"a field without its number": {"a00c 300a a003020107 02030101ff", false},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(c.der, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		var v asn1.RawValue
		if _, err := asn1.Unmarshal(b, &v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		version, production, err := security(v)
		if (err == nil) != c.ok || c.ok && (version != 7 || !production) {
			t.Errorf("%s: version %d, production %t, %v", name, version, production, err)
		}
	}
}
