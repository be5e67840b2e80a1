// Package tpm appraises TPM 2.0 evidence: a quote over PCRs by an attestation
// key (AK) whose residence in a certified TPM was proven, and the firmware's
// event log. Such evidence says what was booted. It does not say that the host
// cannot read the machine's memory: bound_to_cpu_tee is false, and the baseline
// denies that unless a policy asks for a TPM alone.
//
// Specifications: TCG "TPM 2.0 Library" (Part 2 structures, Part 3 commands),
// "EK Credential Profile", "PC Client Platform Firmware Profile" (PFP).
package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
)

// Config of a Verifier.
type Config struct {
	// EKRoots and EKIntermediates are the TPM manufacturers' CAs. Without EKRoots no endorsement key is believed.
	EKRoots         []*x509.Certificate
	EKIntermediates []*x509.Certificate
	// AKRoots are CAs that certify attestation keys directly. They may be none.
	AKRoots []*x509.Certificate
	// TicketKey (32 bytes) authenticates activation tickets, the same on every replica.
	TicketKey []byte
	// TicketLife is how long a ticket is honoured. Default 1 hour.
	TicketLife time.Duration
}

// Verifier appraises TPM evidence and activates attestation keys.
type Verifier struct {
	cfg      Config
	ekRoots  *x509.CertPool
	ekInters *x509.CertPool
	akRoots  *x509.CertPool
}

// New makes a Verifier. Without CAs it refuses all evidence, saying so.
func New(cfg Config) (*Verifier, error) {
	if len(cfg.EKRoots) > 0 && len(cfg.TicketKey) != 32 {
		return nil, fmt.Errorf("tpm: ticket key of %d bytes, want 32", len(cfg.TicketKey))
	}
	if cfg.TicketLife == 0 {
		cfg.TicketLife = time.Hour
	}
	return &Verifier{cfg: cfg, ekRoots: pool(cfg.EKRoots), ekInters: pool(cfg.EKIntermediates), akRoots: pool(cfg.AKRoots)}, nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "tpm".
func (v *Verifier) Type() attest.Type { return attest.TypeTPM }

// Verify implements attest.Verifier. It needs no collateral: the CAs are configured.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (claims attest.Claims, err error) {
	t := dcap.NewTrail("tpm")
	defer func() {
		if r := recover(); r != nil { // go-tpm decodes by reflection
			err = t.Fail("internal", attest.ReasonMalformed, "panic: %v", r)
		}
		if err != nil {
			claims = attest.Claims{Type: attest.TypeTPM}
		}
		claims.Checks = t.Checks()
	}()
	if err := ctx.Err(); err != nil {
		return claims, t.Fail("internal", attest.ReasonInternal, "%w", err)
	}
	return v.verify(t, ev, b, now)
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding, now time.Time) (attest.Claims, error) {
	var none attest.Claims
	r, err := attest.DecodeTPMReport(ev.Report)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	q, err := parseQuote(r)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	t.Pass("format", "quote over %d PCRs", len(r.PCRs))

	ak, err := parseAK(r.AKPublic)
	if err != nil {
		return none, t.Fail("ak", attest.ReasonUnsupported, "%w", err)
	}
	t.Pass("ak", "%s, restricted, made in the TPM and fixed to it", ak.algorithm)

	bound, err := b.Check(q.attest.ExtraData.Buffer)
	if err != nil {
		return none, t.Fail("binding", attest.ReasonBinding, "%w", err)
	}
	if bound {
		t.Pass("binding", "the qualifying data is the digest of this request")
	} else {
		t.Skip("binding", "no binding was asked for")
	}

	// Who vouches for the AK, before what it says.
	trust, err := v.trustAK(t, ev, r, ak, bound, now)
	if err != nil {
		return none, err
	}
	hash, err := ak.verify(r.Quote, q.signature)
	if err != nil {
		return none, t.Fail("quote_signature", attest.ReasonSignature, "%w", err)
	}
	t.Pass("quote_signature", "%s", ak.algorithm)
	if err := q.checkPCRs(r.PCRs, hash); err != nil {
		return none, t.Fail("pcrs", attest.ReasonMismatch, "%w", err)
	}
	t.Pass("pcrs", "the quote covers exactly the PCRs sent")

	c := newClaims(r, q, ak, trust)
	if err := c.explain(t, ev.EventLog, r); err != nil {
		return none, err
	}
	claims := attest.Claims{
		Type: attest.TypeTPM, HardwareModel: trust.model(), Bound: bound, ChipID: trust.chipID,
		TCB:          attest.TCB{Status: attest.TCBUnknown},
		Measurements: c.measurements(),
		ReportData:   hex.EncodeToString(q.attest.ExtraData.Buffer),
		Collateral:   attest.CollateralState{State: attest.CollateralFresh},
		TPM:          c,
	}
	return claims, nil
}

// quote is a decoded TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE with its signature.
type quote struct {
	attest    *tpm2.TPMSAttest
	info      *tpm2.TPMSQuoteInfo
	signature *tpm2.TPMTSignature
}

func parseQuote(r attest.TPMReport) (quote, error) {
	a, err := unmarshal[tpm2.TPMSAttest](r.Quote)
	if err != nil {
		return quote{}, fmt.Errorf("TPMS_ATTEST: %w", err)
	}
	// A restricted key signs this magic only for what the TPM itself made.
	if a.Magic != tpm2.TPMGeneratedValue {
		return quote{}, fmt.Errorf("TPMS_ATTEST: magic %#x, not made by a TPM", uint32(a.Magic))
	}
	if a.Type != tpm2.TPMSTAttestQuote {
		return quote{}, fmt.Errorf("TPMS_ATTEST: type %#x is not a quote", uint16(a.Type))
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return quote{}, fmt.Errorf("TPMS_QUOTE_INFO: %w", err)
	}
	sig, err := unmarshal[tpm2.TPMTSignature](r.Signature)
	if err != nil {
		return quote{}, fmt.Errorf("TPMT_SIGNATURE: %w", err)
	}
	return quote{a, info, sig}, nil
}

// unmarshal takes a structure that fills b exactly: what follows it would not be covered by anything.
func unmarshal[T tpm2.Marshallable, P interface {
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
func (q quote) checkPCRs(pcrs []attest.PCR, hash crypto.Hash) error {
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

// attestationKey is a public key that may sign quotes.
type attestationKey struct {
	public    crypto.PublicKey
	scheme    tpm2.TPMAlgID
	hash      crypto.Hash
	algorithm string
	name      []byte // TPM Name: nameAlg ‖ H(TPMT_PUBLIC)
}

func parseAK(raw []byte) (attestationKey, error) {
	pub, err := unmarshal[tpm2.TPMTPublic](raw)
	if err != nil {
		return attestationKey{}, fmt.Errorf("TPMT_PUBLIC: %w", err)
	}
	// Restricted: signs nothing that looks like a TPM's own statement but is not (Part 1, 25.3.2).
	// Fixed and made inside: nobody else has it.
	a := pub.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return attestationKey{}, errors.New("not an attestation key: want restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin, and not decrypt")
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return attestationKey{}, fmt.Errorf("name: %w", err)
	}
	if pub.NameAlg != tpm2.TPMAlgSHA256 && pub.NameAlg != tpm2.TPMAlgSHA384 && pub.NameAlg != tpm2.TPMAlgSHA512 {
		return attestationKey{}, fmt.Errorf("name algorithm %#x", uint16(pub.NameAlg))
	}
	ak := attestationKey{name: name.Buffer}
	var hashAlg tpm2.TPMAlgID
	switch pub.Type {
	case tpm2.TPMAlgRSA:
		p, err := pub.Parameters.RSADetail()
		if err != nil {
			return attestationKey{}, err
		}
		ak.scheme = p.Scheme.Scheme
		switch ak.scheme {
		case tpm2.TPMAlgRSASSA:
			s, err := p.Scheme.Details.RSASSA()
			if err != nil {
				return attestationKey{}, err
			}
			hashAlg = s.HashAlg
		case tpm2.TPMAlgRSAPSS:
			s, err := p.Scheme.Details.RSAPSS()
			if err != nil {
				return attestationKey{}, err
			}
			hashAlg = s.HashAlg
		default:
			return attestationKey{}, fmt.Errorf("signature scheme %#x", uint16(ak.scheme))
		}
		n, err := pub.Unique.RSA()
		if err != nil {
			return attestationKey{}, err
		}
		key, err := tpm2.RSAPub(p, n)
		if err != nil {
			return attestationKey{}, err
		}
		if bits := key.N.BitLen(); bits < 2048 || bits > 4096 || key.E != 65537 {
			return attestationKey{}, fmt.Errorf("RSA key of %d bits, exponent %d", bits, key.E)
		}
		ak.public, ak.algorithm = key, fmt.Sprintf("RSA-%d", key.N.BitLen())
	case tpm2.TPMAlgECC:
		p, err := pub.Parameters.ECCDetail()
		if err != nil {
			return attestationKey{}, err
		}
		ak.scheme = p.Scheme.Scheme
		if ak.scheme != tpm2.TPMAlgECDSA {
			return attestationKey{}, fmt.Errorf("signature scheme %#x", uint16(ak.scheme))
		}
		s, err := p.Scheme.Details.ECDSA()
		if err != nil {
			return attestationKey{}, err
		}
		hashAlg = s.HashAlg
		point, err := pub.Unique.ECC()
		if err != nil {
			return attestationKey{}, err
		}
		key, err := eccKey(p.CurveID, point)
		if err != nil {
			return attestationKey{}, err
		}
		ak.public, ak.algorithm = key, "ECDSA "+key.Params().Name
	default:
		return attestationKey{}, fmt.Errorf("key type %#x", uint16(pub.Type))
	}
	var ok bool
	if ak.hash, ok = hashes[hashAlg]; !ok {
		return attestationKey{}, fmt.Errorf("hash algorithm %#x", uint16(hashAlg))
	}
	return ak, nil
}

// hashes that may sign; SHA-1 may not.
var hashes = map[tpm2.TPMAlgID]crypto.Hash{tpm2.TPMAlgSHA256: crypto.SHA256, tpm2.TPMAlgSHA384: crypto.SHA384, tpm2.TPMAlgSHA512: crypto.SHA512}

func eccKey(id tpm2.TPMECCCurve, p *tpm2.TPMSECCPoint) (*ecdsa.PublicKey, error) {
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
func (k attestationKey) verify(message []byte, sig *tpm2.TPMTSignature) (crypto.Hash, error) {
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
		key := k.public.(*rsa.PublicKey)
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
		if !ecdsa.Verify(k.public.(*ecdsa.PublicKey), digest, r, z) {
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
