package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/pemfile"
)

// intelRootSHA256 is the SHA-256 of the Intel SGX Root CA certificate (DER),
// serial 22650cd65a9d3489f383b49552bf501b392706ac, valid 2018-05-21 to 2049-12-31.
const intelRootSHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

// intelPEM holds that root, and the PCK Platform and Processor CAs below it
// (valid until 2033). Quotes bring their own; collateral is checked without one.
//
//go:embed intel.pem
var intelPEM []byte

// Roles of Intel's certificates, by the end of their common name. The root
// signs CAs and the TCB signing key alike, so the name is what keeps one from
// standing in for the other.
const (
	cnPlatformCA  = "Intel SGX PCK Platform CA"
	cnProcessorCA = "Intel SGX PCK Processor CA"
	cnPCK         = "Intel SGX PCK Certificate"
	cnTCBSigning  = "Intel SGX TCB Signing"
)

// maxChain bounds a PEM chain, in bytes; Intel's are below 4 KiB.
const maxChain = 32 << 10

// PCK is what the certificate of a Provisioning Certification Key says about
// the platform (extension 1.2.840.113741.1.13.1).
type PCK struct {
	PPID       [16]byte
	CPUSVN     [16]byte
	Components [16]uint8 // the CPUSVN, decoded into SGX TCB components
	PCESVN     uint16
	PCEID      [2]byte
	FMSPC      [6]byte
	SGXType    int          // 0 standard, 1 scalable, 2 scalable with integrity
	Platform   *PCKPlatform // set if issued by the Platform CA
	CA         string       // "platform" or "processor"
}

// PCKPlatform is what only certificates of multi-package platforms say.
type PCKPlatform struct {
	InstanceID      [16]byte `json:"-"` // the claim piid
	DynamicPlatform bool     `json:"dynamic_platform"`
	CachedKeys      bool     `json:"cached_keys"`
	SMTEnabled      bool     `json:"smt_enabled"`
}

// ChipID is the platform instance id, which names a machine of several
// packages, or else the PPID, in hex; empty where the certificate hides it.
func (p PCK) ChipID() string {
	id := p.PPID
	if p.Platform != nil {
		id = p.Platform.InstanceID
	}
	if id == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// Identities are what names the machine beside ChipID: the PPID where there is
// a platform instance id, which a factory reset may change.
func (p PCK) Identities() []string {
	if p.Platform == nil || p.PPID == [16]byte{} {
		return nil
	}
	return []string{hex.EncodeToString(p.PPID[:])}
}

// pckChain is a chain whose signatures lead to a trusted root. Its dates and
// revocation are looked at on each use.
type pckChain struct {
	leaf, ca, root *x509.Certificate
	key            *ecdsa.PublicKey // of the leaf
	pck            PCK
	simulated      bool
}

// pckChain verifies the signatures of a PCK chain: leaf, Platform or Processor
// CA, root.
func (v *Verifier) pckChain(chain []byte) (*pckChain, error) {
	return v.chains.Get(memo.Key([]byte("pck chain"), chain), func() (*pckChain, error) {
		certs, err := parseChain(chain)
		if err != nil {
			return nil, err
		}
		if len(certs) != 3 {
			return nil, faultf(attest.ReasonChain, "PCK chain of %d certificates, want 3", len(certs))
		}
		c := &pckChain{leaf: certs[0], ca: certs[1], root: certs[2]}
		if c.simulated, err = v.checkRoot(c.root); err != nil {
			return nil, err
		}
		if err := checkIssued(c.ca, c.root); err != nil {
			return nil, err
		}
		if err := checkIssued(c.leaf, c.ca); err != nil {
			return nil, err
		}
		switch {
		case hasRole(c.ca, cnPlatformCA):
			c.pck.CA = "platform"
		case hasRole(c.ca, cnProcessorCA):
			c.pck.CA = "processor"
		default:
			return nil, faultf(attest.ReasonChain, "%q is not a PCK CA", c.ca.Subject.CommonName)
		}
		if c.leaf.IsCA || !hasRole(c.leaf, cnPCK) {
			return nil, faultf(attest.ReasonChain, "%q is not a PCK certificate", c.leaf.Subject.CommonName)
		}
		c.key = c.leaf.PublicKey.(*ecdsa.PublicKey) // checkIssued saw to it
		return c, c.pck.parse(c.leaf)
	})
}

// checkRoot reports whether root is a test root; it must be that or Intel's.
func (v *Verifier) checkRoot(root *x509.Certificate) (simulated bool, err error) {
	sum := sha256.Sum256(root.Raw)
	if hex.EncodeToString(sum[:]) == intelRootSHA256 {
		return false, nil
	}
	if slices.ContainsFunc(v.testRoots, root.Equal) {
		return true, nil
	}
	return false, faultf(attest.ReasonChain, "root %q (SHA-256 %x) is not trusted", root.Subject.CommonName, sum)
}

// parseChain parses PEM certificates, and nothing else but space and NUL after them.
func parseChain(b []byte) ([]*x509.Certificate, error) {
	if len(b) > maxChain {
		return nil, malformed("certificate chain of %d bytes", len(b))
	}
	b = bytes.Trim(b, " \t\r\n\x00")
	if len(b) == 0 {
		return nil, nil
	}
	chain, err := pemfile.BareCertificates(b, certs.P256, certs.P384) // of which checkIssued takes P-256
	if err != nil {
		return nil, malformed("certificate chain is not PEM certificates: %w", err)
	}
	if len(chain) > 4 {
		return nil, malformed("%d certificates in a chain, want at most 4", len(chain))
	}
	return chain, nil
}

// checkIssued checks that issuer, a CA, signed cert, and that both are what Intel issues.
func checkIssued(cert, issuer *x509.Certificate) error {
	name := cert.Subject.CommonName
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return faultf(attest.ReasonChain, "%q was not issued by %q", name, issuer.Subject.CommonName)
	}
	if len(cert.UnhandledCriticalExtensions) > 0 {
		return faultf(attest.ReasonChain, "%q has unknown critical extensions", name)
	}
	for _, c := range []*x509.Certificate{cert, issuer} {
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() {
			return faultf(attest.ReasonUnsupported, "%q does not hold a P-256 key", c.Subject.CommonName)
		}
	}
	if !issuer.BasicConstraintsValid || !issuer.IsCA {
		return faultf(attest.ReasonChain, "%q is not a CA", issuer.Subject.CommonName)
	}
	if err := cert.CheckSignatureFrom(issuer); err != nil {
		return faultf(attest.ReasonChain, "signature of %q: %w", name, err)
	}
	return nil
}

func hasRole(cert *x509.Certificate, role string) bool {
	return strings.HasSuffix(cert.Subject.CommonName, role)
}

// checkDates is used on every appraisal, however the chain was obtained.
func checkDates(now time.Time, certs ...*x509.Certificate) error {
	for _, c := range certs {
		if now.Before(c.NotBefore) {
			return faultf(attest.ReasonValidity, "%q is not valid before %s", c.Subject.CommonName, c.NotBefore.Format(time.RFC3339))
		}
		if now.After(c.NotAfter) {
			return faultf(attest.ReasonValidity, "%q expired on %s", c.Subject.CommonName, c.NotAfter.Format(time.RFC3339))
		}
	}
	return nil
}

// parse reads the SGX extension ("Intel SGX PCK Certificate and CRL Profile
// Specification", 1.4). Every object identifier counts once.
func (p *PCK) parse(cert *x509.Certificate) error {
	base := asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
	var raw []byte
	for _, e := range cert.Extensions {
		if e.Id.Equal(base) {
			raw = e.Value // crypto/x509 refuses duplicate extensions
		}
	}
	if raw == nil {
		return malformed("PCK certificate without the SGX extension")
	}
	top, err := parseItems(raw, base)
	if err != nil {
		return err
	}
	tcb, err := parseItems(top[2], append(slices.Clone(base), 2))
	if err != nil {
		return err
	}
	for i := range p.Components {
		n, err := parseInt(tcb[i+1], 0xff)
		if err != nil {
			return err
		}
		p.Components[i] = uint8(n)
	}
	n, err := parseInt(tcb[17], 0xffff)
	if err != nil {
		return err
	}
	p.PCESVN = uint16(n)
	for _, f := range []struct{ der, dst []byte }{
		{tcb[18], p.CPUSVN[:]}, {top[1], p.PPID[:]}, {top[3], p.PCEID[:]}, {top[4], p.FMSPC[:]},
	} {
		if err := parseOctets(f.der, f.dst); err != nil {
			return err
		}
	}
	var typ asn1.Enumerated
	if rest, err := asn1.Unmarshal(top[5], &typ); err != nil || len(rest) > 0 {
		return malformed("SGX extension: SGX type is not an ENUMERATED")
	}
	p.SGXType = int(typ)
	if top[6] == nil {
		return nil
	}
	p.Platform = &PCKPlatform{}
	if err := parseOctets(top[6], p.Platform.InstanceID[:]); err != nil {
		return err
	}
	if top[7] == nil {
		return nil
	}
	conf, err := parseItems(top[7], append(slices.Clone(base), 7))
	if err != nil {
		return err
	}
	for i, dst := range []*bool{&p.Platform.DynamicPlatform, &p.Platform.CachedKeys, &p.Platform.SMTEnabled} {
		if conf[i+1] == nil {
			continue
		}
		if rest, err := asn1.Unmarshal(conf[i+1], dst); err != nil || len(rest) > 0 {
			return malformed("SGX extension: configuration flag %d is not a BOOLEAN", i+1)
		}
	}
	return nil
}

// parseItems reads SEQUENCE OF SEQUENCE { OID, value } and returns the DER of
// each value by the last arc of its OID, which must lie right under base.
func parseItems(der []byte, base asn1.ObjectIdentifier) (map[int][]byte, error) {
	var seq []struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &seq); err != nil || len(rest) > 0 {
		return nil, malformed("SGX extension %v is not a sequence of items", base)
	}
	items := make(map[int][]byte, len(seq))
	for _, it := range seq {
		n := len(it.ID) - 1
		if n != len(base) || !it.ID[:n].Equal(base) {
			return nil, malformed("SGX extension: %v outside %v", it.ID, base)
		}
		if _, dup := items[it.ID[n]]; dup {
			return nil, malformed("SGX extension: %v twice", it.ID)
		}
		items[it.ID[n]] = it.Value.FullBytes
	}
	return items, nil
}

func parseInt(der []byte, max int64) (int64, error) {
	n := new(big.Int)
	if rest, err := asn1.Unmarshal(der, &n); err != nil || len(rest) > 0 {
		return 0, malformed("SGX extension: SVN is not an INTEGER")
	}
	if !n.IsInt64() || n.Sign() < 0 || n.Int64() > max {
		return 0, malformed("SGX extension: SVN %v out of range", n)
	}
	return n.Int64(), nil
}

func parseOctets(der, dst []byte) error {
	var b []byte
	if rest, err := asn1.Unmarshal(der, &b); err != nil || len(rest) > 0 || len(b) != len(dst) {
		return malformed("SGX extension: want an OCTET STRING of %d bytes", len(dst))
	}
	copy(dst, b)
	return nil
}

// crl is a revocation list whose signature verified.
type crl struct {
	issuer                 string
	thisUpdate, nextUpdate time.Time
	number                 *big.Int        // nil: none
	revoked                map[string]bool // by serial number, decimal
}

// crl verifies a DER CRL against its issuer.
func (v *Verifier) crl(der []byte, issuer *x509.Certificate) (*crl, error) {
	return v.crls.Get(memo.Key([]byte("crl"), der, issuer.Raw), func() (*crl, error) {
		if len(der) > maxCollateral {
			return nil, invalid("CRL of %d bytes", len(der))
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, invalid("parse CRL: %w", err)
		}
		if n := len(der) - len(list.Raw); n != 0 {
			return nil, invalid("%d bytes after the CRL", n) // x509 lets them pass
		}
		// A list of another CA says nothing about this one's certificates.
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
			return nil, invalid("CRL of %q, want %q", list.Issuer, issuer.Subject)
		}
		if err := list.CheckSignatureFrom(issuer); err != nil {
			return nil, invalid("CRL signature: %w", err)
		}
		// A critical extension can change what the list covers (delta, indirect,
		// partitioned): what it leaves out would count as not revoked.
		for _, e := range list.Extensions {
			if e.Critical {
				return nil, invalid("CRL with critical extension %v", e.Id)
			}
		}
		if list.NextUpdate.IsZero() {
			return nil, invalid("CRL without nextUpdate")
		}
		c := &crl{issuer: issuer.Subject.CommonName, thisUpdate: list.ThisUpdate, nextUpdate: list.NextUpdate, number: list.Number, revoked: map[string]bool{}}
		for _, e := range list.RevokedCertificateEntries {
			c.revoked[e.SerialNumber.String()] = true
		}
		return c, nil
	})
}

func (c *crl) edition() memo.Edition { return memo.Edition{Issued: c.thisUpdate, Number: c.number} }

// check looks certs up. The dates come second: a certificate that an old list
// revokes is still revoked.
func (c *crl) check(now time.Time, certs ...*x509.Certificate) error {
	for _, cert := range certs {
		if c.revoked[cert.SerialNumber.String()] {
			return faultf(attest.ReasonRevoked, "%q, serial %x, is revoked by %q", cert.Subject.CommonName, cert.SerialNumber, c.issuer)
		}
	}
	return checkUpdates("CRL of "+c.issuer, c.thisUpdate, c.nextUpdate, now)
}

// checkUpdates checks the period of a signed list or document.
func checkUpdates(what string, issued, next, now time.Time) error {
	if now.Before(issued) {
		return faultf(attest.ReasonValidity, "%s is not valid before %s", what, issued.Format(time.RFC3339))
	}
	if now.After(next) {
		return faultf(attest.ReasonCollateralExpired, "%s was due for renewal on %s", what, next.Format(time.RFC3339))
	}
	return nil
}
