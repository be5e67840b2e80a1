package brokertest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/yaml"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/byok"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestKinds gets every kind of secret that needs no lease through a whole
// broker, which has only the policies of deploy/vault.
func TestKinds(t *testing.T) {
	t.Parallel()
	v := testservers.StartVault(t)
	cmd := exec.Command(filepath.Join(testservers.Root(t), "deploy", "vault", "setup.sh"), "pki", "transit")
	cmd.Env = append(os.Environ(), "VAULT="+testservers.VaultBinary(t), "VAULT_ADDR="+v.Address, "VAULT_TOKEN="+v.Token,
		"SECRET_ID_FILE="+filepath.Join(t.TempDir(), "secret-id"), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var printed server.Config
	if err := yaml.Unmarshal(out, &printed); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tokens := l.Addr().String()
	l.Close()
	w := &leaseWorld{vault: v}
	b := Start(t, func(c *server.Config) {
		c.Vault = printed.Vault
		c.Tokens = server.Tokens{Issuer: "https://" + tokens, Listen: tokens}
		c.Catalog = append(c.Catalog,
			server.Entry{Pattern: "kv/{name}", Source: "vault", Key: "db/{name}", Policy: "disks", Field: "*"},
			server.Entry{Pattern: "short/{vm}", Source: "vault", Kind: "pki", Key: "workload", Policy: "disks", Options: map[string]string{"common_name": "{vm}.claviger.internal", "ttl": "6s"}},
			server.Entry{Pattern: "capped/{vm}", Source: "vault", Kind: "pki", Key: "workload", Policy: "disks", TTL: server.Duration(2 * time.Minute), Options: map[string]string{"common_name": "{vm}.claviger.internal", "ttl": "1h"}},
			server.Entry{Pattern: "certs/{vm}", Source: "vault", Kind: "pki", Key: "workload", Policy: "disks", Options: map[string]string{"common_name": "{vm}.claviger.internal"}},
			server.Entry{Pattern: "decrypt/app", Source: "vault", Kind: "transit_decrypt", Key: "app", Policy: "disks"},
			server.Entry{Pattern: "datakey/app", Source: "vault", Kind: "transit_datakey", Key: "app", Policy: "disks"},
			server.Entry{Pattern: "export/app", Source: "vault", Kind: "transit_export", Key: "export", Policy: "disks"},
			server.Entry{Pattern: "tokens/vault", Source: "token", Kind: "ear", Key: "vault", Policy: "disks"})
	})
	c := b.Client(t, teesim.ReportOptions{})
	one := func(t *testing.T, c *agent.Client, input []byte, resource string) agent.Secret {
		t.Helper()
		inputs := map[string][]byte{}
		if input != nil {
			inputs[resource] = input
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		s, _, err := c.GetWith(ctx, inputs, resource)
		if err != nil {
			t.Fatal(err)
		}
		return s[0]
	}
	t.Run("a whole KV secret", func(t *testing.T) {
		w.do(t, http.MethodPost, "secret/data/db/web", map[string]any{"data": map[string]any{"user": "u", "port": 5432}}, new(any))
		if s := one(t, c, nil, "kv/web"); string(s.Value) != `{"port":5432,"user":"u"}` || s.ContentType != "application/json" || s.Version != "1" {
			t.Errorf("%s %s %s", s.Value, s.ContentType, s.Version)
		}
	})
	csr := func(t *testing.T, names ...string) ([]byte, *ecdsa.PrivateKey) {
		t.Helper()
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names[1:]}, k)
		if err != nil {
			t.Fatal(err)
		}
		return der, k
	}
	t.Run("a certificate", func(t *testing.T) {
		der, k := csr(t, "vm-7.claviger.internal")
		s := one(t, c, der, "certs/vm-7")
		block, _ := pem.Decode(s.Value)
		if block == nil {
			t.Fatalf("no PEM: %s", s.Value)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !cert.PublicKey.(*ecdsa.PublicKey).Equal(&k.PublicKey) || cert.Subject.CommonName != "vm-7.claviger.internal" {
			t.Errorf("%v %v", cert.Subject, err)
		}
	})
	t.Run("a certificate lives no longer than the catalog allows", func(t *testing.T) {
		der, _ := csr(t, "vm-7.claviger.internal")
		block, _ := pem.Decode(one(t, c, der, "capped/vm-7").Value)
		if block == nil {
			t.Fatal("no PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(cert.NotAfter); left > 2*time.Minute+10*time.Second {
			t.Errorf("it lives %s", left)
		}
	})
	t.Run("names that are not what they look like", func(t *testing.T) {
		for name, says := range map[string]string{"VM-7": "capital letters", "db.prod": "no DNS label", "-": "no DNS label"} {
			der, _ := csr(t, name+".claviger.internal")
			if _, _, err := c.GetWith(t.Context(), map[string][]byte{"certs/" + name: der}, "certs/"+name); !errors.Is(err, agent.ErrDenied) {
				t.Errorf("%s: %v", name, err)
			}
			b.told(t, says)
			b.told(t, "resource_name")
		}
	})
	t.Run("a KV secret deleted with its history, and written again", func(t *testing.T) {
		put := func(value string) {
			w.do(t, http.MethodPost, "secret/data/db/again", map[string]any{"data": map[string]any{"password": value}}, new(any))
		}
		put("one")
		g := watch(t, c, "kv/again")
		if s := g.next(t, 20*time.Second); string(s.Value) != `{"password":"one"}` || s.Version != "1" {
			t.Fatalf("%s, version %s", s.Value, s.Version)
		}
		w.do(t, http.MethodDelete, "secret/metadata/db/again", nil, new(any))
		g.quiet(t, 3*time.Second)
		put("two")
		if s := g.next(t, 20*time.Second); string(s.Value) != `{"password":"two"}` || s.Version != "1" {
			t.Errorf("%s, version %s", s.Value, s.Version)
		}
		g.quiet(t, 3*time.Second) // once is enough
		h, err := b.Admin.ListHolders(t.Context(), &pb.ListHoldersRequest{Resource: "kv/again"})
		if err != nil || h.GetCurrentVersion() != "1" || len(h.GetHolders()) != 1 || h.GetHolders()[0].GetVersion() != "1" {
			t.Errorf("holders: %v, %v", h, err)
		}
	})
	t.Run("a certificate that is renewed", func(t *testing.T) {
		der, k := csr(t, "vm-7.claviger.internal")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		serials := make(chan string, 10)
		done := make(chan error, 1)
		go func() {
			inputs := func() (map[string][]byte, error) { return map[string][]byte{"short/vm-7": der}, nil }
			done <- c.WatchWith(ctx, inputs, []string{"short/vm-7"}, func(_ context.Context, s agent.Secret) error {
				block, _ := pem.Decode(s.Value)
				if block == nil {
					return fmt.Errorf("no PEM: %s", s.Value)
				}
				cert, err := x509.ParseCertificate(block.Bytes)
				if err == nil && !cert.PublicKey.(*ecdsa.PublicKey).Equal(&k.PublicKey) {
					err = errors.New("for another key")
				}
				if err == nil {
					serials <- cert.SerialNumber.String()
				}
				return err
			})
		}()
		seen := map[string]bool{}
		for len(seen) < 2 {
			select {
			case s := <-serials:
				seen[s] = true
			case err := <-done:
				t.Fatalf("the watch ended: %v", err)
			case <-time.After(time.Minute):
				t.Fatalf("certificates %v only", seen)
			}
		}
		cancel()
		<-done
		if err := c.WatchWith(t.Context(), func() (map[string][]byte, error) { return map[string][]byte{"others": der}, nil }, []string{"short/vm-7"}, nil); err == nil {
			t.Error("an input for what is not asked for is accepted")
		}
	})
	t.Run("a certificate for somebody else", func(t *testing.T) {
		der, _ := csr(t, "vm-8.claviger.internal")
		if _, _, err := c.GetWith(t.Context(), map[string][]byte{"certs/vm-7": der}, "certs/vm-7"); !errors.Is(err, agent.ErrDenied) {
			t.Errorf("got %v", err)
		}
		b.told(t, "common name")
	})
	t.Run("a CSR swapped on the way", func(t *testing.T) {
		mine, _ := csr(t, "vm-7.claviger.internal")
		theirs, _ := csr(t, "vm-7.claviger.internal")
		r := rawWatch(t, b)
		key := newKey(t)
		req := r.request(key, nil, "certs/vm-7")
		ev, err := b.Device(teesim.ReportOptions{}).Evidence(t.Context(), attest.Transcript{
			Nonce: req.GetNonce(), BrokerID: sha256.Sum256(b.Server.Identity()), KeyAlgorithm: req.GetKeyAlgorithm(), PublicKey: key.Public(),
			OfferedSuites: req.GetOfferedSuites(), Resources: req.GetResources(), Inputs: [][]byte{mine},
		})
		if err != nil {
			t.Fatal(err)
		}
		req.Evidence[0].Report = ev.Report
		req.Inputs = []*pb.ResourceInput{{Resource: "certs/vm-7", Input: theirs}}
		if _, err := b.Workload.Release(t.Context(), req); status.Code(err) != codes.PermissionDenied {
			t.Errorf("got %v", err)
		}
	})
	t.Run("decrypt", func(t *testing.T) {
		var enc struct{ Data struct{ Ciphertext string } }
		w.do(t, http.MethodPost, "transit/encrypt/app", map[string]string{"plaintext": base64.StdEncoding.EncodeToString([]byte("hello"))}, &enc)
		if s := one(t, c, []byte(enc.Data.Ciphertext), "decrypt/app"); string(s.Value) != "hello" {
			t.Errorf("%q", s.Value)
		}
		for _, bad := range []string{"vault:v1:AAAA", "hello", strings.Replace(enc.Data.Ciphertext, "v1", "v9", 1)} {
			if _, _, err := c.GetWith(t.Context(), map[string][]byte{"decrypt/app": []byte(bad)}, "decrypt/app"); !errors.Is(err, agent.ErrDenied) {
				t.Errorf("%s: got %v", bad, err)
			}
		}
		if _, _, err := c.Get(t.Context(), "decrypt/app"); !errors.Is(err, agent.ErrDenied) {
			t.Errorf("without a ciphertext: %v", err)
		}
	})
	t.Run("a data key", func(t *testing.T) {
		if s := one(t, c, nil, "datakey/app"); !bytes.Contains(s.Value, []byte(`"ciphertext":"vault:v1:`)) {
			t.Errorf("%s", s.Value)
		}
	})
	t.Run("a key that the broker never sees", func(t *testing.T) {
		private, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			t.Fatal(err)
		}
		key, err := seal.ImportRSA(private)
		if err != nil {
			t.Fatal(err)
		}
		addr, _, _ := b.Server.Addresses()
		cfg := b.clientConfig(t, teesim.ReportOptions{}, addr)
		cfg.Key = key
		hw, err := agent.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer hw.Close()
		s := one(t, hw, nil, "export/app")
		exported, err := byok.UnwrapBYOK(private, s.Value)
		if err != nil {
			t.Fatal(err)
		}
		if len(exported) != 32 {
			t.Errorf("the key has %d bytes", len(exported))
		}
	})
	t.Run("a token that an unmodified Vault takes", func(t *testing.T) {
		ca, err := os.ReadFile(filepath.Join(b.Env.Dir, "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		m := teesim.Measurement("")
		for path, body := range map[string]any{
			"sys/auth/jwt":       map[string]any{"type": "jwt"},
			"sys/policy/reports": map[string]any{"policy": `path "secret/data/db/web" { capabilities = ["read"] }`},
		} {
			w.do(t, http.MethodPost, path, body, new(any))
		}
		w.do(t, http.MethodPost, "auth/jwt/config", map[string]any{"oidc_discovery_url": "https://" + tokens, "oidc_discovery_ca_pem": string(ca)}, new(any))
		w.do(t, http.MethodPost, "auth/jwt/role/reports", map[string]any{
			"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "token_policies": "reports",
			"bound_claims": map[string]any{"/claviger/measurement": fmt.Sprintf("%x", m)},
		}, new(any))
		s := one(t, c, nil, "tokens/vault")
		var login struct {
			Auth struct {
				ClientToken string `json:"client_token"`
			}
		}
		if !w.do(t, http.MethodPost, "auth/jwt/login", map[string]string{"role": "reports", "jwt": string(s.Value)}, &login) || login.Auth.ClientToken == "" {
			t.Fatalf("Vault does not take the token %s", s.Value)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, v.Address+"/v1/secret/data/db/web", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", login.Auth.ClientToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("reads with %s", resp.Status)
		}
		// The Attest rpc gives the same, and nothing but tokens.
		r := rawWatch(t, b)
		if out, err := b.Workload.Attest(t.Context(), &pb.AttestRequest{Request: r.request(newKey(t), nil, "tokens/vault")}); err != nil || out.GetToken().GetJwe() == "" {
			t.Errorf("%v %v", out, err)
		}
		if _, err := b.Workload.Attest(t.Context(), &pb.AttestRequest{Request: r.request(newKey(t), nil, "db/orders")}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("Attest gave a secret: %v", err)
		}
	})
}
