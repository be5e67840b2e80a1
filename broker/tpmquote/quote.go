// Package tpmquote reads what evidence types with a TPM in them share by
// specification: the quote and its signature, the attestation key, the quoted
// PCRs, and what an event log shows of the boot. It does not say who vouches for
// the key: that is what the types differ in.
//
// Specifications: TCG "TPM 2.0 Library" (Part 2 structures, Part 3 commands),
// "PC Client Platform Firmware Profile" (PFP).
package tpmquote

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
)

// Quote is a decoded TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE with its signature.
type Quote struct {
	raw       []byte
	attest    *tpm2.TPMSAttest
	info      *tpm2.TPMSQuoteInfo
	signature *tpm2.TPMTSignature
}

// Parse reads a TPMS_ATTEST and a TPMT_SIGNATURE. It verifies nothing.
func Parse(raw, signature []byte) (Quote, error) {
	a, err := Unmarshal[tpm2.TPMSAttest](raw)
	if err != nil {
		return Quote{}, fmt.Errorf("TPMS_ATTEST: %w", err)
	}
	// A restricted key signs this magic only for what the TPM itself made.
	if a.Magic != tpm2.TPMGeneratedValue {
		return Quote{}, fmt.Errorf("TPMS_ATTEST: magic %#x, not made by a TPM", uint32(a.Magic))
	}
	if a.Type != tpm2.TPMSTAttestQuote {
		return Quote{}, fmt.Errorf("TPMS_ATTEST: type %#x is not a quote", uint16(a.Type))
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return Quote{}, fmt.Errorf("TPMS_QUOTE_INFO: %w", err)
	}
	sig, err := Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		return Quote{}, fmt.Errorf("TPMT_SIGNATURE: %w", err)
	}
	return Quote{raw, a, info, sig}, nil
}

// ExtraData is the qualifying data that the TPM was given for the quote.
func (q Quote) ExtraData() []byte { return q.attest.ExtraData.Buffer }

// inClearHierarchy says that the key of that name, which signed, is a primary key
// of the endorsement or platform hierarchy: its qualified name is the digest of the
// hierarchy's handle and its name (Part 1, "Qualified Name").
func (q Quote) inClearHierarchy(name []byte) bool {
	if len(name) < 2 {
		return false
	}
	hash, err := tpm2.TPMIAlgHash(binary.BigEndian.Uint16(name)).Hash()
	if err != nil {
		return false
	}
	for _, hierarchy := range []tpm2.TPMHandle{tpm2.TPMRHEndorsement, tpm2.TPMRHPlatform} {
		h := hash.New()
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(hierarchy)))
		h.Write(name)
		if bytes.Equal(q.attest.QualifiedSigner.Buffer, h.Sum(slices.Clone(name[:2]))) {
			return true
		}
	}
	return false
}

// Verify makes two checks, quote_signature and pcrs: the key signed the quote,
// and it covers exactly the PCRs sent. The error is an *attest.Error.
func (q Quote) Verify(t *dcap.Trail, k Key, pcrs []attest.PCR) error {
	hash, err := k.verify(q.raw, q.signature)
	if err != nil {
		return t.Fail("quote_signature", attest.ReasonSignature, "%w", err)
	}
	t.Pass("quote_signature", "%s", k.Algorithm)
	if err := q.checkPCRs(pcrs, hash); err != nil {
		return t.Fail("pcrs", attest.ReasonMismatch, "%w", err)
	}
	t.Pass("pcrs", "the quote covers exactly the PCRs sent")
	return nil
}

// Unmarshal takes a structure that fills b exactly: what follows it would not be covered by anything.
func Unmarshal[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](b []byte) (v *T, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = nil, fmt.Errorf("not decodable: %v", p)
		}
	}()
	v, err = tpm2.Unmarshal[T, P](b)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(*v), b) {
		return nil, errors.New("not in canonical form")
	}
	return v, nil
}

// checkPCRs holds the PCRs sent against the quote: the selection is exactly
// theirs, in the SHA-256 bank, and the digest is over their values (Part 3, TPM2_Quote).
func (q Quote) checkPCRs(pcrs []attest.PCR, hash crypto.Hash) error {
	sel := q.info.PCRSelect.PCRSelections
	if len(sel) != 1 || sel[0].Hash != tpm2.TPMAlgSHA256 {
		return errors.New("the quote is not over the SHA-256 bank alone")
	}
	var selected []int
	for i, bits := range sel[0].PCRSelect {
		for bit := range 8 {
			if bits>>bit&1 == 1 {
				selected = append(selected, 8*i+bit)
			}
		}
	}
	h := hash.New()
	var sent []int
	for _, p := range pcrs {
		sent = append(sent, p.Index)
		h.Write(p.Digest)
	}
	if !slices.Equal(selected, sent) {
		return fmt.Errorf("the quote selects PCRs %v, sent are %v", selected, sent)
	}
	if !bytes.Equal(h.Sum(nil), q.info.PCRDigest.Buffer) {
		return errors.New("the quoted digest is not that of the PCR values sent")
	}
	return nil
}

// Key is a public key that may sign quotes.
type Key struct {
	Public    crypto.PublicKey
	Algorithm string
	Name      []byte // TPM Name: nameAlg ‖ H(TPMT_PUBLIC); nil where only the key itself is known
	scheme    tpm2.TPMAlgID
	hash      crypto.Hash
}

// NewKey is the key of a party that vouches for its being an attestation key
// and says no more of it: RSASSA, or ECDSA on P-256, with SHA-256.
func NewKey(public crypto.PublicKey) (Key, error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if err := checkRSA(k); err != nil {
			return Key{}, err
		}
		return Key{Public: k, Algorithm: fmt.Sprintf("RSA-%d", k.N.BitLen()), scheme: tpm2.TPMAlgRSASSA, hash: crypto.SHA256}, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return Key{}, fmt.Errorf("curve %s", k.Params().Name)
		}
		return Key{Public: k, Algorithm: "ECDSA P-256", scheme: tpm2.TPMAlgECDSA, hash: crypto.SHA256}, nil
	}
	return Key{}, fmt.Errorf("key type %T", public)
}

func checkRSA(k *rsa.PublicKey) error {
	if bits := k.N.BitLen(); bits < 2048 || bits > 4096 || k.E != 65537 {
		return fmt.Errorf("RSA key of %d bits, exponent %d", bits, k.E)
	}
	return nil
}

// ParseKey reads a TPMT_PUBLIC, which must be that of an attestation key.
func ParseKey(raw []byte) (Key, error) {
	pub, err := Unmarshal[tpm2.TPMTPublic](raw)
	if err != nil {
		return Key{}, fmt.Errorf("TPMT_PUBLIC: %w", err)
	}
	// Restricted: signs nothing that looks like a TPM's own statement but is not (Part 1, 25.3.2).
	// Fixed and made inside: nobody else has it.
	a := pub.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return Key{}, errors.New("not an attestation key: want restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin, and not decrypt")
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return Key{}, fmt.Errorf("name: %w", err)
	}
	if pub.NameAlg != tpm2.TPMAlgSHA256 && pub.NameAlg != tpm2.TPMAlgSHA384 && pub.NameAlg != tpm2.TPMAlgSHA512 {
		return Key{}, fmt.Errorf("name algorithm %#x", uint16(pub.NameAlg))
	}
	ak := Key{Name: name.Buffer}
	var hashAlg tpm2.TPMAlgID
	switch pub.Type {
	case tpm2.TPMAlgRSA:
		p, err := pub.Parameters.RSADetail()
		if err != nil {
			return Key{}, err
		}
		ak.scheme = p.Scheme.Scheme
		switch ak.scheme {
		case tpm2.TPMAlgRSASSA:
			s, err := p.Scheme.Details.RSASSA()
			if err != nil {
				return Key{}, err
			}
			hashAlg = s.HashAlg
		case tpm2.TPMAlgRSAPSS:
			s, err := p.Scheme.Details.RSAPSS()
			if err != nil {
				return Key{}, err
			}
			hashAlg = s.HashAlg
		default:
			return Key{}, fmt.Errorf("signature scheme %#x", uint16(ak.scheme))
		}
		n, err := pub.Unique.RSA()
		if err != nil {
			return Key{}, err
		}
		key, err := tpm2.RSAPub(p, n)
		if err != nil {
			return Key{}, err
		}
		if err := checkRSA(key); err != nil {
			return Key{}, err
		}
		ak.Public, ak.Algorithm = key, fmt.Sprintf("RSA-%d", key.N.BitLen())
	case tpm2.TPMAlgECC:
		p, err := pub.Parameters.ECCDetail()
		if err != nil {
			return Key{}, err
		}
		ak.scheme = p.Scheme.Scheme
		if ak.scheme != tpm2.TPMAlgECDSA {
			return Key{}, fmt.Errorf("signature scheme %#x", uint16(ak.scheme))
		}
		s, err := p.Scheme.Details.ECDSA()
		if err != nil {
			return Key{}, err
		}
		hashAlg = s.HashAlg
		point, err := pub.Unique.ECC()
		if err != nil {
			return Key{}, err
		}
		key, err := ECCKey(p.CurveID, point)
		if err != nil {
			return Key{}, err
		}
		ak.Public, ak.Algorithm = key, "ECDSA "+key.Params().Name
	default:
		return Key{}, fmt.Errorf("key type %#x", uint16(pub.Type))
	}
	var ok bool
	if ak.hash, ok = hashes[hashAlg]; !ok {
		return Key{}, fmt.Errorf("hash algorithm %#x", uint16(hashAlg))
	}
	return ak, nil
}

// hashes that may sign; SHA-1 may not.
var hashes = map[tpm2.TPMAlgID]crypto.Hash{tpm2.TPMAlgSHA256: crypto.SHA256, tpm2.TPMAlgSHA384: crypto.SHA384, tpm2.TPMAlgSHA512: crypto.SHA512}

// ECCKey is a point of curve P-256 or P-384 as a public key.
func ECCKey(id tpm2.TPMECCCurve, p *tpm2.TPMSECCPoint) (*ecdsa.PublicKey, error) {
	var curve elliptic.Curve
	switch id {
	case tpm2.TPMECCNistP256:
		curve = elliptic.P256()
	case tpm2.TPMECCNistP384:
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("curve %#x", uint16(id))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(p.X.Buffer) > size || len(p.Y.Buffer) > size {
		return nil, errors.New("coordinate too long")
	}
	b := make([]byte, 1+2*size)
	b[0] = 4
	copy(b[1+size-len(p.X.Buffer):], p.X.Buffer)
	copy(b[1+2*size-len(p.Y.Buffer):], p.Y.Buffer)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, b) // on the curve
	if err != nil {
		return nil, fmt.Errorf("point: %w", err)
	}
	return key, nil
}

// verify checks a signature by the key's own scheme, and returns the hash used.
func (k Key) verify(message []byte, sig *tpm2.TPMTSignature) (crypto.Hash, error) {
	if sig.SigAlg != k.scheme {
		return 0, fmt.Errorf("scheme %#x, the key's is %#x", uint16(sig.SigAlg), uint16(k.scheme))
	}
	h := k.hash.New()
	h.Write(message)
	digest := h.Sum(nil)
	bad := errors.New("does not verify under the attestation key")
	switch k.scheme {
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS:
		get := sig.Signature.RSASSA
		if k.scheme == tpm2.TPMAlgRSAPSS {
			get = sig.Signature.RSAPSS
		}
		s, err := get()
		if err != nil {
			return 0, err
		}
		if hashes[s.Hash] != k.hash {
			return 0, errors.New("hash is not the key's")
		}
		key := k.Public.(*rsa.PublicKey)
		if k.scheme == tpm2.TPMAlgRSAPSS {
			err = rsa.VerifyPSS(key, k.hash, digest, s.Sig.Buffer, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
		} else {
			err = rsa.VerifyPKCS1v15(key, k.hash, digest, s.Sig.Buffer)
		}
		if err != nil {
			return 0, bad
		}
	case tpm2.TPMAlgECDSA:
		s, err := sig.Signature.ECDSA()
		if err != nil {
			return 0, err
		}
		if hashes[s.Hash] != k.hash {
			return 0, errors.New("hash is not the key's")
		}
		r, z := new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)
		if !ecdsa.Verify(k.Public.(*ecdsa.PublicKey), digest, r, z) {
			return 0, bad
		}
	}
	return k.hash, nil
}

func pcrName(i int) string { return "pcr" + strconv.Itoa(i) }

func sum(b []byte) []byte {
	d := sha256.Sum256(b)
	return d[:]
}
