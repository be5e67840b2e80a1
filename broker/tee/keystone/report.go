package keystone

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/claviger/claviger/broker/strictjson"
)

// Sizes in bytes (Keystone SDK, include/verifier/Report.hpp; sm/src/enclave.h).
const (
	hashSize      = 64 // SHA3-512
	keySize       = 32
	signatureSize = 64
	maxData       = 1024
	dataOffset    = hashSize + 8
	fixedParts    = dataOffset + signatureSize + hashSize + keySize + signatureSize + keySize // all but the data
	maxJSON       = 8 << 10
)

// report is an attestation report, its numbers little endian:
//
//	0     enclave.hash[64], enclave.data_len u64, enclave.data[1024], enclave.signature[64]
//	1160  sm.hash[64], sm.public_key[32], sm.signature[64]
//	1320  dev_public_key[32]
type report struct {
	enclaveHash      [hashSize]byte
	data             []byte // without what follows data_len
	enclaveSignature [signatureSize]byte
	smHash           [hashSize]byte
	smKey            [keySize]byte
	smSignature      [signatureSize]byte
	deviceKey        [keySize]byte
}

// signedByMonitor is enclave.hash ‖ data_len ‖ data, cut at data_len.
func (r *report) signedByMonitor() []byte {
	b := binary.LittleEndian.AppendUint64(bytes.Clone(r.enclaveHash[:]), uint64(len(r.data)))
	return append(b, r.data...)
}

// signedByDevice is sm.hash ‖ sm.public_key.
func (r *report) signedByDevice() []byte { return append(bytes.Clone(r.smHash[:]), r.smKey[:]...) }

// parse reads a report as the struct (1352 bytes), as the struct without the
// unused part of data, or as the JSON of the SDK.
func parse(b []byte) (*report, error) {
	if bytes.HasPrefix(b, []byte("{")) {
		return parseJSON(b)
	}
	area := len(b) - fixedParts // of data, used or not
	if area < 0 {
		return nil, fmt.Errorf("report of %d bytes", len(b))
	}
	// data_len is not signed yet: upstream's verifier hashes as many bytes as it says.
	n := binary.LittleEndian.Uint64(b[hashSize:])
	if n > maxData || (area != maxData && uint64(area) != n) {
		return nil, fmt.Errorf("report of %d bytes with a data_len of %d", len(b), n)
	}
	r := &report{data: bytes.Clone(b[dataOffset : dataOffset+n])}
	// Nobody signs what stands behind data_len, so nothing may.
	if len(bytes.Trim(b[dataOffset+n:dataOffset+uint64(area)], "\x00")) > 0 {
		return nil, fmt.Errorf("bytes after data_len (%d) that are not zero: nobody signed them", n)
	}
	copy(r.enclaveHash[:], b)
	b = b[dataOffset+area:]
	for _, f := range [][]byte{r.enclaveSignature[:], r.smHash[:], r.smKey[:], r.smSignature[:], r.deviceKey[:]} {
		b = b[copy(f, b):]
	}
	return r, nil
}

// parseJSON reads what the SDK's Report::stringfy prints; byte strings are hex.
func parseJSON(b []byte) (*report, error) {
	var doc struct {
		DeviceKey       string `json:"device_pubkey"`
		SecurityMonitor struct {
			Hash      string `json:"hash"`
			PublicKey string `json:"pubkey"`
			Signature string `json:"signature"`
		} `json:"security_monitor"`
		Enclave struct {
			Hash       string `json:"hash"`
			DataLength int    `json:"datalen"`
			Data       string `json:"data"`
			Signature  string `json:"signature"`
		} `json:"enclave"`
	}
	if len(b) > maxJSON {
		return nil, fmt.Errorf("JSON of %d bytes", len(b))
	}
	if err := strictjson.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	r := new(report)
	for _, f := range []struct {
		name, text string
		into       []byte
	}{
		{"enclave.hash", doc.Enclave.Hash, r.enclaveHash[:]},
		{"enclave.signature", doc.Enclave.Signature, r.enclaveSignature[:]},
		{"security_monitor.hash", doc.SecurityMonitor.Hash, r.smHash[:]},
		{"security_monitor.pubkey", doc.SecurityMonitor.PublicKey, r.smKey[:]},
		{"security_monitor.signature", doc.SecurityMonitor.Signature, r.smSignature[:]},
		{"device_pubkey", doc.DeviceKey, r.deviceKey[:]},
	} {
		v, err := hex.DecodeString(f.text)
		if err != nil || len(v) != len(f.into) {
			return nil, fmt.Errorf("%s: want %d hex digits", f.name, 2*len(f.into))
		}
		copy(f.into, v)
	}
	data, err := hex.DecodeString(doc.Enclave.Data)
	if err != nil {
		return nil, fmt.Errorf("enclave.data: %w", err)
	}
	if len(data) > maxData || len(data) != doc.Enclave.DataLength {
		return nil, errors.New("enclave.data: is not of datalen bytes, at most 1024")
	}
	r.data = data
	return r, nil
}
