// Package teesim is a simulated SEV-SNP processor: it signs reports in AMD's
// format under a root of its own, for demonstrations and tests. Evidence made
// here proves nothing about any hardware. Only tests, `claviger dev` and the
// agent's --simulated flag may import it; a broker believes it only if it was
// given the root by name, and marks the claims simulated.
package teesim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// Marker stands in the subject of every certificate authority made here.
const Marker = "CLAVIGER TEST ROOT - SIMULATED, NOT HARDWARE"

const (
	vcek = "VCEK"
	vlek = "VLEK"
)

// Products are the product lines that can be simulated.
func Products() []string { return []string{"Milan", "Genoa", "Turin"} }

// Root plays AMD: it holds a root key (ARK), and for each product line the
// keys that certify chips (ASK) and providers' loaded keys (ASVK).
type Root struct {
	ark         *authority
	authorities map[string]*authority // by "Milan/VCEK"
}

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewRoot makes a root that is valid from an hour before now for ten years.
func NewRoot(now time.Time) (*Root, error) {
	from, to := now.Add(-time.Hour), now.AddDate(10, 0, 0)
	ark, err := newAuthority("ARK "+Marker, from, to, nil)
	if err != nil {
		return nil, fmt.Errorf("make the simulated ARK: %w", err)
	}
	r := &Root{ark: ark, authorities: map[string]*authority{}}
	for _, p := range Products() {
		for kind, cn := range map[string]string{vcek: "SEV-" + p, vlek: "SEV-VLEK-" + p} {
			if r.authorities[p+"/"+kind], err = newAuthority(cn, from, to, ark); err != nil {
				return nil, fmt.Errorf("make the simulated %s: %w", cn, err)
			}
		}
	}
	return r, nil
}

// ARK is the root certificate.
func (r *Root) ARK() *x509.Certificate { return r.ark.cert }

// ASK is the certificate that issues chip keys of a product line, or nil.
func (r *Root) ASK(product string) *x509.Certificate { return r.issuer(product, vcek) }

// ASVK is the certificate that issues loaded keys of a product line, or nil.
func (r *Root) ASVK(product string) *x509.Certificate { return r.issuer(product, vlek) }

func (r *Root) issuer(product, kind string) *x509.Certificate {
	if a := r.authorities[product+"/"+kind]; a != nil {
		return a.cert
	}
	return nil
}

// RootPEM is the public part: what a broker needs to believe devices of this root.
func (r *Root) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.ark.cert.Raw})
}

// ParseRootPEM reads what RootPEM wrote, and refuses a certificate that does
// not call itself simulated.
func ParseRootPEM(data []byte) (*x509.Certificate, error) {
	b, rest := pem.Decode(data)
	if b == nil || b.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) != 0 {
		return nil, fmt.Errorf("simulated root: want one PEM certificate")
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("simulated root: %w", err)
	}
	if !strings.Contains(c.Subject.CommonName, Marker) {
		return nil, fmt.Errorf("simulated root: the subject %q lacks %q", c.Subject.CommonName, Marker)
	}
	return c, nil
}

// CRL makes a revocation list (DER), signed by the root, valid for 30 days
// from an hour before now. It lists the given serial numbers.
func (r *Root) CRL(now time.Time, revoked ...*big.Int) ([]byte, error) {
	tmpl := &x509.RevocationList{
		Number:     big.NewInt(now.UnixNano()),
		ThisUpdate: now.Add(-time.Hour),
		NextUpdate: now.AddDate(0, 0, 30),
	}
	for _, s := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: s, RevocationTime: tmpl.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, r.ark.cert, r.ark.key)
	if err != nil {
		return nil, fmt.Errorf("sign the simulated CRL: %w", err)
	}
	return der, nil
}

// Collateral is the revocation list for every product line, in the form that
// verifiers ask for it.
func (r *Root) Collateral(now time.Time, revoked ...*big.Int) (map[attest.CollateralRef]attest.CollateralItem, error) {
	crl, err := r.CRL(now, revoked...)
	if err != nil {
		return nil, err
	}
	m := map[attest.CollateralRef]attest.CollateralItem{}
	for _, p := range Products() {
		for _, key := range []string{strings.ToLower(p) + "/vcek", strings.ToLower(p) + "/vlek"} {
			m[attest.CollateralRef{Kind: attest.SNPCRL, Key: key}] = attest.CollateralItem{Data: crl, FetchedAt: now, Source: "bundle"}
		}
	}
	return m, nil
}

// newAuthority makes a CA certificate signed by parent, or self-signed.
func newAuthority(cn string, from, to time.Time, parent *authority) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: cn, Organization: []string{Marker}},
		NotBefore:             from,
		NotAfter:              to,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SignatureAlgorithm:    x509.ECDSAWithSHA384,
	}
	signer, issuer := key, tmpl
	if parent != nil {
		signer, issuer = parent.key, parent.cert
		tmpl.KeyUsage = x509.KeyUsageCertSign
		tmpl.MaxPathLenZero = true
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{key: key, cert: cert}, nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
