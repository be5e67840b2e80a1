package snp

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/memo"
)

const maxCRLSize = 4 << 20

// revocations is a CRL whose signature has been verified.
type revocations struct {
	thisUpdate, nextUpdate time.Time
	number                 *big.Int        // nil: none
	serials                map[string]bool // decimal
}

// revoked checks the chain against the CRL of its root: checks 16 and 17.
func (v *Verifier) revoked(ctx context.Context, ch *chain, c attest.Collateral, now time.Time, a *appraisal) error {
	rl, err := v.crl(ctx, ch, c, now, a)
	r := attest.ReasonOf(err)
	switch {
	case err == nil:
		a.passed(checkCRL)
	case v.crlOptional && (r == attest.ReasonCollateralMissing || r == attest.ReasonCollateralExpired):
		a.collateral.State = attest.CollateralExpired
		a.skipped(checkCRL, "not required here: "+err.Error())
		if rl == nil {
			a.skipped(checkRevocation, "no CRL")
			return nil
		}
	default:
		return err
	}
	// A stolen or extracted key stays on its certificate until this list says otherwise.
	for _, cert := range []*x509.Certificate{ch.leaf.cert, ch.issuer, ch.root.cert} {
		if rl.serials[cert.SerialNumber.String()] {
			return attest.Errorf(checkRevocation, attest.ReasonRevoked, "certificate %q, serial %s, is on the CRL of %s",
				cert.Subject.CommonName, cert.SerialNumber, ch.line)
		}
	}
	a.passed(checkRevocation)
	return nil
}

// crl returns the root's list. If only its nextUpdate has passed, it returns
// the list and an error: what it lists stays revoked.
func (v *Verifier) crl(ctx context.Context, ch *chain, c attest.Collateral, now time.Time, a *appraisal) (*revocations, error) {
	// AMD publishes a list for each kind of key.
	ref := attest.CollateralRef{Kind: attest.SNPCRL, Key: string(ch.line) + "/" + ch.leaf.kind.String()}
	it, err := a.get(ctx, checkCRL, c, ref)
	if err != nil {
		return nil, err
	}
	rl, err := v.list(it.Data, ch.root)
	if err != nil {
		return nil, attest.Errorf(checkCRL, attest.ReasonCollateralInvalid, "CRL of %s: %w", ch.line, err)
	}
	a.collateral.Issued(rl.thisUpdate, now)
	// The dates are looked at on each call: a replayed old list hides later revocations.
	if now.Before(rl.thisUpdate) {
		return nil, attest.Errorf(checkCRL, attest.ReasonCollateralInvalid, "CRL of %s: thisUpdate %s lies ahead", ch.line, rl.thisUpdate.UTC())
	}
	if !now.Before(rl.nextUpdate) {
		return rl, attest.Errorf(checkCRL, attest.ReasonCollateralExpired, "CRL of %s: nextUpdate was %s", ch.line, rl.nextUpdate.UTC())
	}
	if err := v.newest.Use(memo.Key(ch.root.cert.Raw, []byte(ref.Key)), memo.Edition{Issued: rl.thisUpdate, Until: rl.nextUpdate, Number: rl.number}, now, nil); err != nil {
		return nil, attest.Errorf(checkCRL, attest.ReasonCollateralExpired, "CRL of %s was replaced: %w", ch.line, err)
	}
	return rl, nil
}

// list is parseCRL, once for the same bytes.
func (v *Verifier) list(der []byte, r anchor) (*revocations, error) {
	return v.crls.Get(memo.Key(der, r.cert.Raw), func() (*revocations, error) { return parseCRL(der, r) })
}

// parseCRL verifies that the list is the root's: an unsigned or foreign list
// could hide a revocation, or invent one.
func parseCRL(der []byte, r anchor) (*revocations, error) {
	if len(der) > maxCRLSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(der), maxCRLSize)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if len(l.Raw) != len(der) {
		return nil, fmt.Errorf("%d bytes after the list", len(der)-len(l.Raw)) // x509 lets them pass
	}
	if string(l.RawIssuer) != string(r.cert.RawSubject) {
		return nil, fmt.Errorf("issued by %q, not by the root", l.Issuer.CommonName)
	}
	if !r.allows(l.SignatureAlgorithm) {
		return nil, fmt.Errorf("signature algorithm %s", l.SignatureAlgorithm)
	}
	if err := l.CheckSignatureFrom(r.cert); err != nil {
		return nil, err
	}
	if l.NextUpdate.IsZero() {
		return nil, fmt.Errorf("no nextUpdate")
	}
	for _, e := range l.Extensions {
		// A critical extension, such as a delta CRL's, changes what the list means.
		if e.Critical && !(e.Id.Equal(oidIssuingDistributionPoint) && coversCAs(e.Value)) {
			return nil, fmt.Errorf("critical extension %s", e.Id)
		}
	}
	rl := &revocations{thisUpdate: l.ThisUpdate, nextUpdate: l.NextUpdate, number: l.Number, serials: map[string]bool{}}
	for _, e := range l.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return nil, fmt.Errorf("critical extension %s of an entry", x.Id)
			}
		}
		rl.serials[e.SerialNumber.String()] = true
	}
	return rl, nil
}

var oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}

// coversCAs says that an IssuingDistributionPoint (RFC 5280 §5.2.5) does not
// narrow the list below the authorities' certificates: it holds no field but
// distributionPoint [0] and onlyContainsCACerts [2].
func coversCAs(b []byte) bool {
	var seq asn1.RawValue
	if rest, err := asn1.Unmarshal(b, &seq); err != nil || len(rest) > 0 || seq.Tag != asn1.TagSequence {
		return false
	}
	for rest := seq.Bytes; len(rest) > 0; {
		var f asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &f); err != nil {
			return false
		}
		if f.Class != asn1.ClassContextSpecific || (f.Tag != 0 && f.Tag != 2) {
			return false
		}
	}
	return true
}
