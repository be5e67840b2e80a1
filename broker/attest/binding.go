package attest

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
)

// bindingLabel starts every transcript, so that a digest made for another
// purpose can never serve as one of ours.
const bindingLabel = "claviger/v1/binding"

const requestLabel = "claviger/v1/request"

// Transcript is what a release request says, apart from the evidence. Its
// digest goes into the hardware-signed report_data (DESIGN §2), which ties the
// evidence to this nonce, broker, key and list of resources.
type Transcript struct {
	Nonce         []byte
	BrokerID      [32]byte // SHA-256 of the broker identity's public key (SubjectPublicKeyInfo, DER)
	KeyAlgorithm  string
	PublicKey     []byte // encoding as KeyAlgorithm says, see package seal
	OfferedSuites []string
	Resources     []string
	// Inputs is what the guest sends for each resource (a CSR, a ciphertext), by
	// position, empty where it sends none; nil if it sends none at all.
	Inputs [][]byte
	// Devices are the digests of the evidence of further devices, in order; nil if there is none.
	// That evidence binds the transcript without them: it is made first. Then the first evidence
	// binds the whole, and so vouches for what it came with.
	Devices [][32]byte
}

const evidenceLabel = "claviger/v1/evidence"

// Digest is the SHA-256 by which a transcript names evidence.
func (e Evidence) Digest() [32]byte {
	h := sha256.New()
	h.Write([]byte(evidenceLabel))
	for _, part := range [][]byte{[]byte(e.Type), e.Report, e.Endorsements, e.EventLog} {
		writeLP(h, part)
	}
	return [32]byte(h.Sum(nil))
}

// Purpose is the call that a request is for.
type Purpose string

// Purposes.
const (
	PurposeRelease Purpose = "release"
	PurposeAttest  Purpose = "attest"
	PurposeWatch   Purpose = "watch"
)

const wholeLabel = "claviger/v1/whole"

// Whole is the SHA-256 by which a denial names a request: the call, the
// transcript (without devices, which follow), and all of the evidence, in order,
// with the endorsements and logs that nothing signs. Whoever changes anything on
// the way is denied something else.
func (t Transcript) Whole(p Purpose, evidence ...Evidence) [32]byte {
	bound := t.Alone().Digest32()
	var list [][]byte
	for _, e := range evidence {
		d := e.Digest()
		list = append(list, d[:])
	}
	h := sha256.New()
	h.Write([]byte(wholeLabel))
	writeLP(h, []byte(p))
	writeLP(h, bound[:])
	writeLP(h, encodeList(list))
	return [32]byte(h.Sum(nil))
}

// Alone is the transcript without devices: what the evidence of each of them binds.
func (t Transcript) Alone() Transcript {
	t.Devices = nil
	return t
}

// Digest64 is the SHA-512 digest, for 64-byte report_data (SNP, TDX, SGX, CCA).
func (t Transcript) Digest64() [64]byte {
	var d [64]byte
	copy(d[:], t.sum(sha512.New()))
	return d
}

// Digest48 is the SHA-384 digest.
func (t Transcript) Digest48() [48]byte {
	var d [48]byte
	copy(d[:], t.sum(sha512.New384()))
	return d
}

// Digest32 is the SHA-256 digest, for 32-byte fields (TPM qualifying data, PSA, NVIDIA).
func (t Transcript) Digest32() [32]byte {
	var d [32]byte
	copy(d[:], t.sum(sha256.New()))
	return d
}

func (t Transcript) sum(h hash.Hash) []byte {
	rd := RequestDigest(t.Resources, t.Inputs)
	h.Write([]byte(bindingLabel))
	writeLP(h, t.Nonce)
	writeLP(h, t.BrokerID[:])
	writeLP(h, []byte(t.KeyAlgorithm))
	writeLP(h, t.PublicKey)
	writeLP(h, encodeList(t.OfferedSuites))
	writeLP(h, rd[:])
	if t.Devices != nil {
		var list [][]byte
		for i := range t.Devices {
			list = append(list, t.Devices[i][:])
		}
		writeLP(h, encodeList(list))
	}
	return h.Sum(nil)
}

// RequestDigest is the SHA-256 over the resources asked for, in order, and over
// the inputs sent with them if there are any.
func RequestDigest(resources []string, inputs [][]byte) [32]byte {
	h := sha256.New()
	h.Write([]byte(requestLabel))
	writeLP(h, encodeList(resources))
	if inputs != nil {
		writeLP(h, encodeList(inputs))
	}
	return [32]byte(h.Sum(nil))
}

// encodeList is the concatenation of the length-prefixed items.
func encodeList[T string | []byte](items []T) []byte {
	var b []byte
	for _, s := range items {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

func writeLP(h hash.Hash, x []byte) {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(x)))
	h.Write(n[:])
	h.Write(x)
}

// Binding is what a verifier compares report_data with. The zero value matches
// nothing: appraisal without a binding has to be asked for by name.
type Binding struct {
	transcript *Transcript
	exact      []byte
	unbound    bool
}

// BindTo binds to a transcript; the verifier takes the digest of its field's size.
func BindTo(t Transcript) Binding { return Binding{transcript: &t} }

// BindExact binds to given bytes, for evidence that another protocol made. The
// whole field must equal them.
func BindExact(reportData []byte) Binding { return Binding{exact: slices.Clone(reportData)} }

// Unbound accepts any report_data; the claims then say bound = false, and no
// broker releases anything on them.
func Unbound() Binding { return Binding{unbound: true} }

// Check compares field with the binding in constant time. It reports whether
// the evidence is bound; the error names what went wrong.
func (b Binding) Check(field []byte) (bound bool, err error) {
	var want []byte
	switch {
	case b.unbound:
		return false, nil
	case b.transcript != nil:
		switch len(field) {
		case 64:
			d := b.transcript.Digest64()
			want = d[:]
		case 48:
			d := b.transcript.Digest48()
			want = d[:]
		case 32:
			d := b.transcript.Digest32()
			want = d[:]
		default:
			return false, fmt.Errorf("no binding digest of %d bytes", len(field))
		}
	case b.exact != nil:
		want = b.exact
	default:
		return false, fmt.Errorf("no binding given")
	}
	if subtle.ConstantTimeCompare(field, want) != 1 {
		return false, fmt.Errorf("report data is not the digest of this request")
	}
	return true, nil
}
