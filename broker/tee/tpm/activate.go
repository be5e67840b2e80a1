package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/broker/tpmquote"
)

// ticket is the content of attest.TPMChallenge.Ticket, followed by its HMAC-SHA-256.
type ticket struct {
	Expires int64       `json:"exp"`
	AKName  []byte      `json:"ak_name"`
	Secret  []byte      `json:"secret_sha256"`
	EK      tpmquote.EK `json:"ek"`
}

const ticketLabel = "claviger/v1/tpm-ticket\x00"

// Activate checks the endorsement key up to a manufacturer's CA and the
// attestation key's attributes, and makes a credential for the two
// (TPM2_MakeCredential). It stores nothing. The error is an *attest.Error.
func (v *Verifier) Activate(req attest.TPMActivation, now time.Time) (c attest.TPMChallenge, err error) {
	fail := func(check string, r attest.Reason, err error) (attest.TPMChallenge, error) {
		return attest.TPMChallenge{}, &attest.Error{Check: "tpm." + check, Reason: r, Err: err}
	}
	defer func() {
		if p := recover(); p != nil {
			c, err = fail("internal", attest.ReasonMalformed, fmt.Errorf("panic: %v", p))
		}
	}()
	ak, err := tpmquote.ParseKey(req.AKPublic)
	if err != nil {
		return fail("ak", attest.ReasonUnsupported, err)
	}
	pub, err := parseEK(req.EKPublic)
	if err != nil {
		return fail("ek", attest.ReasonUnsupported, err)
	}
	cert, r, err := v.ekCertificate(req.EKCertificates, now)
	if err != nil {
		return fail("ek_certificate", r, err)
	}
	if err := samePublic(cert, pub); err != nil {
		return fail("ek_certificate", attest.ReasonMismatch, err)
	}
	kem, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return fail("ek", attest.ReasonUnsupported, err)
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	defer clear(secret)
	blob, enc, err := tpm2.CreateCredential(rand.Reader, kem, ak.Name, secret)
	if err != nil {
		return fail("ek", attest.ReasonUnsupported, err)
	}
	hash := sha256.Sum256(secret)
	expires := now.Add(v.cfg.TicketLife)
	body, err := json.Marshal(ticket{Expires: expires.Unix(), AKName: ak.Name, Secret: hash[:], EK: newEK(cert)})
	if err != nil {
		return fail("internal", attest.ReasonInternal, err)
	}
	return attest.TPMChallenge{CredentialBlob: blob, EncryptedSecret: enc, Ticket: append(body, v.mac(body)...), Expires: expires}, nil
}

func (v *Verifier) mac(body []byte) []byte {
	h := hmac.New(sha256.New, v.cfg.TicketKey)
	h.Write([]byte(ticketLabel))
	h.Write(body)
	return h.Sum(nil)
}

// parseEK reads a TPMT_PUBLIC of a storage key such as the EK templates make.
func parseEK(raw []byte) (*tpm2.TPMTPublic, error) {
	if len(raw) > 2<<10 {
		return nil, fmt.Errorf("endorsement key of %d bytes", len(raw))
	}
	pub, err := tpmquote.Unmarshal[tpm2.TPMTPublic](raw)
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %w", err)
	}
	a := pub.ObjectAttributes
	if !a.Restricted || !a.Decrypt || a.SignEncrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return nil, errors.New("not an endorsement key: want restricted, decrypt, fixedTPM, fixedParent, sensitiveDataOrigin, and not sign")
	}
	return pub, nil
}

var (
	oidSAN  = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEK   = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidAIK  = asn1.ObjectIdentifier{2, 23, 133, 8, 3} // tcg-kp-AIKCertificate
	oidMan  = asn1.ObjectIdentifier{2, 23, 133, 2, 1} // tcg-at-tpmManufacturer
	oidMod  = asn1.ObjectIdentifier{2, 23, 133, 2, 2} // tcg-at-tpmModel
	oidVers = asn1.ObjectIdentifier{2, 23, 133, 2, 3} // tcg-at-tpmVersion
)

// ekCertificate verifies the first certificate up to a configured CA.
func (v *Verifier) ekCertificate(ders [][]byte, now time.Time) (*x509.Certificate, attest.Reason, error) {
	if len(v.cfg.EKRoots) == 0 {
		return nil, attest.ReasonChain, errors.New("this broker knows no TPM manufacturer's CA (evidence.tpm.ek_roots)")
	}
	if len(ders) == 0 {
		return nil, attest.ReasonChain, errors.New("the TPM holds no endorsement key certificate")
	}
	if len(ders) > certs.MaxChain {
		return nil, attest.ReasonMalformed, fmt.Errorf("%d certificates, at most %d", len(ders), certs.MaxChain)
	}
	var chain []*x509.Certificate
	for i, der := range ders {
		c, err := certs.ParseTPM(der, certs.RSA, certs.P256, certs.P384, certs.P521)
		if err != nil {
			return nil, attest.ReasonMalformed, fmt.Errorf("certificate %d: %w", i, err)
		}
		chain = append(chain, c)
	}
	return verifyCertificate(chain, v.ekRoots, oidEK, now)
}

// verifyCertificate verifies the first of a chain, a TCG certificate, whose purpose x509 does not know.
func verifyCertificate(chain []*x509.Certificate, to *certs.Authorities, purpose asn1.ObjectIdentifier, now time.Time) (*x509.Certificate, attest.Reason, error) {
	leaf := chain[0]
	if _, reason, err := tpmquote.VerifyCertificate(leaf, chain[1:], to, now); err != nil {
		return nil, reason, err
	}
	if !slices.ContainsFunc(leaf.UnknownExtKeyUsage, purpose.Equal) {
		return nil, attest.ReasonChain, fmt.Errorf("lacks the extended key usage %s", purpose)
	}
	return leaf, "", nil
}

// samePublic holds the certified key against the one that the credential is made for.
func samePublic(cert *x509.Certificate, pub *tpm2.TPMTPublic) error {
	differ := errors.New("the endorsement key is not the certified one")
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		p, err := pub.Parameters.RSADetail()
		if err != nil {
			return differ
		}
		n, err := pub.Unique.RSA()
		if err != nil {
			return differ
		}
		got, err := tpm2.RSAPub(p, n)
		if err != nil || !key.Equal(got) || key.N.BitLen() < 2048 {
			return differ
		}
	case *ecdsa.PublicKey:
		p, err := pub.Parameters.ECCDetail()
		if err != nil {
			return differ
		}
		point, err := pub.Unique.ECC()
		if err != nil {
			return differ
		}
		got, err := tpmquote.ECCKey(p.CurveID, point)
		if err != nil || !key.Equal(got) {
			return differ
		}
	default:
		return fmt.Errorf("certified key is a %T", key)
	}
	return nil
}

func newEK(c *x509.Certificate) tpmquote.EK {
	spki := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	der := sha256.Sum256(c.Raw)
	ek := tpmquote.EK{
		Digest: hex.EncodeToString(spki[:]), Certificate: hex.EncodeToString(der[:]),
		Issuer: clip(c.Issuer.String()), Serial: hex.EncodeToString(c.SerialNumber.Bytes()),
	}
	for _, a := range directoryNames(c) {
		s, ok := a.Value.(string)
		switch {
		case !ok:
		case a.Type.Equal(oidMan):
			ek.Manufacturer = clip(s)
		case a.Type.Equal(oidMod):
			ek.Model = clip(s)
		case a.Type.Equal(oidVers):
			ek.Version = clip(s)
		}
	}
	return ek
}

// directoryNames reads the directoryName entries of the SAN ("EK Credential Profile", 3.2.9).
func directoryNames(c *x509.Certificate) []pkix.AttributeTypeAndValue {
	var out []pkix.AttributeTypeAndValue
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return nil
		}
		for _, n := range names {
			var rdns pkix.RDNSequence
			if n.Class != asn1.ClassContextSpecific || n.Tag != 4 {
				continue
			}
			if rest, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil || len(rest) > 0 {
				return nil
			}
			for _, rdn := range rdns {
				out = append(out, rdn...)
			}
		}
	}
	return out
}

func clip(s string) string { return s[:min(len(s), 256)] }

// trust is who vouches for the AK.
type trust struct {
	how    string
	chipID string
	// identities are what names this TPM beside chipID
	identities []string
	ek         *tpmquote.EK
	issuer     string
}

func (t trust) model() string {
	if t.ek != nil && t.ek.Model != "" {
		return "TPM 2.0 " + t.ek.Model
	}
	return "TPM 2.0"
}

// trustAK finds out who vouches for the attestation key: a certificate, or an activation.
func (v *Verifier) trustAK(t *dcap.Trail, ev attest.Evidence, r attest.TPMReport, ak tpmquote.Key, bound bool, now time.Time) (trust, error) {
	if len(ev.Endorsements) > 0 {
		return v.certifiedAK(t, ev.Endorsements, ak, now)
	}
	if len(r.Ticket) == 0 && !bound && v.cfg.Unvouched {
		// Claims of unbound evidence never release anything.
		t.Skip("ak_trust", "neither a certificate nor an activation: nobody vouches for this key")
		return trust{how: tpmquote.TrustNone}, nil
	}
	fail := func(reason attest.Reason, format string, args ...any) (trust, error) {
		return trust{}, t.Fail("ak_activation", reason, format, args...)
	}
	if len(v.cfg.TicketKey) != 32 || len(r.Ticket) <= sha256.Size {
		return fail(attest.ReasonChain, "the attestation key is neither certified nor activated")
	}
	body, mac := r.Ticket[:len(r.Ticket)-sha256.Size], r.Ticket[len(r.Ticket)-sha256.Size:]
	if !hmac.Equal(mac, v.mac(body)) {
		return fail(attest.ReasonSignature, "the ticket is not by this broker")
	}
	var k ticket
	if err := strictjson.Unmarshal(body, &k); err != nil {
		return fail(attest.ReasonMalformed, "ticket: %w", err)
	}
	if now.Unix() >= k.Expires {
		return fail(attest.ReasonValidity, "the ticket expired at %s", time.Unix(k.Expires, 0).UTC().Format(time.RFC3339))
	}
	if !bytes.Equal(k.AKName, ak.Name) {
		return fail(attest.ReasonMismatch, "the ticket is for another attestation key")
	}
	if got := sha256.Sum256(r.Secret); subtle.ConstantTimeCompare(got[:], k.Secret) != 1 {
		return fail(attest.ReasonMismatch, "the credential was not activated: the attestation key is not in the TPM of this endorsement key")
	}
	t.Pass("ak_activation", "in one TPM with endorsement key %s… of %s", k.EK.Digest[:16], k.EK.Issuer)
	// A TPM has an endorsement key of each algorithm, and its attestation key is proven to be in it by any of them. The first that
	// was used is the TPM's name, so that another one makes no other chip of it.
	chip, _ := v.chips.Get(memo.Key(ak.Name), func() (string, error) { return k.EK.Digest, nil })
	spki, err := x509.MarshalPKIXPublicKey(ak.Public)
	if err != nil {
		return fail(attest.ReasonInternal, "encode the attestation key: %w", err)
	}
	of := sha256.Sum256(spki)
	ids := []string{hex.EncodeToString(of[:])}
	if chip != k.EK.Digest {
		ids = append(ids, k.EK.Digest)
	}
	return trust{how: tpmquote.TrustActivation, chipID: chip, identities: ids, ek: &k.EK, issuer: k.EK.Issuer}, nil
}

func (v *Verifier) certifiedAK(t *dcap.Trail, endorsements []byte, ak tpmquote.Key, now time.Time) (trust, error) {
	fail := func(reason attest.Reason, err error) (trust, error) {
		return trust{}, t.Fail("ak_certificate", reason, "%w", err)
	}
	if len(v.cfg.AKRoots) == 0 {
		return fail(attest.ReasonChain, errors.New("this broker knows no CA for attestation keys (evidence.tpm.ak_roots)"))
	}
	blocks, err := pemfile.Bare(endorsements)
	if err != nil || len(blocks) == 0 || len(blocks) > certs.MaxChain {
		return fail(attest.ReasonMalformed, fmt.Errorf("endorsements: not 1 to %d PEM certificates: %w", certs.MaxChain, err))
	}
	var chain []*x509.Certificate
	for i, b := range blocks {
		c, err := tpmquote.ParseCertificate(b.Bytes)
		if b.Type != "CERTIFICATE" || err != nil {
			return fail(attest.ReasonMalformed, fmt.Errorf("PEM block %d, %q: %w", i, b.Type, err))
		}
		chain = append(chain, c)
	}
	leaf, r, err := verifyCertificate(chain, v.akRoots, oidAIK, now)
	if err != nil {
		return fail(r, err)
	}
	if !ak.CertifiedBy(leaf) {
		return fail(attest.ReasonMismatch, errors.New("the certificate is of another key than the one that signed"))
	}
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	t.Pass("ak_certificate", "by %s, whose word it is that the key is a TPM's", leaf.Issuer)
	return trust{how: tpmquote.TrustCertificate, chipID: hex.EncodeToString(spki[:]), issuer: clip(leaf.Issuer.String())}, nil
}
