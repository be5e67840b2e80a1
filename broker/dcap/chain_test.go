package dcap

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
)

type item struct {
	ID    asn1.ObjectIdentifier
	Value any
}

func oid(arcs ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, arcs...)
}

func tcbItems() []item {
	var tcb []item
	for i := range 16 {
		tcb = append(tcb, item{oid(2, i+1), i})
	}
	return append(tcb, item{oid(2, 17), 0x1234}, item{oid(2, 18), make([]byte, 16)})
}

func extItems(tcb []item) []item {
	return []item{
		{oid(1), make([]byte, 16)}, {oid(2), tcb}, {oid(3), []byte{0, 7}}, {oid(4), []byte{1, 2, 3, 4, 5, 6}}, {oid(5), asn1.Enumerated(1)},
		{oid(6), make([]byte, 16)}, {oid(7), []item{{oid(7, 1), true}, {oid(7, 2), false}, {oid(7, 3), true}}},
	}
}

func parseExt(t testing.TB, items any) (PCK, error) {
	t.Helper()
	der, err := asn1.Marshal(items)
	if err != nil {
		t.Fatal(err)
	}
	var p PCK
	return p, p.parse(&x509.Certificate{Extensions: []pkix.Extension{{Id: oid(), Value: der}}})
}

// TestIntelPEM: what is compiled in is the pinned root, and the CAs below it.
func TestIntelPEM(t *testing.T) {
	v := New(Config{})
	if simulated, err := v.checkRoot(v.intel[0]); err != nil || simulated || len(v.intel) != 3 {
		t.Fatalf("%d certificates, the first: %v", len(v.intel), err)
	}
	for i, role := range []string{cnPlatformCA, cnProcessorCA} {
		ca := v.intel[i+1]
		if err := checkIssued(ca, v.intel[0]); err != nil || !hasRole(ca, role) {
			t.Errorf("%q, want %q: %v", ca.Subject, role, err)
		}
	}
}

func TestPCKExtension(t *testing.T) {
	der, err := asn1.Marshal(extItems(tcbItems()))
	if err != nil {
		t.Fatal(err)
	}
	var p PCK
	if err := p.parse(&x509.Certificate{Extensions: []pkix.Extension{{Id: oid(), Value: der}}}); err != nil {
		t.Fatal(err)
	}
	if p.PCESVN != 0x1234 || p.Components[15] != 15 || p.PCEID != [2]byte{0, 7} || p.FMSPC != [6]byte{1, 2, 3, 4, 5, 6} || p.SGXType != 1 ||
		p.Platform == nil || !p.Platform.DynamicPlatform || p.Platform.CachedKeys || !p.Platform.SMTEnabled {
		t.Errorf("%+v", p)
	}
	set := func(items []item, i int, v any) []item {
		items[i].Value = v
		return items
	}
	for name, items := range map[string][]item{
		"FMSPC twice":           append(extItems(tcbItems()), item{oid(4), make([]byte, 6)}),
		"component twice":       extItems(append(tcbItems(), item{oid(2, 1), 99})),
		"PCESVN twice":          extItems(append(tcbItems(), item{oid(2, 17), 99})),
		"component missing":     extItems(tcbItems()[1:]),
		"component of 256":      extItems(set(tcbItems(), 3, 256)),
		"negative component":    extItems(set(tcbItems(), 3, -1)),
		"component a string":    extItems(set(tcbItems(), 3, "1")),
		"PCESVN of 65536":       extItems(set(tcbItems(), 16, 65536)),
		"CPUSVN of 15 bytes":    extItems(set(tcbItems(), 17, make([]byte, 15))),
		"FMSPC of 7 bytes":      set(extItems(tcbItems()), 3, make([]byte, 7)),
		"no FMSPC":              append(extItems(tcbItems())[:3], extItems(tcbItems())[4:]...),
		"no TCB":                append(extItems(tcbItems())[:1], extItems(tcbItems())[2:]...),
		"type an integer":       set(extItems(tcbItems()), 4, 1),
		"flag an integer":       set(extItems(tcbItems()), 6, []item{{oid(7, 1), 1}}),
		"instance id of 1 byte": set(extItems(tcbItems()), 5, []byte{1}),
		"identifier elsewhere":  append(extItems(tcbItems()), item{asn1.ObjectIdentifier{1, 2, 3}, 1}),
		"identifier deeper":     append(extItems(tcbItems()), item{oid(8, 1), 1}),
		"empty":                 {},
	} {
		if _, err := parseExt(t, items); err == nil || ReasonOf(err) != attest.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := p.parse(&x509.Certificate{}); err == nil {
		t.Error("a certificate without the extension parses")
	}
	for n := range der {
		if err := p.parse(&x509.Certificate{Extensions: []pkix.Extension{{Id: oid(), Value: der[:n]}}}); err == nil {
			t.Errorf("extension cut at %d parses", n)
		}
	}
}

func TestParseChain(t *testing.T) {
	for name, in := range map[string]string{
		"too long":     strings.Repeat("\n", maxChain+1),
		"junk":         "junk",
		"junk before":  "x\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"another type": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"not a cert":   "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		if _, err := parseChain([]byte(in)); ReasonOf(err) != attest.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzPCKExtension(f *testing.F) {
	der, err := asn1.Marshal(extItems(tcbItems()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		var p PCK
		if err := p.parse(&x509.Certificate{Extensions: []pkix.Extension{{Id: oid(), Value: der}}}); err != nil && ReasonOf(err) != attest.ReasonMalformed {
			t.Fatalf("reason of %v", err)
		}
	})
}
