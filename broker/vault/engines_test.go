package vault

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/byok"
)

func csrFor(t testing.TB, key crypto.Signer, tmpl x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func uri(t testing.TB, s string) []*url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return []*url.URL{u}
}

const spiffe = "spiffe://claviger.internal/vm-1"

// pkiEntry is a catalog entry with its variables filled in.
var pkiEntry = broker.CatalogEntry{Kind: broker.KindPKI, Key: "workload", Options: map[string]string{
	"common_name": "vm-1.claviger.internal", "dns_sans": "vm-1.claviger.internal, www.claviger.internal", "uri_sans": spiffe, "ttl": "1h",
}}

func TestPKI(t *testing.T) {
	d := deploy(t, "pki")
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "RSA": rsaKey(t, 2048), "Ed25519": ed} {
		t.Run(name, func(t *testing.T) {
			// The request has no names: the certificate has the entry's all the same.
			s := d.get(t, broker.Granted{Entry: pkiEntry, Input: csrFor(t, key, x509.CertificateRequest{})})
			block, rest := pem.Decode(s.Value)
			leaf, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(leaf.PublicKey) {
				t.Error("not the guest's key")
			}
			if leaf.Subject.String() != "CN=vm-1.claviger.internal" || len(leaf.DNSNames) != 2 || len(leaf.URIs) != 1 || leaf.URIs[0].String() != spiffe {
				t.Errorf("subject %s, DNS %q, URIs %q", leaf.Subject, leaf.DNSNames, leaf.URIs)
			}
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(rest) {
				t.Fatal("no chain")
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "vm-1.claviger.internal"}); err != nil {
				t.Error(err)
			}
			if s.ContentType != "application/pem-certificate-chain" || s.Version == "" || !s.Expires.Equal(leaf.NotAfter) || time.Until(leaf.NotAfter) > 61*time.Minute {
				t.Errorf("version %q, %s, expires %s", s.Version, s.ContentType, s.Expires)
			}
		})
	}
	t.Run("a common name is no DNS name", func(t *testing.T) {
		e := pkiEntry
		e.Options = map[string]string{"common_name": "vm-1.claviger.internal"}
		block, _ := pem.Decode(d.get(t, broker.Granted{Entry: e, Input: csrFor(t, ed, x509.CertificateRequest{})}).Value)
		if leaf, err := x509.ParseCertificate(block.Bytes); err != nil || len(leaf.DNSNames) > 0 {
			t.Errorf("DNS names %q: %v", leaf.DNSNames, err)
		}
	})
	t.Run("a request for more never reaches Vault", func(t *testing.T) {
		before := d.src.Stats().Requests
		in := csrFor(t, ed, x509.CertificateRequest{DNSNames: []string{"evil.example"}})
		if _, err := d.fetch(t, broker.Granted{Entry: pkiEntry, Input: in}); !errors.Is(err, broker.ErrInput) || !strings.Contains(err.Error(), "evil.example") {
			t.Errorf("got %v", err)
		}
		if d.src.Stats().Requests != before {
			t.Error("Vault was asked")
		}
	})
	t.Run("unknown role is not the guest's fault", func(t *testing.T) {
		e := pkiEntry
		e.Key = "none"
		if _, err := d.fetch(t, broker.Granted{Entry: e, Input: csrFor(t, ed, x509.CertificateRequest{})}); err == nil || errors.Is(err, broker.ErrInput) {
			t.Errorf("got %v", err)
		}
	})
	// A role that takes names from the request, or gives fewer, is noticed.
	t.Run("role that trusts the request", func(t *testing.T) {
		d.write(t, "pki/roles/workload", map[string]any{"allow_any_name": true, "allowed_uri_sans": "*", "require_cn": false, "key_type": "any"})
		_, err := d.fetch(t, broker.Granted{Entry: pkiEntry, Input: csrFor(t, ed, x509.CertificateRequest{})})
		if err == nil || !strings.Contains(err.Error(), "use_csr_common_name") {
			t.Errorf("got %v", err)
		}
	})
}

// What a guest may not ask for never reaches Vault.
func TestCSRRefused(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	good := csrFor(t, key, x509.CertificateRequest{Subject: pkix.Name{CommonName: "vm-1.claviger.internal"}, DNSNames: []string{"WWW.claviger.internal"}, URIs: uri(t, spiffe)})
	if _, err := checkCSR(good, namesOf(pkiEntry)); err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	caRequest, err := asn1.Marshal(struct{ CA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	// A registered id (tag 8), which Go's parser does not show.
	other, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{42, 3}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		csr  []byte
		want string
	}{
		"none":              {nil, "0 bytes"},
		"huge":              {make([]byte, maxCSR+1), "bytes"},
		"garbage":           {[]byte("-----BEGIN"), "certificate request"},
		"trailing bytes":    {append(bytes.Clone(good), 0), "trailing"},
		"signature":         {forged, "signature"},
		"RSA 1024":          {weakRSA(t), "1024 bits"},
		"P-224":             {csrFor(t, ecKey(t, elliptic.P224()), x509.CertificateRequest{}), "P-224"},
		"P-521":             {csrFor(t, ecKey(t, elliptic.P521()), x509.CertificateRequest{}), "P-521"},
		"common name":       {csrFor(t, key, x509.CertificateRequest{Subject: pkix.Name{CommonName: "vm-2.claviger.internal"}}), "vm-2.claviger.internal"},
		"organisation":      {csrFor(t, key, x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"admins"}}}), "2.5.4.10"},
		"two common names":  {csrFor(t, key, x509.CertificateRequest{Subject: pkix.Name{CommonName: "vm-1.claviger.internal", ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "vm-1.claviger.internal"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "root"}}}}), "2.5.4.3"},
		"DNS name":          {csrFor(t, key, x509.CertificateRequest{DNSNames: []string{"evil.example"}}), "evil.example"},
		"wildcard":          {csrFor(t, key, x509.CertificateRequest{DNSNames: []string{"*.claviger.internal"}}), "*.claviger.internal"},
		"URI":               {csrFor(t, key, x509.CertificateRequest{URIs: uri(t, "spiffe://claviger.internal/vm-2")}), "vm-2"},
		"IP address":        {csrFor(t, key, x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}), "neither DNS"},
		"e-mail address":    {csrFor(t, key, x509.CertificateRequest{EmailAddresses: []string{"root@claviger.internal"}}), "neither DNS"},
		"unknown SAN":       {csrFor(t, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: other}}}), "neither DNS"},
		"basic constraints": {csrFor(t, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: caRequest}}}), "2.5.29.19"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := checkCSR(c.csr, namesOf(pkiEntry)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	// Without names in the entry, none may be asked for.
	if _, err := checkCSR(good, names{}); err == nil {
		t.Error("names accepted where the entry has none")
	}
}

// weakRSA is a request by a 1024-bit key, which Go refuses to make by itself.
func weakRSA(t testing.TB) []byte {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	return csrFor(t, rsaKey(t, 1024), x509.CertificateRequest{})
}

// A Vault that signs something else is not believed.
func TestCheckLeaf(t *testing.T) {
	key, other := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	csr, err := x509.ParseCertificateRequest(csrFor(t, key, x509.CertificateRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(pub crypto.PublicKey, edit func(*x509.Certificate)) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cn"}, DNSNames: []string{"a"}, URIs: uri(t, spiffe), BasicConstraintsValid: true}
		edit(c)
		der, err := x509.CreateCertificate(rand.Reader, c, c, pub, other)
		if err != nil {
			t.Fatal(err)
		}
		c, err = x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	allowed := names{"cn", []string{"a"}, []string{spiffe}}
	if err := checkLeaf(leaf(key.Public(), func(*x509.Certificate) {}), csr, allowed); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*x509.Certificate{
		"another key": leaf(other.Public(), func(*x509.Certificate) {}),
		"a CA":        leaf(key.Public(), func(c *x509.Certificate) { c.IsCA = true }),
		"common name": leaf(key.Public(), func(c *x509.Certificate) { c.Subject.CommonName = "root" }),
		"no name":     leaf(key.Public(), func(c *x509.Certificate) { c.Subject.CommonName = "" }),
		"DNS name":    leaf(key.Public(), func(c *x509.Certificate) { c.DNSNames = []string{"a", "b"} }),
		"IP address":  leaf(key.Public(), func(c *x509.Certificate) { c.IPAddresses = []net.IP{{1, 2, 3, 4}} }),
		"no URI":      leaf(key.Public(), func(c *x509.Certificate) { c.URIs = nil }),
	} {
		if err := checkLeaf(c, csr, allowed); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTransit(t *testing.T) {
	d := deploy(t, "transit")
	encrypt := func(key, plain string) string {
		return d.write(t, "transit/encrypt/"+key, map[string]any{"plaintext": base64.StdEncoding.EncodeToString([]byte(plain))}).Data["ciphertext"].(string)
	}
	d.write(t, "transit/keys/other", nil)
	entry := broker.CatalogEntry{Kind: broker.KindTransitDecrypt, Key: "app"}

	t.Run("decrypt", func(t *testing.T) {
		good := encrypt("app", "hello")
		if s := d.get(t, broker.Granted{Entry: entry, Input: []byte(good)}); string(s.Value) != "hello" {
			t.Errorf("got %q", s.Value)
		}
		flipped := []byte(good)
		flipped[20] ^= 1
		for name, in := range map[string]string{
			"none": "", "no prefix": good[9:], "another key": encrypt("other", "x"), "changed": string(flipped), "cut": good[:30],
			"version 99": strings.Replace(good, ":v1:", ":v99:", 1), "version 0": strings.Replace(good, ":v1:", ":v0:", 1),
			"line break": good + "\n", "huge": "vault:v1:" + strings.Repeat("A", maxCiphertext),
		} {
			if _, err := d.fetch(t, broker.Granted{Entry: entry, Input: []byte(in)}); !errors.Is(err, broker.ErrInput) {
				t.Errorf("%s: got %v, want ErrInput", name, err)
			}
		}
		if d.src.Stats().Open {
			t.Error("a guest's bad input opened the circuit breaker")
		}
	})
	t.Run("decrypt with a context", func(t *testing.T) {
		d.write(t, "sys/policies/acl/claviger-broker-transit", map[string]any{"policy": `path "transit/*" { capabilities = ["create", "read", "update", "delete"] }`})
		d.write(t, "transit/keys/derived", map[string]any{"derived": true})
		c := d.write(t, "transit/encrypt/derived", map[string]any{"plaintext": "aGk=", "context": base64.StdEncoding.EncodeToString([]byte("vm-1"))}).Data["ciphertext"].(string)
		e := broker.CatalogEntry{Kind: broker.KindTransitDecrypt, Key: "derived", Options: map[string]string{"context": "vm-1"}}
		if s := d.get(t, broker.Granted{Entry: e, Input: []byte(c)}); string(s.Value) != "hi" {
			t.Errorf("got %q", s.Value)
		}
		e.Options = map[string]string{"context": "vm-2"}
		if _, err := d.fetch(t, broker.Granted{Entry: e, Input: []byte(c)}); !errors.Is(err, broker.ErrInput) {
			t.Errorf("another machine's ciphertext: %v", err)
		}
		e.Key = "none"
		if _, err := d.fetch(t, broker.Granted{Entry: e, Input: []byte(c)}); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("missing key: %v", err)
		}
	})
	t.Run("data key", func(t *testing.T) {
		type datakey struct{ Plaintext, Ciphertext string }
		e := broker.CatalogEntry{Kind: broker.KindTransitDatakey, Key: "app"}
		one, two := parse[datakey](t, d.get(t, broker.Granted{Entry: e})), parse[datakey](t, d.get(t, broker.Granted{Entry: e}))
		if one == two {
			t.Error("the same key twice")
		}
		s := d.get(t, broker.Granted{Entry: entry, Input: []byte(one.Ciphertext)})
		if base64.StdEncoding.EncodeToString(s.Value) != one.Plaintext || len(s.Value) != 32 {
			t.Errorf("%d bytes, not what the ciphertext holds", len(s.Value))
		}
		e.Options = map[string]string{"bits": "512"}
		if k := parse[datakey](t, d.get(t, broker.Granted{Entry: e})); base64.StdEncoding.DecodedLen(len(k.Plaintext)) < 64 {
			t.Errorf("%d characters for 512 bits", len(k.Plaintext))
		}
		e.Options = map[string]string{"bits": "40"}
		if _, err := d.fetch(t, broker.Granted{Entry: e}); err == nil {
			t.Error("40 bits accepted")
		}
	})
}

// The guest opens an exported key, and with it a ciphertext that Vault made.
func TestTransitExport(t *testing.T) {
	d := deploy(t, "transit")
	entry := broker.CatalogEntry{Kind: broker.KindTransitExport, Key: "export"}
	spki := func(pub any) []byte {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	left := func() int {
		list, err := d.root.Logical().List("transit/keys")
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Data["keys"].([]any))
	}
	before := left()
	for _, bits := range []int{3072, 4096} {
		key := rsaKey(t, bits)
		s := d.get(t, broker.Granted{Entry: entry, PublicKey: spki(key.Public())})
		if s.ContentType != "application/vnd.claviger.byok" {
			t.Errorf("content type %q", s.ContentType)
		}
		raw, err := byok.UnwrapBYOK(key, s.Value)
		if err != nil {
			t.Fatal(err)
		}
		c := d.write(t, "transit/encrypt/export", map[string]any{"plaintext": base64.StdEncoding.EncodeToString([]byte("attack at dawn"))}).Data["ciphertext"].(string)
		if got := openGCM(t, raw, c, "vault:v"+s.Version+":"); got != "attack at dawn" {
			t.Errorf("opened %q", got)
		}
		// A new version is what the next guest gets.
		d.write(t, "transit/keys/export/rotate", nil)
	}
	if left() != before {
		t.Errorf("%d keys left over in Vault", left()-before)
	}
	for name, pub := range map[string][]byte{
		"none": nil, "garbage": []byte("x"), "P-256": spki(ecKey(t, elliptic.P256()).Public()), "RSA 2048": spki(rsaKey(t, 2048).Public()),
	} {
		if _, err := d.fetch(t, broker.Granted{Entry: entry, PublicKey: pub}); !errors.Is(err, broker.ErrInput) {
			t.Errorf("%s: got %v, want ErrInput", name, err)
		}
	}
	t.Run("a key that is not exportable stays", func(t *testing.T) {
		d.write(t, "sys/policies/acl/claviger-broker-transit", map[string]any{"policy": `path "transit/*" { capabilities = ["create", "read", "update", "delete"] }`})
		pub := spki(rsaKey(t, 3072).Public())
		if _, err := d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindTransitExport, Key: "app"}, PublicKey: pub}); err == nil || !strings.Contains(err.Error(), "not exportable") {
			t.Errorf("got %v", err)
		}
		if _, err := d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindTransitExport, Key: "none"}, PublicKey: pub}); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("missing key: %v", err)
		}
		if left() != before {
			t.Errorf("%d keys left over in Vault", left()-before)
		}
	})
}

// openGCM opens a ciphertext of a Transit aes256-gcm96 key: nonce ‖ ciphertext ‖ tag.
func openGCM(t testing.TB, key []byte, text, prefix string) string {
	t.Helper()
	b64, ok := strings.CutPrefix(text, prefix)
	if !ok {
		t.Fatalf("ciphertext %s is not of version %s", text, prefix)
	}
	sealed, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := gcm.Open(nil, sealed[:12], sealed[12:], nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

func TestKVVersions(t *testing.T) {
	t.Parallel() // it mostly waits
	d := deploy(t)
	kv := d.root.KVv2("secret")
	put := func(key string, data map[string]any) {
		if _, err := kv.Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
	}
	put("db/a", map[string]any{"value": "one"})
	put("db/a", map[string]any{"value": "two", "z": 1, "a<b": []any{true, nil}})
	put("db/a", map[string]any{"value": "three"})
	entry := broker.CatalogEntry{Key: "db/a"}

	pinned := entry
	pinned.PinVersion = 1
	if s := d.get(t, broker.Granted{Entry: pinned}); string(s.Value) != "one" || s.Version != "1" {
		t.Errorf("pinned to 1: %q, version %s", s.Value, s.Version)
	}
	if v, err := d.src.CurrentVersion(t.Context(), pinned); v != "1" || err != nil {
		t.Errorf("pinned: current version %s: %v", v, err)
	}
	whole := broker.CatalogEntry{Key: "db/a", Field: "*", PinVersion: 2}
	if s := d.get(t, broker.Granted{Entry: whole}); string(s.Value) != `{"a<b":[true,null],"value":"two","z":1}` || s.ContentType != "application/json" {
		t.Errorf("whole secret: %s as %s", s.Value, s.ContentType)
	}
	if v, err := d.src.CurrentVersion(t.Context(), entry); v != "3" || err != nil {
		t.Errorf("current version %s: %v", v, err)
	}
	ends := func(name string, e broker.CatalogEntry, want string) {
		t.Helper()
		if _, err := d.fetch(t, broker.Granted{Entry: e}); !errors.Is(err, broker.ErrNoSecret) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: fetch: got %v, want %q", name, err, want)
		}
		if _, err := d.src.CurrentVersion(t.Context(), e); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("%s: version: got %v, want ErrNoSecret", name, err)
		}
	}
	if err := kv.Destroy(t.Context(), "db/a", []int{1}); err != nil {
		t.Fatal(err)
	}
	ends("destroyed", pinned, "version 1 is destroyed")
	pinned.PinVersion = 9
	ends("no such version", pinned, "no version 9")
	if err := kv.Delete(t.Context(), "db/a"); err != nil {
		t.Fatal(err)
	}
	ends("deleted", entry, "version 3 is deleted")
	ends("missing", broker.CatalogEntry{Key: "db/none"}, "db/none")

	t.Run("a version with a lifetime is there until its end", func(t *testing.T) {
		d.write(t, "secret/metadata/db/short", map[string]any{"delete_version_after": "2s"})
		put("db/short", map[string]any{"value": "x"})
		e := broker.CatalogEntry{Key: "db/short"}
		d.get(t, broker.Granted{Entry: e})
		if v, err := d.src.CurrentVersion(t.Context(), e); v != "1" || err != nil {
			t.Errorf("version %s: %v", v, err)
		}
		time.Sleep(2100 * time.Millisecond)
		ends("past its lifetime", e, "deleted")
	})
	t.Run("rotate", func(t *testing.T) {
		e := broker.CatalogEntry{Key: "disks/k", CreateBytes: 32, Rotatable: true}
		if _, err := d.src.Rotate(t.Context(), e); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("rotated what is not there: %v", err)
		}
		put("disks/k", map[string]any{"value": "old", "user": "app"})
		v, err := d.src.Rotate(t.Context(), e)
		if err != nil || v != "2" {
			t.Fatalf("rotated to %q: %v", v, err)
		}
		if s := d.get(t, broker.Granted{Entry: e}); len(s.Value) != 32 || s.Version != "2" {
			t.Errorf("%d bytes, version %s", len(s.Value), s.Version)
		}
		if s := d.get(t, broker.Granted{Entry: broker.CatalogEntry{Key: "disks/k", Field: "user"}}); string(s.Value) != "app" {
			t.Errorf("the other field became %q", s.Value)
		}
		var wg sync.WaitGroup
		var rotated atomic.Int64
		for range 8 {
			wg.Go(func() {
				if _, err := d.src.Rotate(t.Context(), e); err == nil {
					rotated.Add(1)
				} else if !strings.Contains(err.Error(), "somebody else") {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if v, err := d.src.CurrentVersion(t.Context(), e); v != strconv.Itoa(2+int(rotated.Load())) || err != nil {
			t.Errorf("%d rotations, but version %s: %v", rotated.Load(), v, err)
		}
		for name, e := range map[string]broker.CatalogEntry{
			"not rotatable": {Key: "disks/k", CreateBytes: 32}, "not random": {Key: "disks/k", Rotatable: true},
			"PKI": {Kind: broker.KindPKI, Key: "x", Rotatable: true},
		} {
			if _, err := d.src.Rotate(t.Context(), e); !errors.Is(err, broker.ErrNotRotatable) {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if err := kv.Delete(t.Context(), "disks/k"); err != nil {
			t.Fatal(err)
		}
		if _, err := d.src.Rotate(t.Context(), e); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("rotated a deleted secret: %v", err)
		}
	})
	t.Run("create, whole secret", func(t *testing.T) {
		s := d.get(t, broker.Granted{Entry: broker.CatalogEntry{Key: "disks/w", Field: "*", CreateBytes: 16}})
		if !strings.HasPrefix(string(s.Value), `{"value":"base64:`) || s.Version != "1" {
			t.Errorf("%s, version %s", s.Value, s.Version)
		}
	})
	t.Run("wrapped", func(t *testing.T) {
		put("db/w", map[string]any{"value": "in a box"})
		e := broker.CatalogEntry{Kind: broker.KindWrapped, Key: "db/w", Options: map[string]string{"wrap_ttl": "90s"}}
		s := d.get(t, broker.Granted{Entry: e, TTL: time.Hour})
		if left := time.Until(s.Expires); s.Version != "1" || left < 80*time.Second || left > 91*time.Second {
			t.Errorf("version %s, expires in %s", s.Version, left)
		}
		guest := d.root.WithRequestCallbacks()
		guest.ClearToken()
		got, err := guest.Logical().Unwrap(string(s.Value))
		if err != nil || got.Data["data"].(map[string]any)["value"] != "in a box" {
			t.Fatalf("unwrapped %v: %v", got, err)
		}
		if _, err := d.root.Logical().Unwrap(string(s.Value)); err == nil {
			t.Error("unwrapped twice")
		}
		e.Key = "db/none"
		if _, err := d.fetch(t, broker.Granted{Entry: e, TTL: time.Minute}); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("missing: %v", err)
		}
	})
	t.Run("mounts that are not KV v2", func(t *testing.T) {
		d.write(t, "sys/mounts/old", map[string]any{"type": "kv", "options": map[string]any{"version": "1"}})
		d.write(t, "old/data/x", map[string]any{"value": "x"})
		d.write(t, "sys/policies/acl/claviger-broker-kv", map[string]any{"policy": `path "old/*" { capabilities = ["create", "update", "read"] }`})
		for _, e := range []broker.CatalogEntry{
			{Mount: "old", Key: "x"}, {Mount: "old", Key: "none", CreateBytes: 32}, {Mount: "nowhere", Key: "x"}, {Mount: "old", Key: "none"},
		} {
			_, err := d.fetch(t, broker.Granted{Entry: e})
			if err == nil || errors.Is(err, broker.ErrNoSecret) || !strings.Contains(err.Error(), e.Mount) {
				t.Errorf("%s/%s: got %v", e.Mount, e.Key, err)
			}
			t.Log(err)
		}
		if s, err := d.root.Logical().Read("old/data/none"); err != nil || s != nil {
			t.Errorf("wrote %v to a KV v1 engine: %v", s, err)
		}
	})
}
