package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
)

// ParseTPM parses a certificate as manufacturers of TPMs leave it in a TPM or in
// a file: behind the header of the TCG's PC Client specification, padded to the
// size of its place, and with lengths, integers and booleans that are valid BER
// but not DER. Such an encoding has one meaning. It is parsed from its DER form;
// what is verified is what the manufacturer signed, the bytes as they came.
func ParseTPM(b []byte, kinds ...Kind) (*x509.Certificate, error) {
	sent := unpadded(b)
	c, err := Parse(sent, kinds...)
	if err == nil {
		return c, nil
	}
	if len(sent) > MaxSize {
		return nil, err
	}
	der, derErr := minimal(sent, 0)
	outer, _, outerErr := readTLV(sent)
	if derErr != nil || outerErr != nil || bytes.Equal(der, sent) {
		return nil, err
	}
	tbs, _, tbsErr := readTLV(outer.content)
	if c, err = Parse(der, kinds...); err != nil || tbsErr != nil {
		return nil, errors.Join(err, tbsErr)
	}
	c.Raw, c.RawTBSCertificate = sent, tbs.raw
	return c, nil
}

// tcgHeader is TCG_PCCLIENT_STORED_CERT: tag 0x1001, full certificate, its size, tag 0x1002.
const tcgHeader = 7

// unpadded is the certificate without the header before it and the padding behind it.
func unpadded(b []byte) []byte {
	if len(b) > tcgHeader && b[0] == 0x10 && b[1] == 0x01 && b[5] == 0x10 && b[6] == 0x02 {
		if size := int(binary.BigEndian.Uint16(b[3:])); size >= 2 && size-2 <= len(b)-tcgHeader {
			b = b[tcgHeader : tcgHeader+size-2]
		}
	}
	if _, rest, err := readTLV(b); err == nil && len(bytes.Trim(rest, "\x00\xff")) == 0 {
		return b[:len(b)-len(rest)]
	}
	return b
}

// tlv is an element of BER.
type tlv struct {
	tag     byte
	content []byte
	raw     []byte // with tag and length
}

var errBER = errors.New("not an element of definite length with a tag of one byte")

// readTLV reads the first element of b.
func readTLV(b []byte) (e tlv, rest []byte, err error) {
	if len(b) < 2 || b[0]&0x1f == 0x1f || b[1] == 0x80 {
		return e, nil, errBER
	}
	size, head := int(b[1]), 2
	if b[1] > 0x80 {
		n := int(b[1] & 0x7f)
		if n > 8 || len(b) < 2+n {
			return e, nil, errBER
		}
		size, head = 0, 2+n
		for _, d := range b[2:head] {
			if size = size<<8 | int(d); size > len(b) {
				return e, nil, errBER
			}
		}
	}
	if size > len(b)-head {
		return e, nil, errBER
	}
	return tlv{b[0], b[head : head+size], b[:head+size]}, b[head+size:], nil
}

const maxDepth = 16

// minimal writes elements again as DER has them.
func minimal(b []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, errors.New("nested too deeply")
	}
	var out []byte
	for len(b) > 0 {
		e, rest, err := readTLV(b)
		if err != nil {
			return nil, err
		}
		content, err := e.minimal(depth)
		if err != nil {
			return nil, err
		}
		out, b = append(appendLength(append(out, e.tag), len(content)), content...), rest
	}
	return out, nil
}

func (e tlv) minimal(depth int) ([]byte, error) {
	c := e.content
	switch {
	case e.tag&0x20 != 0:
		return minimal(c, depth+1)
	case e.tag == 0x01 && len(c) == 1 && c[0] != 0: // BOOLEAN
		return []byte{0xff}, nil
	case e.tag == 0x02: // INTEGER
		for len(c) > 1 && c[0] == 0 && c[1] < 0x80 {
			c = c[1:]
		}
	case e.tag == 0x03 && len(c) > 1 && c[0] == 0: // BIT STRING: a key may be in it
		return append([]byte{0}, within(c[1:], depth)...), nil
	case e.tag == 0x04: // OCTET STRING: an extension may be in it
		return within(c, depth), nil
	}
	return c, nil
}

// within is a string that holds one SEQUENCE, as DER has that; any other as it is.
func within(b []byte, depth int) []byte {
	if e, rest, err := readTLV(b); err == nil && len(rest) == 0 && e.tag == 0x30 {
		if out, err := minimal(b, depth+1); err == nil {
			return out
		}
	}
	return b
}

func appendLength(out []byte, n int) []byte {
	switch {
	case n < 0x80:
		return append(out, byte(n))
	case n < 0x100:
		return append(out, 0x81, byte(n))
	default: // bounded by MaxSize
		return append(out, 0x82, byte(n>>8), byte(n))
	}
}
