package nvidia

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/memo"
)

// answer is an OCSP response whose signature has been verified.
type answer struct {
	*ocsp.Response
	about, subject string // of the certificate that it is about
}

func about(c *x509.Certificate) string { return c.SerialNumber.String() + " " + string(c.RawIssuer) }

var errNotFresh = errors.New("is not current")

// revocation looks at the stapled answers. There has to be a current one for
// each certificate between leaf and root: the leaf is issued by the device
// itself, and nobody answers for it. missing names the certificates without one,
// oldest is when the oldest of the others was made.
func (v *Verifier) revocation(d *device, ders [][]byte, now time.Time) (missing []string, oldest time.Time, _ attest.Reason, _ error) {
	good := map[string]time.Time{} // by serial number and issuer
	for i, der := range ders {
		a, err := v.answer(d, der)
		if err != nil {
			return nil, oldest, attest.ReasonCollateralInvalid, fmt.Errorf("OCSP answer %d: %w", i, err)
		}
		switch {
		// A device whose key leaked. An old word on that is as good as a new one.
		case a.Status == ocsp.Revoked:
			return nil, oldest, attest.ReasonRevoked, fmt.Errorf("%s was revoked at %s", a.subject, a.RevokedAt.Format(time.RFC3339))
		case a.Status != ocsp.Good:
			return nil, oldest, attest.ReasonCollateralInvalid, fmt.Errorf("OCSP answer %d: the responder does not know %s", i, a.subject)
		case a.check(now) == nil:
			good[a.about] = a.ThisUpdate
		}
	}
	for _, c := range d.certs[1 : len(d.certs)-1] {
		made, ok := good[about(c)]
		switch {
		case !ok:
			missing = append(missing, c.Subject.CommonName)
		case oldest.IsZero() || made.Before(oldest):
			oldest = made
		}
	}
	return missing, oldest, "", nil
}

// answer verifies an OCSP response for one of the chain's certificates: signed by
// its issuer, or by a responder that the issuer certified for that.
func (v *Verifier) answer(d *device, der []byte) (answer, error) {
	key := [][]byte{der}
	for _, c := range d.certs[1:] {
		key = append(key, c.Raw)
	}
	return v.answers.Get(memo.Key(key...), func() (answer, error) {
		err := errors.New("of no certificate in the chain")
		for i, c := range d.certs[1 : len(d.certs)-1] {
			issuer := d.certs[i+2]
			// It looks at serial numbers before signatures, but at a responder's signature
			// before it asks who vouches for the responder.
			if rerr := checkResponder(der, issuer); rerr != nil {
				err = rerr
				continue
			}
			r, perr := ocsp.ParseResponseForCert(der, c, issuer)
			if perr != nil {
				err = perr
				continue
			}
			// Any certificate of the issuer's, a device's say, could answer in its place.
			if s := r.Certificate; s != nil && (!slices.Contains(s.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) || !bytes.Equal(s.RawIssuer, issuer.RawSubject)) {
				return answer{}, fmt.Errorf("%s is no responder of %s", s.Subject, issuer.Subject)
			}
			return answer{r, about(c), c.Subject.String()}, nil
		}
		return answer{}, err
	})
}

// checkResponder looks at the certificate that an answer brings, if any: a
// stranger's huge key would take its time.
func checkResponder(der []byte, issuer *x509.Certificate) error {
	var response struct {
		Status asn1.Enumerated
		Body   struct {
			Type   asn1.ObjectIdentifier
			Answer []byte
		} `asn1:"explicit,tag:0,optional"`
	}
	var answer struct {
		Data         asn1.RawValue
		Algorithm    pkix.AlgorithmIdentifier
		Signature    asn1.BitString
		Certificates []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	if _, err := asn1.Unmarshal(der, &response); err != nil {
		return err
	}
	if len(response.Body.Answer) == 0 {
		return nil // says why there is none
	}
	if _, err := asn1.Unmarshal(response.Body.Answer, &answer); err != nil || len(answer.Certificates) == 0 {
		return err
	}
	c, err := certs.Parse(answer.Certificates[0].FullBytes, certs.RSA, certs.P256, certs.P384)
	if err != nil {
		return fmt.Errorf("its responder: %w", err)
	}
	if err := issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("%s is no responder of %s: %w", c.Subject, issuer.Subject, err)
	}
	return nil
}

// check says whether the answer, and its responder's certificate, are current.
func (a answer) check(now time.Time) error {
	if now.Before(a.ThisUpdate) || a.NextUpdate.IsZero() || now.After(a.NextUpdate) {
		return errNotFresh
	}
	if s := a.Certificate; s != nil && (now.Before(s.NotBefore) || now.After(s.NotAfter)) {
		return errNotFresh
	}
	return nil
}
