package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/internal/testservers"
)

// relying is a real, unmodified Vault that is configured, with the commands of
// docs/tokens.md, to trust a source.
type relying struct {
	source   *Source
	keys     *store
	clock    *clock // ahead of the wall clock by what the test adds
	dir      string // holds ca.pem and token
	env      []string
	commands map[string]string // from the document, by name
}

func newRelying(t *testing.T) *relying {
	t.Helper()
	vault := testservers.StartVault(t)
	bin, err := exec.LookPath("vault")
	if err != nil {
		bin = filepath.Join(testservers.Root(t), ".cache", "bin", "vault")
	}
	r := &relying{dir: t.TempDir(), commands: map[string]string{}}
	doc, err := os.ReadFile(filepath.Join(testservers.Root(t), "docs/tokens.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)<!-- tested: ([a-z]+) -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
		r.commands[m[1]] = m[2]
	}
	if len(r.commands) != 3 {
		t.Fatalf("docs/tokens.md has %d tested blocks, want 3", len(r.commands))
	}

	srv := httptest.NewUnstartedServer(nil)
	issuer := "https://" + srv.Listener.Addr().String()
	r.keys, r.clock = &store{}, &clock{now: time.Now()}
	r.source = newSource(t, Config{Issuer: issuer, Key: r.keys.Key, Now: r.clock.Now})
	ca, leaf := testCA(t)
	srv.Config.Handler, srv.TLS = r.source, &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	if err := os.WriteFile(filepath.Join(r.dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	r.env = append(os.Environ(), "VAULT_ADDR="+vault.Address, "VAULT_TOKEN="+vault.Token, "HOME="+r.dir, "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH"),
		"ISSUER="+issuer, "MEASUREMENT="+measurement)
	return r
}

// sh runs commands as their reader would.
func (r *relying) sh(t *testing.T, script string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
	cmd.Dir, cmd.Env = r.dir, r.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *relying) must(t *testing.T, script string) string {
	t.Helper()
	out, err := r.sh(t, script)
	if err != nil {
		t.Fatalf("%s\n%v: %s", script, err, out)
	}
	return out
}

// login does what the document tells a workload to do.
func (r *relying) login(t *testing.T, token string) (string, error) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "token"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return r.sh(t, r.commands["workload"])
}

// testCA makes a CA and a certificate of it for 127.0.0.1.
func testCA(t *testing.T) (caPEM []byte, leaf tls.Certificate) {
	t.Helper()
	caKey, leafKey := p256(t), p256(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, ca, leafKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: leafKey}
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestVault: a real Vault that knows nothing of attestation lets in the
// attested workload, and nobody else.
func TestVault(t *testing.T) {
	r := newRelying(t)
	r.must(t, "vault kv put secret/orders password=sesame")
	r.must(t, r.commands["operator"])
	now := time.Now()
	good := mint(t, r.source, granted(t, now))
	if out, err := r.login(t, good); err != nil || strings.TrimSpace(out) != "sesame" {
		t.Fatalf("the attested workload: %v: %s", err, out)
	}

	// The other way to the keys, same role.
	r.must(t, r.commands["keys"])
	r.must(t, strings.ReplaceAll(role(t, r.commands["operator"]), "auth/jwt/", "auth/jwt-keys/"))
	if out := r.must(t, "vault write -field=token auth/jwt-keys/login role=orders jwt=@token"); !strings.HasPrefix(out, "hvs.") {
		t.Errorf("login by key set: %q", out)
	}

	// What Vault's audit log gets of it.
	if out := r.must(t, "vault write -format=json auth/jwt/login role=orders jwt=@token"); !strings.Contains(out, `"decision": "`+granted(t, now).DecisionID+`"`) {
		t.Errorf("metadata: %q", out)
	}

	mintWith := func(change func(*broker.Granted)) string { return mint(t, r.source, granted(t, now, change)) }
	parts := strings.Split(good, ".")
	stranger := newSource(t, Config{Issuer: r.source.cfg.Issuer})
	otherIssuer := newSource(t, Config{Issuer: "https://elsewhere.example", Key: r.keys.Key})
	past := &clock{now: now.Add(-10 * time.Minute)}
	earlier := newSource(t, Config{Issuer: r.source.cfg.Issuer, Key: r.keys.Key, Now: past.Now})
	for name, c := range map[string]struct{ token, why string }{
		"another measurement": {mintWith(func(g *broker.Granted) {
			g.Claims.Measurements = map[string]string{"measurement": strings.Repeat("ac", 48)}
		}), `claim "/claviger/measurement" does not match`},
		"no measurement":      {mintWith(func(g *broker.Granted) { g.Claims.Measurements = nil }), `claim "/claviger/measurement" is missing`},
		"another type":        {mintWith(func(g *broker.Granted) { g.Claims.Type = "tdx" }), `claim "/claviger/type" does not match`},
		"another policy":      {mintWith(func(g *broker.Granted) { g.Entry.Policy = "wiki" }), "invalid subject (sub) claim"},
		"another audience":    {mintWith(func(g *broker.Granted) { g.Entry.Key = "aws" }), "invalid audience (aud) claim"},
		"simulated":           {mintWith(func(g *broker.Granted) { g.Claims.Simulated = true }), "does not match any associated bound claim"},
		"debuggable":          {mintWith(func(g *broker.Granted) { g.Claims.Debuggable = true }), "does not match any associated bound claim"},
		"out of date":         {mintWith(func(g *broker.Granted) { g.Claims.TCB.Status = "OutOfDate" }), `claim "ear_status" does not match`},
		"another dialect":     {mintWith(func(g *broker.Granted) { g.Entry.Options = map[string]string{"dialect": Veraison} }), `claim "ear_status" is missing`},
		"expired":             {mint(t, earlier, granted(t, past.now)), "token is expired"},
		"another issuer":      {mint(t, otherIssuer, granted(t, now)), "invalid issuer (iss) claim"},
		"another key":         {mint(t, stranger, granted(t, now)), "failed to verify id token signature"},
		"changed":             {parts[0] + "." + b64([]byte(strings.Replace(string(payload(t, good)), "orders", "admins", 1))) + "." + parts[2], "failed to verify id token signature"},
		"unsigned":            {b64([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + ".", `unexpected signature algorithm "none"`},
		"algorithm confusion": {confused(t, r.source, parts[1]), `unexpected signature algorithm "HS256"`},
		"no token":            {"", "missing token"},
	} {
		out, err := r.login(t, c.token)
		if err == nil || strings.Contains(out, "sesame") {
			t.Errorf("%s: let in: %s", name, out)
		}
		if !strings.Contains(out, c.why) {
			t.Errorf("%s: refused, but not because of %q: %s", name, c.why, out)
		}
	}
	if out, err := r.login(t, good); err != nil {
		t.Errorf("the attested workload, once more: %v: %s", err, out)
	}
}

// role is the part of the operator's commands that writes the role.
func role(t *testing.T, commands string) string {
	t.Helper()
	i := strings.Index(commands, "vault write auth/jwt/role/")
	if i < 0 {
		t.Fatal("no role in the document")
	}
	return commands[i:]
}

// confused is a token whose HMAC key is the published public key, for
// verifiers that let the token choose the algorithm.
func confused(t *testing.T, s *Source, payload string) string {
	t.Helper()
	keys := s.generations(t.Context())
	public, err := x509.MarshalPKIXPublicKey(keys[0].private.Public())
	if err != nil {
		t.Fatal(err)
	}
	signed := b64(fmt.Appendf(nil, `{"alg":"HS256","kid":%q,"typ":"JWT"}`, keys[0].kid)) + "." + payload
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	mac.Write([]byte(signed))
	return signed + "." + b64(mac.Sum(nil))
}

// TestVaultRotation: Vault follows a rotation without being told, and keeps
// accepting tokens of the key before; a replaced key's tokens are refused.
func TestVaultRotation(t *testing.T) {
	r := newRelying(t)
	r.must(t, "vault kv put secret/orders password=sesame")
	r.must(t, r.commands["operator"])
	// The broker's clock jumps ahead in this test and Vault's does not, so the
	// tokens carry the wall clock and only the choice of the key the broker's.
	with := func(pick func([]generation) generation) string {
		b, err := r.source.claims(granted(t, time.Now()), time.Now().Unix(), time.Now().Add(2*time.Minute).Unix())
		if err != nil {
			t.Fatal(err)
		}
		token, err := pick(r.source.generations(t.Context())).sign(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(token)
	}
	current := func(keys []generation) generation { g, _ := choose(keys, r.clock.Now(), r.source.cfg); return g }
	first := func(keys []generation) generation { return keys[0] }
	admitted := func(when, token string, want bool) {
		t.Helper()
		if out, err := r.login(t, token); (err == nil) != want {
			t.Errorf("%s: let in %t, want %t: %s", when, err == nil, want, out)
		}
	}
	admitted("first key", with(current), true)
	old := kids(t, r.source)[0]
	if _, err := r.source.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	admitted("rotating", with(current), true)
	r.clock.add(time.Hour)
	if kidOf(t, with(current)) == old {
		t.Fatal("still the old key")
	}
	admitted("rotated", with(current), true)
	admitted("rotated, old key", with(first), true)
	// What docs/tokens.md says of Vault's cache: it knows of the withdrawal after
	// its configuration was written again…
	replace := func() {
		t.Helper()
		if _, err := r.source.Replace(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	replace()
	before := with(first)
	admitted("replaced, Vault has the old set", before, true)
	r.must(t, r.commands["operator"][strings.Index(r.commands["operator"], "vault write auth/jwt/config"):])
	admitted("replaced, Vault configured anew", before, false)
	// … or with the first token of the new key.
	before = with(current)
	admitted("new key", before, true)
	replace()
	admitted("replaced again", with(current), true)
	admitted("replaced again, key before", before, false)
}
