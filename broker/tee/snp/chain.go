package snp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/memo"
)

// leaf is a VCEK or VLEK certificate. Its form has been checked, its signature not.
type leaf struct {
	cert *x509.Certificate
	key  *ecdsa.PublicKey
	kind signingKey
	kds  kdsExtensions
}

// chain is a leaf whose signatures have been verified up to an anchor. Dates
// and revocation have not: they change while it is memoised.
type chain struct {
	leaf   *leaf
	issuer *x509.Certificate
	root   anchor
	line   line
}

// source is where an issuer's certificate may come from, in the order tried.
type source struct {
	issuer *x509.Certificate // nil: parse der
	der    []byte
}

// parseLeaf checks the form of the certificate that should have signed the report.
func parseLeaf(der []byte, kind signingKey) (*leaf, error) {
	c, err := certs.Parse(der, certs.P384)
	if err != nil {
		return nil, attest.Errorf(checkLeaf, attest.ReasonMalformed, "%s: %w", kind, err)
	}
	bad := func(format string, args ...any) (*leaf, error) {
		return nil, attest.Errorf(checkLeaf, attest.ReasonMalformed, "%s: %w", kind, fmt.Errorf(format, args...))
	}
	// The names say which key this is: a VLEK must not pass for a chip's own.
	if want := map[signingKey]string{keyVCEK: "SEV-VCEK", keyVLEK: "SEV-VLEK"}[kind]; c.Subject.CommonName != want {
		return nil, attest.Errorf(checkLeaf, attest.ReasonMismatch, "SIGNING_KEY is the %s, the certificate's subject %q", kind, c.Subject.CommonName)
	}
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return bad("the key is not on P-384")
	}
	if c.IsCA {
		return bad("is a certificate authority")
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return bad("critical extension %s", c.UnhandledCriticalExtensions[0])
	}
	k, err := parseKDSExtensions(c)
	if err != nil {
		return nil, attest.Errorf(checkKDSExtensions, attest.ReasonMalformed, "%s: %w", kind, err)
	}
	if kind == keyVCEK && (len(k.hwid) == 0 || k.cspID != "") {
		return nil, attest.Errorf(checkKDSExtensions, attest.ReasonMalformed, "a VCEK needs a HWID and no CSP_ID")
	}
	if kind == keyVLEK && (len(k.hwid) != 0 || k.cspID == "") {
		return nil, attest.Errorf(checkKDSExtensions, attest.ReasonMalformed, "a VLEK needs a CSP_ID and no HWID")
	}
	return &leaf{cert: c, key: key, kind: kind, kds: k}, nil
}

// known looks for a memoised chain of the leaf without parsing anything.
func (v *Verifier) known(der []byte, kind signingKey, t certTable, lines []line) *chain {
	for _, l := range lines {
		for _, s := range v.sources(l, kind, t) {
			for _, r := range v.anchors[l] {
				if ch, ok := v.chains.Find(memo.Key(der, s.der, r.cert.Raw)); ok && ch.leaf.kind == kind && ch.line == l {
					return ch
				}
			}
		}
	}
	return nil
}

// sources of the issuer that cost nothing.
func (v *Verifier) sources(l line, kind signingKey, t certTable) []source {
	var out []source
	if t.ask != nil {
		out = append(out, source{der: t.ask})
	}
	if c := v.issuers[issuerKey{l, kind}]; c != nil {
		out = append(out, source{issuer: c, der: c.Raw})
	}
	return out
}

// build verifies the signatures from the leaf to an anchor. The issuer comes
// from the evidence, else from AMD's bundle, else from collateral; wherever it
// comes from, a pinned root must have signed it.
func (v *Verifier) build(ctx context.Context, lf *leaf, t certTable, c attest.Collateral, a *appraisal) (*chain, error) {
	l := lf.kds.line
	if t.ark != nil && !v.pinned(l, t.ark) {
		return nil, attest.Errorf(checkChain, attest.ReasonChain, "the root in the certificate table is not a pinned root of %s", l)
	}
	var errs []error
	for _, s := range v.sources(l, lf.kind, t) {
		ch, err := v.link(lf, s)
		if err == nil {
			return ch, nil
		}
		errs = append(errs, err)
	}
	it, err := a.get(ctx, checkChain, c, attest.CollateralRef{Kind: attest.SNPChain, Key: string(l) + "/" + lf.kind.String()})
	if err == nil {
		issuers, perr := parseChainPEM(it.Data)
		if perr != nil {
			return nil, attest.Errorf(checkChain, attest.ReasonCollateralInvalid, "collateral chain of %s: %w", l, perr)
		}
		ch, lerr := v.link(lf, source{issuer: issuers[0], der: issuers[0].Raw})
		if lerr == nil {
			return ch, nil
		}
		errs = append(errs, lerr)
	}
	if len(errs) == 0 {
		return nil, err
	}
	return nil, attest.Errorf(checkChain, attest.ReasonChain, "%w", errors.Join(errs...))
}

func (v *Verifier) pinned(l line, der []byte) bool {
	for _, r := range v.anchors[l] {
		if string(r.cert.Raw) == string(der) {
			return true
		}
	}
	return false
}

// link verifies leaf <- issuer <- anchor by signature, not by name: a forged
// root that copies AMD's names fails here.
func (v *Verifier) link(lf *leaf, s source) (*chain, error) {
	issuer := s.issuer
	if issuer == nil {
		c, err := certs.Parse(s.der, certs.RSA, certs.P384)
		if err != nil {
			return nil, fmt.Errorf("issuer: %w", err)
		}
		issuer = c
	}
	if err := checkIssuer(issuer, lf.kds.line, lf.kind); err != nil {
		return nil, err
	}
	if string(issuer.RawSubject) != string(lf.cert.RawIssuer) {
		return nil, fmt.Errorf("issuer %q, want %q", issuer.Subject, lf.cert.Issuer)
	}
	err := fmt.Errorf("the issuer of %q is no pinned root of %s", issuer.Subject.CommonName, lf.kds.line)
	for _, r := range v.anchors[lf.kds.line] {
		if string(issuer.RawIssuer) != string(r.cert.RawSubject) {
			continue
		}
		key := memo.Key(lf.cert.Raw, issuer.Raw, r.cert.Raw)
		if ch, ok := v.chains.Find(key); ok && ch.leaf.kind == lf.kind {
			return ch, nil
		}
		if !r.allows(lf.cert.SignatureAlgorithm) {
			err = fmt.Errorf("signature algorithm %s", lf.cert.SignatureAlgorithm)
			continue
		}
		// The root first, so that no stranger's key is ever used to verify.
		if err = r.signed(issuer); err != nil {
			continue // roots may share a name
		}
		if err := lf.cert.CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("%s under %q: %w", lf.kind, issuer.Subject.CommonName, err)
		}
		ch := &chain{leaf: lf, issuer: issuer, root: r, line: lf.kds.line}
		v.chains.Keep(key, ch)
		return ch, nil
	}
	return nil, err
}

// checkIssuer says that a certificate is of the key that issues leaves of a kind:
// an ASVK must not issue chip keys, nor an ASK loaded keys.
func checkIssuer(c *x509.Certificate, l line, kind signingKey) error {
	want := "SEV-" + l.name()
	if kind == keyVLEK {
		want = "SEV-VLEK-" + l.name()
	}
	if c.Subject.CommonName != want {
		return fmt.Errorf("issuer %q, want %q", c.Subject.CommonName, want)
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("issuer: critical extension %s", c.UnhandledCriticalExtensions[0])
	}
	return nil
}

// signed says that the root signed an issuer of leaves.
func (r anchor) signed(issuer *x509.Certificate) error {
	if string(issuer.RawIssuer) != string(r.cert.RawSubject) {
		return fmt.Errorf("issuer %q is issued by %q, not by the root", issuer.Subject.CommonName, issuer.Issuer.CommonName)
	}
	if !r.allows(issuer.SignatureAlgorithm) {
		return fmt.Errorf("issuer %q: signature algorithm %s", issuer.Subject.CommonName, issuer.SignatureAlgorithm)
	}
	if err := issuer.CheckSignatureFrom(r.cert); err != nil {
		return fmt.Errorf("issuer %q under the root: %w", issuer.Subject.CommonName, err)
	}
	return nil
}

// checkDates refuses a chain of which any certificate is not valid at now.
func (ch *chain) checkDates(now time.Time) error {
	for _, c := range []*x509.Certificate{ch.leaf.cert, ch.issuer, ch.root.cert} {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return attest.Errorf(checkValidity, attest.ReasonValidity, "certificate %q is valid from %s to %s, now is %s",
				c.Subject.CommonName, c.NotBefore.UTC(), c.NotAfter.UTC(), now.UTC())
		}
	}
	return nil
}
