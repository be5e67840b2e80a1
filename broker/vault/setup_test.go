package vault

import (
	"bytes"
	"cmp"
	"crypto/elliptic"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"sigs.k8s.io/yaml"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/internal/testservers"
)

// deployed is a Vault that deploy/vault/setup.sh has set up, and a Source with
// what it printed: the policies of deploy/vault, and no others.
type deployed struct {
	vault *testservers.Vault
	pg    *testservers.Postgres // with kind "database"
	root  *api.Client
	src   *Source
	cfg   Config
	// catalog is what setup.sh gives as examples.
	catalog []broker.CatalogEntry
}

func deploy(t testing.TB, kinds ...string) deployed {
	t.Helper()
	d := deployed{vault: testservers.StartVault(t)}
	env := append(os.Environ(), "VAULT="+testservers.VaultBinary(t), "VAULT_ADDR="+d.vault.Address, "VAULT_TOKEN="+d.vault.Token,
		"SECRET_ID_FILE="+filepath.Join(t.TempDir(), "secret-id"), "HOME="+t.TempDir(), "DATABASE_TTL=3s")
	if slices.Contains(kinds, "database") {
		testservers.PostgresPlugin(t)
		d.pg = testservers.StartPostgres(t)
		d.pg.Query(t, "CREATE ROLE reports LOGIN PASSWORD 'first'")
		env = append(env, "POSTGRES="+d.pg.Address+"/app", "POSTGRES_USER="+d.pg.User, "POSTGRES_PASSWORD="+d.pg.Password,
			"POSTGRES_SSLMODE=disable", "POSTGRES_STATIC_USER=reports")
	}
	d.cfg, d.catalog = runSetup(t, env, kinds)
	d.cfg.Name, d.cfg.Timeout = "vault", 5*time.Second
	var err error
	if d.src, err = New(t.Context(), d.cfg); err != nil {
		t.Fatal(err)
	}
	if d.root, err = api.NewClient(&api.Config{Address: d.vault.Address}); err != nil {
		t.Fatal(err)
	}
	d.root.SetToken(d.vault.Token)
	return d
}

// runSetup runs the script twice: the second time must change nothing.
func runSetup(t testing.TB, env, kinds []string) (Config, []broker.CatalogEntry) {
	t.Helper()
	var first []byte
	for run := range 2 {
		cmd := exec.Command(filepath.Join(testservers.Root(t), "deploy", "vault", "setup.sh"), kinds...)
		cmd.Env = env
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("setup.sh: %v\n%s", err, stderr.String())
		}
		if run == 0 {
			first = out
		} else if !bytes.Equal(out, first) {
			t.Fatalf("the second run printed\n%s\nafter\n%s", out, first)
		}
	}
	var file struct {
		Vault []struct {
			Name    string `json:"name"`
			Address string `json:"address"`
			AppRole struct {
				RoleID       string `json:"role_id"`
				SecretIDFile string `json:"secret_id_file"`
			} `json:"approle"`
		} `json:"vault"`
		Catalog []broker.CatalogEntry `json:"catalog"`
	}
	if err := yaml.UnmarshalStrict(first, &file); err != nil || len(file.Vault) != 1 {
		t.Fatalf("setup.sh printed %s: %v", first, err)
	}
	v := file.Vault[0]
	return Config{Address: v.Address, AppRole: &AppRole{RoleID: v.AppRole.RoleID, SecretIDFile: v.AppRole.SecretIDFile}}, file.Catalog
}

func (d deployed) fetch(t testing.TB, g broker.Granted) (broker.Secret, error) {
	t.Helper()
	return d.src.Fetch(t.Context(), grant.Mint(g))
}

// get fetches what must be there.
func (d deployed) get(t testing.TB, g broker.Granted) broker.Secret {
	t.Helper()
	s, err := d.fetch(t, g)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d deployed) write(t testing.TB, path string, body map[string]any) *api.Secret {
	t.Helper()
	s, err := d.root.Logical().WriteWithContext(t.Context(), path, body)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// other is a second broker with the same configuration.
func (d deployed) other(t testing.TB) *Source {
	t.Helper()
	s, err := New(t.Context(), d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t testing.TB, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for time.Since(start) < time.Minute {
		if ok() {
			return time.Since(start)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("after %s still not: %s", time.Since(start), what)
	return 0
}

// Each entry that setup.sh gives as an example works, with the policies that it wrote and no others.
func TestSetupCatalog(t *testing.T) {
	d := deploy(t, "database", "pki", "transit")
	d.write(t, "secret/data/db/vm-1", map[string]any{"data": map[string]any{"value": "x"}})
	catalog, err := broker.NewCatalog(d.catalog)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := d.src.NewOwner(t.Context(), "session-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := x509.MarshalPKIXPublicKey(rsaKey(t, 3072).Public())
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[broker.Kind]bool{}
	for _, e := range catalog.Entries() {
		path := strings.NewReplacer("{vm}", "vm-1", "{name}", "vm-1").Replace(e.Pattern)
		e, _, ok := catalog.Lookup(path)
		if !ok {
			t.Fatalf("%s is not in the catalog", path)
		}
		g := broker.Granted{Entry: e, Owner: &owner, PublicKey: recipient, TTL: time.Minute}
		switch e.Kind {
		case broker.KindPKI:
			g.Input = csrFor(t, ecKey(t, elliptic.P256()), x509.CertificateRequest{})
		case broker.KindTransitDecrypt:
			g.Input = []byte(d.write(t, "transit/encrypt/app", map[string]any{"plaintext": "aGk="}).Data["ciphertext"].(string))
		}
		s, err := d.fetch(t, g)
		if err != nil || len(s.Value) == 0 {
			t.Errorf("%s: %d bytes: %v", path, len(s.Value), err)
		}
		if e.Kind.Leased() {
			owner.Leases = append(owner.Leases, s.Lease)
		}
		if e.Kind.Watched() {
			if v, err := d.src.CurrentVersion(t.Context(), e); v != s.Version || err != nil {
				t.Errorf("%s: version %q, but current %q: %v", path, s.Version, v, err)
			}
		}
		if e.Rotatable {
			if _, err := d.src.Rotate(t.Context(), e); err != nil {
				t.Errorf("%s: rotate: %v", path, err)
			}
		}
		kinds[cmp.Or(e.Kind, broker.KindKV)] = true
	}
	if len(kinds) != 9 {
		t.Errorf("tried the kinds %v, want all 9 of Vault's", kinds)
	}
	if err := d.src.RenewOwner(t.Context(), owner, time.Minute); err != nil {
		t.Error(err)
	}
	if err := d.src.RevokeOwner(t.Context(), owner); err != nil {
		t.Error(err)
	}
	if _, err := d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindEAR, Key: "x"}}); err == nil {
		t.Error("made an attestation result")
	}
}

// The broker's token can do what the policies say and nothing around it.
func TestLeastPrivilege(t *testing.T) {
	d := deploy(t, "pki", "transit")
	token := *d.src.token.Load()
	for path, body := range map[string]map[string]any{
		"secret/data/other/x":                   nil,
		"secret/metadata/":                      nil,
		"sys/policies/acl/claviger-broker-kv":   nil,
		"auth/token/lookup-accessor":            {"accessor": "x"},
		"auth/token/create":                     {"policies": "root"},
		"auth/token/create/claviger-login":      {},
		"auth/approle/role/claviger/secret-id":  {},
		"pki/issue/workload":                    {"common_name": "claviger.internal"},
		"pki/sign-verbatim/workload":            {"csr": "x"},
		"transit/export/encryption-key/export":  nil,
		"transit/byok-export/app/app":           nil,
		"transit/datakey/plaintext/made-by-use": {},
		"transit/keys/app/config":               {"deletion_allowed": true},
		"secret/delete/disks/x":                 {"versions": "1"},
	} {
		c := d.root.WithRequestCallbacks(func(q *api.Request) { q.ClientToken = token })
		var err error
		if body == nil {
			_, err = c.Logical().ReadWithContext(t.Context(), path)
		} else {
			_, err = c.Logical().WriteWithContext(t.Context(), path, body)
		}
		if status(err) != 403 {
			t.Errorf("%s: got %v, want 403", path, err)
		}
	}
}
