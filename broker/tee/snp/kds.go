package snp

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"
)

// oidKDS is the arc of the extensions in VCEK and VLEK certificates (AMD
// publication 57230, §3.1). Below it: 2 product name, 3.x security patch
// levels, 4 HWID, 5 CSP_ID.
var oidKDS = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

const (
	hwidSize      = 64
	turinHWIDSize = 8
	maxNameSize   = 256
)

// splOrder lists the arcs below oidKDS.3 in the byte order of TCB_VERSION:
// 1 boot loader, 2 TEE, 3 SNP, 4 to 7 reserved, 8 microcode, 9 FMC (Turin).
func splOrder(l line) [8]int {
	if l == turin {
		return [8]int{9, 1, 2, 3, 5, 6, 7, 8}
	}
	return [8]int{1, 2, 4, 5, 6, 7, 3, 8}
}

// kdsExtensions say whose key a certificate holds, and at which firmware level.
type kdsExtensions struct {
	line        line
	productName string
	tcb         [8]byte // as TCB_VERSION
	hwid        []byte  // 64 bytes, Turin 8; empty in a VLEK
	cspID       string  // empty in a VCEK
}

func parseKDSExtensions(c *x509.Certificate) (kdsExtensions, error) {
	var k kdsExtensions
	spl := map[int]uint8{}
	for _, e := range c.Extensions { // x509 refuses duplicates
		if len(e.Id) <= len(oidKDS) || !e.Id[:len(oidKDS)].Equal(oidKDS) {
			continue
		}
		var err error
		switch arc := e.Id[len(oidKDS):]; {
		case len(arc) == 1 && arc[0] == 1: // version of the structure
		case len(arc) == 1 && arc[0] == 2:
			k.productName, err = ia5(e.Value)
		case len(arc) == 1 && arc[0] == 4:
			k.hwid, err = octets(e.Value)
		case len(arc) == 1 && arc[0] == 5:
			k.cspID, err = ia5(e.Value)
		case len(arc) == 2 && arc[0] == 3:
			spl[arc[1]], err = uint8DER(e.Value)
		default:
			// It may narrow what the certificate vouches for.
			err = fmt.Errorf("unknown extension")
		}
		if err != nil {
			return kdsExtensions{}, fmt.Errorf("extension %s: %w", e.Id, err)
		}
	}
	name, _, _ := strings.Cut(k.productName, "-") // "Milan-B0": line, stepping
	for _, l := range []line{milan, genoa, turin} {
		if l.name() == name {
			k.line = l
		}
	}
	if k.line == "" {
		return kdsExtensions{}, fmt.Errorf("unknown product name %q", k.productName)
	}
	// Each level must be there, and none besides: a component left out of the
	// comparison would be a component that nobody vouches for.
	for i, arc := range splOrder(k.line) {
		v, ok := spl[arc]
		if !ok {
			return kdsExtensions{}, fmt.Errorf("no security patch level %d", arc)
		}
		k.tcb[i] = v
	}
	if len(spl) != len(k.tcb) {
		return kdsExtensions{}, fmt.Errorf("%d security patch levels, want %d", len(spl), len(k.tcb))
	}
	return k, nil
}

func ia5(der []byte) (string, error) {
	var s string
	rest, err := asn1.Unmarshal(der, &s)
	if err != nil {
		return "", err
	}
	if der[0] != asn1.TagIA5String { // Unmarshal takes any kind of string
		return "", fmt.Errorf("tag %#x is not an IA5String", der[0])
	}
	if len(rest) > 0 || s == "" || len(s) > maxNameSize {
		return "", fmt.Errorf("a string of %d bytes, %d after it", len(s), len(rest))
	}
	return s, nil
}

func uint8DER(der []byte) (uint8, error) {
	var n int
	rest, err := asn1.Unmarshal(der, &n)
	if err != nil {
		return 0, err
	}
	if len(rest) > 0 || n < 0 || n > 255 {
		return 0, fmt.Errorf("level %d is out of range", n)
	}
	return uint8(n), nil
}

// octets takes HWID as older certificates have it, bare, and as newer ones do,
// in a DER OCTET STRING. The lengths tell them apart.
func octets(b []byte) ([]byte, error) {
	switch len(b) {
	case hwidSize, turinHWIDSize:
		return b, nil
	}
	var s []byte
	rest, err := asn1.Unmarshal(b, &s)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 || (len(s) != hwidSize && len(s) != turinHWIDSize) {
		return nil, fmt.Errorf("a hardware id of %d bytes", len(s))
	}
	return s, nil
}
