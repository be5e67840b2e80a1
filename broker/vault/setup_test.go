package vault

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	d.cfg = runSetup(t, env, kinds)
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
func runSetup(t testing.TB, env, kinds []string) Config {
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
	}
	if err := yaml.UnmarshalStrict(first, &file); err != nil || len(file.Vault) != 1 {
		t.Fatalf("setup.sh printed %s: %v", first, err)
	}
	v := file.Vault[0]
	return Config{Address: v.Address, AppRole: &AppRole{RoleID: v.AppRole.RoleID, SecretIDFile: v.AppRole.SecretIDFile}}
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
	for time.Since(start) < 15*time.Second {
		if ok() {
			return time.Since(start)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("after %s still not: %s", time.Since(start), what)
	return 0
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
