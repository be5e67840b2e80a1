package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/pemfile"
)

const (
	pkiMount = "pki"
	maxCSR   = 16 << 10
	// clockSlack is how far Vault's clock may be ahead of ours.
	clockSlack = 5 * time.Minute
)

// names are what a certificate may be for.
type names struct {
	commonName string
	dns, uris  []string
}

// namesOf are the names of the catalog entry. The guest never chooses one.
func namesOf(e broker.CatalogEntry) names {
	list := func(s string) []string {
		return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
	}
	return names{e.Options["common_name"], list(e.Options["dns_sans"]), list(e.Options["uri_sans"])}
}

// fetchPKI has the guest's key certified, for the names of the entry, and for no longer than limit, if that is not 0.
func (s *Source) fetchPKI(ctx context.Context, e broker.CatalogEntry, der []byte, limit time.Duration) (broker.Secret, error) {
	mount, allowed := cmp.Or(e.Mount, pkiMount), namesOf(e)
	csr, err := checkCSR(der, allowed)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s/%s: %w: %w", mount, e.Key, broker.ErrInput, err)
	}
	body := map[string]any{
		"csr":         string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		"common_name": allowed.commonName,
		"alt_names":   strings.Join(allowed.dns, ","),
		"uri_sans":    strings.Join(allowed.uris, ","),
		// Else Vault makes the common name a DNS name too.
		"exclude_cn_from_sans": true,
	}
	if ttl := e.Options["ttl"]; ttl != "" {
		body["ttl"] = ttl
		if own, err := duration(ttl); limit > 0 && (err != nil || own > limit) {
			body["ttl"] = max(1, seconds(limit))
		}
	} else if limit > 0 {
		body["ttl"] = max(1, seconds(limit))
	}
	asked := time.Now()
	r := write(mount, "sign/"+e.Key, body)
	r.guest = true
	got, err := s.call(ctx, r)
	if err != nil {
		if status(err) == http.StatusBadRequest && says(err, "unknown role") {
			return broker.Secret{}, fmt.Errorf("%w: %w", broker.ErrNoSecret, err)
		}
		return broker.Secret{}, err
	}
	if got == nil {
		return broker.Secret{}, fmt.Errorf("vault: %s/sign/%s: %w", mount, e.Key, broker.ErrNoSecret)
	}
	leaf, chain, err := certificates(got.Data)
	if err == nil {
		err = checkLeaf(leaf, csr, allowed)
	}
	if err == nil && limit > 0 && leaf.NotAfter.After(asked.Add(limit+clockSlack)) {
		err = fmt.Errorf("the certificate lives until %s, and policy and catalog allow %s", leaf.NotAfter.UTC().Format(time.RFC3339), limit)
	}
	if err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s/sign/%s: %w", mount, e.Key, err)
	}
	serial, _ := got.Data["serial_number"].(string)
	return broker.Secret{Value: chain, ContentType: "application/pem-certificate-chain", Version: serial, Expires: leaf.NotAfter}, nil
}

// duration reads Vault's form of one: seconds, or Go's, with days.
func duration(s string) (time.Duration, error) {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// checkCSR refuses a request for more than is allowed, or for a key that is too
// weak or not the guest's.
func checkCSR(der []byte, allowed names) (*x509.CertificateRequest, error) {
	if len(der) == 0 || len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request of %d bytes, want 1 to %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := certs.CheckKey(csr.PublicKey, certs.RSA, certs.P256, certs.P384, certs.Ed25519); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil { // a key that somebody else holds
		return nil, fmt.Errorf("certificate request: signature by its own key: %w", err)
	}
	cn := 0
	for _, a := range csr.Subject.Names {
		if !a.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) || cn > 0 {
			return nil, fmt.Errorf("certificate request: subject has %v, want a common name only", a.Type)
		}
		cn++
	}
	if csr.Subject.CommonName != "" && csr.Subject.CommonName != allowed.commonName {
		return nil, fmt.Errorf("certificate request: common name %q, want %q", csr.Subject.CommonName, allowed.commonName)
	}
	sans := 0
	for _, x := range csr.Extensions {
		if !x.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			return nil, fmt.Errorf("certificate request: asks for extension %v", x.Id)
		}
		// Go's parser passes over kinds of names that it does not know.
		var all []asn1.RawValue
		if rest, err := asn1.Unmarshal(x.Value, &all); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("certificate request: malformed alternative names")
		}
		sans += len(all)
	}
	if sans != len(csr.DNSNames)+len(csr.URIs) {
		return nil, fmt.Errorf("certificate request: alternative names that are neither DNS names nor URIs")
	}
	return csr, within(csr.DNSNames, uris(csr.URIs), allowed)
}

func within(dns, uris []string, allowed names) error {
	for _, n := range dns {
		if !slices.ContainsFunc(allowed.dns, func(a string) bool { return strings.EqualFold(a, n) }) {
			return fmt.Errorf("DNS name %q is not one of %q", n, allowed.dns)
		}
	}
	for _, n := range uris {
		if !slices.Contains(allowed.uris, n) {
			return fmt.Errorf("URI %q is not one of %q", n, allowed.uris)
		}
	}
	return nil
}

func uris[T fmt.Stringer](in []T) []string {
	out := make([]string, len(in))
	for i, u := range in {
		out[i] = u.String()
	}
	return out
}

// certificates reads Vault's answer: the leaf, and all of it as PEM, leaf first, without a self-signed root's repetition.
func certificates(data map[string]any) (*x509.Certificate, []byte, error) {
	text, _ := data["certificate"].(string)
	leaf, err := one(text)
	if err != nil {
		return nil, nil, fmt.Errorf("the answer's certificate: %w", err)
	}
	var issuers []string
	if list, _ := data["ca_chain"].([]any); len(list) > 0 {
		for _, c := range list {
			t, _ := c.(string)
			issuers = append(issuers, t)
		}
	} else if t, _ := data["issuing_ca"].(string); t != "" {
		issuers = []string{t}
	}
	out := toPEM(leaf)
	for i, t := range issuers {
		c, err := one(t)
		if err != nil {
			return nil, nil, fmt.Errorf("the answer's issuer %d: %w", i, err)
		}
		out = append(out, toPEM(c)...)
	}
	return leaf, out, nil
}

// one reads the only certificate of a text of Vault's.
func one(text string) (*x509.Certificate, error) {
	certs, err := pemfile.BareCertificates([]byte(text))
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%d certificates, want one", len(certs))
	}
	return certs[0], nil
}

func toPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// checkLeaf holds what Vault signed against what was asked: a role that takes
// its names from the request, or makes CAs, gives out more than the catalog says.
func checkLeaf(leaf *x509.Certificate, csr *x509.CertificateRequest, allowed names) error {
	switch {
	case !bytes.Equal(leaf.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo):
		return fmt.Errorf("the certificate is for another key")
	case leaf.IsCA:
		return fmt.Errorf("the role makes CA certificates")
	case leaf.Subject.CommonName != "" && leaf.Subject.CommonName != allowed.commonName:
		return fmt.Errorf("the certificate has common name %q, want %q", leaf.Subject.CommonName, allowed.commonName)
	case len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		return fmt.Errorf("the certificate has IP or e-mail addresses")
	case len(leaf.DNSNames) < len(allowed.dns) || len(leaf.URIs) < len(allowed.uris) || allowed.commonName != "" && leaf.Subject.CommonName == "":
		return fmt.Errorf("the certificate lacks names of the entry: set use_csr_common_name and use_csr_sans of the role to false")
	}
	if err := within(leaf.DNSNames, uris(leaf.URIs), allowed); err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	return nil
}
