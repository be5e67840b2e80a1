package vault

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/broker/reread"
	"github.com/claviger/claviger/internal/testservers"
)

func TestNewRefuses(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for name, c := range map[string]struct {
		cfg  Config
		want string // the field that is wrong
	}{
		"no login":           {Config{Address: "https://v"}, "want one login"},
		"two logins":         {Config{Address: "https://v", TokenFile: "f", AppRole: &AppRole{}}, "not approle and token_file"},
		"plain HTTP":         {Config{Address: "http://vault.example:8200", TokenFile: "f"}, "address"},
		"no token file":      {Config{Address: "http://127.0.0.1:1", TokenFile: none}, none},
		"empty token file":   {Config{Address: "http://127.0.0.1:1", TokenFile: os.DevNull}, "empty"},
		"no CA file":         {Config{Address: "https://v", CAFile: none, TokenFile: "f"}, "ca:"},
		"CA file of no CA":   {Config{Address: "https://v", CAFile: os.DevNull, TokenFile: "f"}, "ca:"},
		"no role id":         {Config{Address: "https://v", AppRole: &AppRole{SecretIDFile: "f"}}, "approle.role_id"},
		"no secret id":       {Config{Address: "https://v", AppRole: &AppRole{RoleID: "r"}}, "approle.secret_id_file"},
		"kubernetes":         {Config{Address: "https://v", Kubernetes: &JWT{}}, "kubernetes.role"},
		"jwt":                {Config{Address: "https://v", JWT: &JWT{Role: "r"}}, "jwt.file"},
		"certificate":        {Config{Address: "https://v", Certificate: &Certificate{CertFile: "c"}}, "certificate.key"},
		"certificate, plain": {Config{Address: "http://127.0.0.1:1", Certificate: &Certificate{CertFile: "c", KeyFile: "k"}}, "https"},
		"negative":           {Config{Address: "https://v", TokenFile: "f", MaxQueue: -1}, "max_queue"},
		"nobody listening":   {Config{Address: "http://127.0.0.1:1", AppRole: &AppRole{RoleID: "r", SecretIDFile: os.DevNull}}, "approle login"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(t.Context(), c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

// signer makes ES256 tokens (RFC 7515), as a Kubernetes API server or an identity provider would.
type signer struct{ key *ecdsa.PrivateKey }

func (s signer) token(t testing.TB, role string, expires time.Time) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]any{"alg": "ES256", "typ": "JWT"}) + "." +
		part(map[string]any{"iss": "test", "sub": role, "aud": "vault", "exp": expires.Unix(), "iat": time.Now().Unix()})
	sum := sha256.Sum256([]byte(text))
	r, ss, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), ss.FillBytes(make([]byte, 32))...))
}

// Kubernetes' login is tried against Vault's jwt engine mounted at
// auth/kubernetes, because `-tags minimal` has no kubernetes engine: the
// request, {role, jwt}, is the same; the TokenReview behind it is not tried.
func TestJWTLogins(t *testing.T) {
	w := newWorld(t, "1h")
	w.put(t, "db/orders", map[string]any{"value": "x"})
	s := signer{ecKey(t, elliptic.P256())}
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range []string{"jwt", "kubernetes", "pods"} {
		t.Run(mount, func(t *testing.T) {
			if err := w.root.Sys().EnableAuthWithOptions(mount, &api.EnableAuthOptions{Type: "jwt"}); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, w.root, "auth/"+mount+"/config", map[string]any{"jwt_validation_pubkeys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))})
			mustWrite(t, w.root, "auth/"+mount+"/role/claviger", map[string]any{
				"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "bound_subject": "broker", "token_policies": "claviger", "token_ttl": "1h"})
			file := filepath.Join(t.TempDir(), "token")
			put := func(token string) {
				if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cfg := Config{Address: w.vault.Address}
			switch mount {
			case "jwt":
				cfg.JWT = &JWT{Role: "claviger", File: file}
			case "kubernetes":
				cfg.Kubernetes = &JWT{Role: "claviger", File: file}
			default:
				cfg.Kubernetes = &JWT{Mount: mount, Role: "claviger", File: file}
			}
			put(s.token(t, "somebody", time.Now().Add(time.Hour)))
			if _, err := New(t.Context(), cfg); err == nil {
				t.Fatal("logged in as somebody else")
			}
			put(s.token(t, "broker", time.Now().Add(time.Hour)))
			src, err := New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			// The pod's token changes by and by; a new login reads the new one.
			put("expired")
			time.Sleep(10 * time.Millisecond)
			put(s.token(t, "broker", time.Now().Add(2*time.Hour)))
			if err := w.root.Auth().Token().RevokeTree(*src.token.Load()); err != nil {
				t.Fatal(err)
			}
			got, err := src.Fetch(t.Context(), grant.Mint(broker.Granted{Entry: broker.CatalogEntry{Key: "db/orders"}}))
			if err != nil || string(got.Value) != "x" {
				t.Fatal(err)
			}
		})
	}
}

func TestCertificateLogin(t *testing.T) {
	v := testservers.StartVaultTLS(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	cfg := Config{Address: v.Address, CAFile: v.CAFile, Certificate: &Certificate{Role: "claviger", CertFile: certFile, KeyFile: keyFile}}
	root, _, err := newClient(Config{Address: v.Address, CAFile: v.CAFile, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	root.SetToken(v.Token)
	if err := root.Sys().EnableAuthWithOptions("cert", &api.EnableAuthOptions{Type: "cert"}); err != nil {
		t.Fatal(err)
	}
	ca, caKey := certificate(t, "clients CA", nil, nil, nil)
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	mustWrite(t, root, "auth/cert/certs/claviger", map[string]any{"certificate": string(caPEM), "allowed_common_names": "broker", "token_policies": "root-not", "token_ttl": "1h"})
	put := func(cn string) {
		leaf, key := certificate(t, cn, ca, caKey, nil)
		writePair(t, leaf, key, certFile, keyFile)
	}

	put("somebody")
	if _, err := New(t.Context(), cfg); err == nil {
		t.Fatal("logged in as somebody else")
	}
	put("broker")
	src, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := *src.token.Load()
	// A new certificate in the files counts at the next login, not the one of the open connection.
	put("somebody")
	src.mu.Lock()
	err = src.login(t.Context())
	src.mu.Unlock()
	if err == nil || *src.token.Load() != first {
		t.Errorf("the old certificate still logs in: %v", err)
	}

	t.Run("another login over TLS", func(t *testing.T) {
		file := filepath.Join(dir, "token")
		if err := os.WriteFile(file, []byte(v.Token), 0o600); err != nil {
			t.Fatal(err)
		}
		src, err := New(t.Context(), Config{Address: v.Address, CAFile: v.CAFile, TokenFile: file})
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, root, "secret/data/db/x", map[string]any{"data": map[string]any{"value": "x"}})
		if _, err := src.Fetch(t.Context(), grant.Mint(broker.Granted{Entry: broker.CatalogEntry{Key: "db/x"}})); err != nil {
			t.Error(err)
		}
	})
	t.Run("Vault's certificate is verified", func(t *testing.T) {
		t.Setenv("VAULT_SKIP_VERIFY", "true") // of whoever starts the broker: does not count
		t.Setenv("VAULT_CACERT", v.CAFile)
		put("broker")
		bad := cfg
		bad.CAFile = filepath.Join(dir, "other-ca.pem")
		if err := os.WriteFile(bad.CAFile, caPEM, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("another CA: got %v", err)
		}
		bad.CAFile = ""
		if _, err := New(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("the system's roots: got %v", err)
		}
	})
}

func TestAppRoleSecretID(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t, "1h")
	cfg := w.src.cfg
	role := *cfg.AppRole
	cfg.AppRole = &role
	file := filepath.Join(t.TempDir(), "secret-id")
	role.SecretIDFile = file
	put := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secretID := func(body map[string]any) string {
		return mustWrite(t, w.root, "auth/approle/role/claviger/secret-id", body).Data["secret_id"].(string)
	}
	t.Run("expired", func(t *testing.T) {
		put(secretID(map[string]any{"ttl": "1s"}))
		if _, err := New(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		mustWrite(t, w.root, "auth/approle/tidy/secret-id", nil) // Vault forgets what has expired once a minute, and until then accepts it
		var err error
		eventually(t, "refused", func() bool {
			_, err = New(t.Context(), cfg)
			return err != nil
		})
		if !strings.Contains(err.Error(), file+" has expired") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("used up", func(t *testing.T) {
		put(secretID(map[string]any{"num_uses": 1}))
		if _, err := New(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "used up") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("wrapped", func(t *testing.T) {
		role.Wrapped = true
		c := w.root.WithRequestCallbacks(func(q *api.Request) { q.WrapTTL = "60s" })
		put(mustWrite(t, c, "auth/approle/role/claviger/secret-id", nil).WrapInfo.Token)
		if _, err := New(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "was used") {
			t.Errorf("the wrapping token worked twice: %v", err)
		}
	})
}

// An outage must not cost the one login that a wrapped secret id is good for.
func TestOutageKeepsToken(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t, "8s")
	w.put(t, "db/orders", map[string]any{"value": "x"})
	before := *w.src.token.Load()
	w.vault.Pause(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.src.Run(ctx)
	}()
	time.Sleep(1500 * time.Millisecond) // the first look at the token has failed, and what comes next will be answered
	w.vault.Resume(t)
	eventually(t, "an answer", func() bool {
		_, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders"})
		return err == nil
	})
	time.Sleep(7 * time.Second) // beyond the token's first life
	if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders"}); err != nil {
		t.Error(err)
	}
	if *w.src.token.Load() != before {
		t.Error("logged in again where renewal would have done")
	}
	cancel()
	<-done
}

// TestRefusedCredential: a used-up secret id is not tried again and again, by
// which Vault would lock out the role; a fresh one in its file works at once.
func TestRefusedCredential(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1h")
	w.put(t, "db/orders", map[string]any{"value": "x"})
	secretID := func() []byte {
		return []byte(mustWrite(t, w.root, "auth/approle/role/claviger/secret-id", map[string]any{"num_uses": 1}).Data["secret_id"].(string))
	}
	file := filepath.Join(t.TempDir(), "secret-id")
	if err := os.WriteFile(file, secretID(), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := w.src.cfg
	role := *cfg.AppRole
	role.SecretIDFile = file
	cfg.AppRole = &role
	var logins atomic.Int32
	cfg.Address = counted(t, cfg.Address, "/v1/auth/approle/login", &logins)
	src, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, w.root, "auth/token/revoke", map[string]any{"token": *src.token.Load()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = src.Run(ctx) }()
	defer func() { cancel(); <-done }()
	fetch := func() error {
		_, err := src.Fetch(t.Context(), grant.Mint(broker.Granted{Entry: broker.CatalogEntry{Key: "db/orders"}}))
		return err
	}
	eventually(t, "the login is refused", func() bool { return logins.Load() == 2 })
	for range 5 {
		src.mu.Lock()
		src.checked, src.loggedIn = time.Time{}, time.Time{} // as if the time between looks had passed
		src.mu.Unlock()
		if err := fetch(); err == nil || !strings.Contains(err.Error(), "used up") {
			t.Errorf("got %v", err)
		}
	}
	if n := logins.Load(); n != 2 {
		t.Errorf("%d logins with one secret id", n)
	}
	if err := os.WriteFile(file, secretID(), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a login with the fresh one", func() bool { return fetch() == nil })
	if n := logins.Load(); n != 3 {
		t.Errorf("%d logins", n)
	}
}

// counted is a way to a server that counts requests of a path.
func counted(t *testing.T, to, path string, n *atomic.Int32) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(u)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == path {
			n.Add(1)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestRests: a refusal rests for longer than Vault counts failures; a new credential starts afresh.
func TestRests(t *testing.T) {
	denied := fmt.Errorf("login: %w", &api.ResponseError{StatusCode: http.StatusBadRequest})
	var r refusal
	within := func(what string, low, high time.Duration) {
		t.Helper()
		if d := time.Until(r.until); d < low-time.Second || d > high {
			t.Errorf("%s: rests %s, want %s to %s", what, d, low, high)
		}
	}
	r.refuse(reread.Digest{1}, denied)
	within("the first", firstRest, firstRest*5/4)
	for range 3 {
		r.refuse(reread.Digest{1}, denied)
		within("again", longRest, longRest*5/4)
	}
	r.refuse(reread.Digest{2}, denied)
	within("another credential", firstRest, firstRest*5/4)
	r.refuse(reread.Digest{2}, errors.New("connection refused"))
	within("no answer", time.Second, shortRest)
}

// TestCARotates: a CA that is added to the file counts for the next connection.
func TestCARotates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "ca.pem")
	var serve atomic.Pointer[tls.Certificate]
	var roots [2][]byte
	var pairs [2]tls.Certificate
	for i := range pairs {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: fmt.Sprint("root ", i)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		pairs[i] = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		roots[i] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	serve.Store(&pairs[0])
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"data":{"x":"y"}}`) }))
	server.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return serve.Load(), nil }}
	server.StartTLS()
	defer server.Close()
	server.TLS.Certificates = nil
	if err := os.WriteFile(file, roots[0], 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Address: server.URL, CAFile: file, TokenFile: "unused"}
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	c, idle, err := newClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	read := func() error { _, err := c.Logical().Read("x"); return err }
	if err := read(); err != nil {
		t.Fatal(err)
	}
	serve.Store(&pairs[1])
	idle()
	if err := read(); err == nil {
		t.Fatal("a server of an unknown CA is believed")
	}
	if err := os.WriteFile(file, append(roots[0], roots[1]...), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new CA counts", func() bool { return read() == nil })
}

// A path that stays forbidden must not make one login after the other, and not disturb the rest.
func TestNoLoginStorm(t *testing.T) {
	w := newWorld(t, "1h")
	w.put(t, "db/orders", map[string]any{"value": "x"})
	tokens := func() int {
		list, err := w.root.Logical().List("auth/token/accessors")
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Data["keys"].([]any))
	}
	fetchForbidden := func() {
		t.Helper()
		if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "forbidden/x"}); status(err) != http.StatusForbidden {
			t.Fatalf("got %v", err)
		}
	}
	before, requests := tokens(), w.src.Stats().Requests
	for i := range 200 {
		fetchForbidden()
		if i%20 == 0 {
			if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := tokens() - before; n > 1 {
		t.Errorf("%d logins for 200 forbidden requests", n)
	}
	if n := w.src.Stats().Requests - requests; n > 215 {
		t.Errorf("%d requests for 210 fetches", n)
	}
	for range 10 { // checkEvery passes, and passes again
		w.src.mu.Lock()
		w.src.checked = time.Time{}
		w.src.mu.Unlock()
		fetchForbidden()
	}
	if n := tokens() - before; n > 1 {
		t.Errorf("%d logins in less than %s, though the token is good", n, loginEvery)
	}
	t.Run("a policy that came later counts", func(t *testing.T) {
		w := newWorld(t, "1h")
		w.put(t, "late/x", map[string]any{"value": "x"})
		if err := w.root.Sys().PutPolicy("late", `path "secret/data/late/*" { capabilities = ["read"] }`); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, w.root, "auth/approle/role/claviger", map[string]any{"token_policies": "claviger,late"})
		if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "late/x"}); err != nil {
			t.Error(err)
		}
	})
}

// The namespace is sent if, and only if, configured, whatever the environment says. (Community Vault takes no notice of it.)
func TestNamespace(t *testing.T) {
	t.Setenv("VAULT_NAMESPACE", "of-the-environment")
	t.Setenv("VAULT_TOKEN", "of-the-environment")
	t.Setenv("VAULT_HEADERS", `{"X-Extra": "of-the-environment"}`)
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		fmt.Fprint(w, `{"data": {}}`)
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{"", "team/a"} {
		src, err := New(t.Context(), Config{Address: server.URL, TokenFile: file, Namespace: ns})
		if err != nil {
			t.Fatal(err)
		}
		if src.client.Token() != "" {
			t.Error("the environment's token is what an AppRole login would send")
		}
		if got.Get("X-Vault-Namespace") != ns || got.Get("X-Vault-Token") != "mine" || got.Get("X-Extra") != "" {
			t.Errorf("namespace %q: sent %v", ns, got)
		}
	}
}

// An endless answer is cut off.
func TestBoundedAnswer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"data": {"x": "`)
		for _, err := w.Write(make([]byte, 1<<20)); err == nil; _, err = w.Write(bytes.Repeat([]byte("a"), 1<<20)) {
		}
	}))
	defer server.Close()
	if _, err := New(t.Context(), Config{Address: server.URL, TokenFile: file, Timeout: time.Minute}); err == nil {
		t.Error("accepted")
	}
}

func mustWrite(t testing.TB, c *api.Client, path string, body map[string]any) *api.Secret {
	t.Helper()
	s, err := c.Logical().Write(path, body)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func certificate(t testing.TB, cn string, parent *x509.Certificate, parentKey, key crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	if key == nil {
		key = ecKey(t, elliptic.P256())
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if parent == nil {
		parent, parentKey = c, key
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

func writePair(t testing.TB, leaf *x509.Certificate, key crypto.Signer, certFile, keyFile string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: leaf.Raw}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
