package nitro

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/claviger/claviger/broker/cose"
	"github.com/claviger/claviger/broker/p384"
)

// Limits of AWS's specification, and ours where it has none.
const (
	maxCertificate = 1024 // bytes, each
	maxField       = 1024 // bytes, of public_key, user_data and nonce
	maxBundle      = 8    // certificates; AWS sends four
	maxModuleID    = 128  // bytes
	pcrsOfEnclave  = 32
	pcrsOfTPM      = 24
)

// Kind tells documents of the Nitro Secure Module from those of NitroTPM.
type Kind string

// Kinds of documents.
const (
	Enclave Kind = "enclave"
	TPM     Kind = "nitrotpm"
)

// document is an attestation document ("AttestationDocument" of AWS's specification).
type document struct {
	ModuleID     string            `cbor:"module_id"`
	Timestamp    uint64            `cbor:"timestamp"` // milliseconds since 1970
	Digest       string            `cbor:"digest"`
	PCRs         map[uint64][]byte `cbor:"pcrs"`
	NitroTPMPCRs map[uint64][]byte `cbor:"nitrotpm_pcrs"`
	Certificate  []byte            `cbor:"certificate"` // DER
	CABundle     [][]byte          `cbor:"cabundle"`    // DER, root first
	PublicKey    []byte            `cbor:"public_key"`
	UserData     []byte            `cbor:"user_data"`
	Nonce        []byte            `cbor:"nonce"`

	kind      Kind
	registers map[uint64][]byte
}

// sign1 is COSE_Sign1 (RFC 9052 §4.2).
type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   cose.Bytes
	Unprotected cbor.RawMessage
	Payload     cose.Bytes
	Signature   cose.Bytes // r ‖ s, 48 bytes each, big endian
}

var (
	// protectedES384 is {1: -35}, the only header of a document. Other encodings of it are not taken.
	protectedES384 = []byte{0xa1, 0x01, 0x38, 0x22}
	emptyMap       = []byte{0xa0}
)

const (
	tagSign1 = 0xd2 // CBOR tag 18 in one byte
)

var (
	errAlgorithm = errors.New("the protected header is not ES384 alone")
	errDigest    = errors.New("unknown digest")
)

// parseSign1 reads the envelope. Nothing in it is left to choose for who did not
// sign it, apart from the tag and the lengths' encoding.
func parseSign1(b []byte) (sign1, error) {
	var s sign1
	if len(b) > 0 && b[0] == tagSign1 {
		b = b[1:]
	}
	if err := cose.UnmarshalAnyLength(b, &s); err != nil {
		return s, fmt.Errorf("COSE_Sign1: %w", err)
	}
	if !bytes.Equal(s.Protected, protectedES384) {
		return s, fmt.Errorf("COSE_Sign1: %w: %.16x", errAlgorithm, s.Protected)
	}
	if !bytes.Equal(s.Unprotected, emptyMap) {
		return s, errors.New("COSE_Sign1: the unprotected header is not an empty map")
	}
	if n := len(s.Signature); n != p384.SignatureSize {
		return s, fmt.Errorf("COSE_Sign1: signature of %d bytes, want %d", n, p384.SignatureSize)
	}
	return s, nil
}

// verify checks the signature over the Sig_structure (RFC 9052 §4.4).
func (s sign1) verify(signer *x509.Certificate) bool {
	h := sha512.New384()
	h.Write([]byte("\x84\x6aSignature1\x44")) // array of 4: the context, the protected header,
	h.Write(protectedES384)
	h.Write([]byte{0x40}) // no external data,
	// the payload, of 2^8 to 2^16-1 bytes: it has a certificate in it, and is shorter than attest.MaxReportSize.
	n := len(s.Payload)
	h.Write([]byte{0x59, byte(n >> 8), byte(n)})
	h.Write(s.Payload)
	return p384.Verify(signer, h.Sum(nil), s.Signature)
}

// parseDocument reads the payload and holds it to the specification.
func parseDocument(b []byte) (*document, error) {
	d := new(document)
	if err := cose.UnmarshalAnyLength(b, d); err != nil {
		return nil, fmt.Errorf("attestation document: %w", err)
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("attestation document: %w", err)
	}
	return d, nil
}

func (d *document) check() error {
	if n := len(d.ModuleID); n == 0 || n > maxModuleID {
		return fmt.Errorf("module_id of %d bytes", n)
	}
	if d.Timestamp == 0 || d.Timestamp > 1<<53 {
		return fmt.Errorf("timestamp %d", d.Timestamp)
	}
	size, ok := map[string]int{"SHA256": 32, "SHA384": 48, "SHA512": 64}[d.Digest]
	if !ok {
		return fmt.Errorf("digest: %w %.16q", errDigest, d.Digest)
	}
	var limit uint64
	switch {
	case d.PCRs != nil && d.NitroTPMPCRs != nil:
		return errors.New("both pcrs and nitrotpm_pcrs")
	case d.NitroTPMPCRs != nil:
		d.kind, d.registers, limit = TPM, d.NitroTPMPCRs, pcrsOfTPM
	default:
		d.kind, d.registers, limit = Enclave, d.PCRs, pcrsOfEnclave
	}
	if len(d.registers) == 0 {
		return errors.New("no PCRs")
	}
	for i, pcr := range d.registers {
		if i >= limit || len(pcr) != size {
			return fmt.Errorf("PCR %d of %d bytes, want an index below %d and %d bytes for %s", i, len(pcr), limit, size, d.Digest)
		}
	}
	if n := len(d.Certificate); n == 0 || n > maxCertificate {
		return fmt.Errorf("certificate of %d bytes", n)
	}
	if n := len(d.CABundle); n == 0 || n > maxBundle {
		return fmt.Errorf("cabundle of %d certificates", n)
	}
	for i, c := range d.CABundle {
		if n := len(c); n == 0 || n > maxCertificate {
			return fmt.Errorf("cabundle: certificate %d of %d bytes", i, n)
		}
	}
	for name, f := range map[string][]byte{"public_key": d.PublicKey, "user_data": d.UserData, "nonce": d.Nonce} {
		if len(f) > maxField {
			return fmt.Errorf("%s of %d bytes", name, len(f))
		}
	}
	return nil
}

// time is when the document was made.
func (d *document) time() time.Time { return time.UnixMilli(int64(d.Timestamp)).UTC() }

// debug reports that the enclave runs in debug mode: its console can be read from
// outside, and the PCRs of its image are zeros. A register that is missing, or
// zero while others are not, is no measurement either.
func (d *document) debug() bool {
	if d.kind == TPM {
		return false // an instance has no such mode
	}
	for i := range uint64(3) {
		if len(bytes.Trim(d.registers[i], "\x00")) == 0 {
			return true
		}
	}
	return false
}

func pcrName(i uint64) string { return "pcr" + strconv.FormatUint(i, 10) }
