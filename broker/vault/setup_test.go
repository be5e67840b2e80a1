package vault

import (
	"bytes"
	"cmp"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"sigs.k8s.io/yaml"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/internal/testservers"
	"github.com/claviger/claviger/policy"
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
	policies, err := policy.New(policy.Config{Dir: "../../examples/policies"})
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[broker.Kind]bool{}
	for _, e := range catalog.Entries() {
		if err := policies.Fits(e); err != nil {
			t.Errorf("with the example policies: %v", err)
		}
		path := strings.NewReplacer("{vm}", "vm-1", "{workload}", "vm-1").Replace(e.Pattern)
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

// runOnly runs the script once, with more in its environment.
func runOnly(t *testing.T, d deployed, file string, more ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(testservers.Root(t), "deploy", "vault", "setup.sh"))
	cmd.Env = append(append(os.Environ(), "VAULT="+testservers.VaultBinary(t), "VAULT_ADDR="+d.vault.Address, "VAULT_TOKEN="+d.vault.Token,
		"SECRET_ID_FILE="+file, "HOME="+t.TempDir()), more...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("setup.sh: %v\n%s", err, out)
	}
	return string(out)
}

// Secret ids end, and they and the token can be bound to networks. What is not given stays.
func TestSetupLimits(t *testing.T) {
	t.Parallel() // it mostly waits
	d := deploy(t)
	role := func(field string) string {
		got, err := d.root.Logical().Read("auth/approle/role/claviger")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(got.Data[field])
	}
	if got := role("secret_id_ttl"); got != fmt.Sprint(90*24*3600) {
		t.Errorf("secret ids live for %s s, want 90 days", got)
	}
	file := filepath.Join(t.TempDir(), "secret-id")
	if out := runOnly(t, d, file, "SECRET_ID_TTL=2s", "SECRET_ID_CIDRS=127.0.0.0/8", "TOKEN_CIDRS=127.0.0.0/8"); !strings.Contains(out, "good for 2 seconds") {
		t.Errorf("it says %s", out)
	}
	runOnly(t, d, file) // what is not given stays
	for field, want := range map[string]string{"secret_id_ttl": "2", "secret_id_bound_cidrs": "[127.0.0.0/8]", "token_bound_cidrs": "[127.0.0.0/8]"} {
		if got := role(field); got != want {
			t.Errorf("%s is %s, want %s", field, got, want)
		}
	}
	cfg := d.cfg
	cfg.AppRole = &AppRole{RoleID: d.cfg.AppRole.RoleID, SecretIDFile: file}
	if _, err := New(t.Context(), cfg); err != nil {
		t.Errorf("a fresh secret id: %v", err)
	}
	time.Sleep(3 * time.Second)
	d.write(t, "auth/approle/tidy/secret-id", nil) // as Vault does by itself, once a minute
	eventually(t, "one that has ended is refused", func() bool {
		_, err := New(t.Context(), cfg)
		return err != nil && strings.Contains(err.Error(), "has expired")
	})
	for _, bound := range []string{"SECRET_ID_CIDRS", "TOKEN_CIDRS"} {
		other := filepath.Join(t.TempDir(), "secret-id")
		runOnly(t, d, other, "SECRET_ID_TTL=1h", "SECRET_ID_CIDRS=127.0.0.0/8", "TOKEN_CIDRS=127.0.0.0/8", bound+"=10.99.0.0/16")
		cfg.AppRole = &AppRole{RoleID: d.cfg.AppRole.RoleID, SecretIDFile: other}
		src, err := New(t.Context(), cfg)
		if err == nil {
			_, err = src.CurrentVersion(t.Context(), broker.CatalogEntry{Key: "db/x"})
		}
		if err == nil || errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("%s: used from another network: %v", bound, err)
		}
	}
}

// allowed are the requests that the policies of deploy/vault are for, by method and path, and why.
type allowedCall struct{ call, why string }

func allowedFor(calls []allowedCall, call string) bool {
	return slices.ContainsFunc(calls, func(a allowedCall) bool { return regexp.MustCompile("^(" + a.call + ")$").MatchString(call) })
}

// everybody may do these with any token, whatever its policies.
var everybody = []allowedCall{
	{"(GET|LIST) sys/internal/ui/(mounts.*|resultant-acl|namespaces|.*message.*|version)", "Vault answers with what the token may see"},
	{".* (sys/wrapping/(unwrap|rewrap)|identity/oidc/provider/.*/userinfo)", "they go by another token, which is in the request"},
	{"GET (sys/internal/ui/feature-flags|sys/metrics)", "open in a development server"},
	{"PUT sys/(step-down|pprof)", "nothing to step down from without a cluster; no such method"},
}

// Of all that Vault's own description of its API names, the broker's token, a session's and a guest's may do
// what is listed here, and nothing else: each call is made, and must be refused.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	d := deploy(t, "database", "pki", "transit")
	d.write(t, "secret/data/disks/x", map[string]any{"data": map[string]any{"value": "x"}})
	owner, err := d.src.NewOwner(t.Context(), "session-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	login := d.get(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindLogin, Key: "claviger-login"}, Owner: &owner})
	spec, err := d.root.Logical().ReadRawWithData("sys/internal/specs/openapi", url.Values{"generic_mount_paths": {"false"}})
	if err != nil {
		t.Fatal(err)
	}
	defer spec.Body.Close()
	var described struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.NewDecoder(spec.Body).Decode(&described); err != nil || len(described.Paths) < 300 {
		t.Fatalf("%d paths: %v", len(described.Paths), err)
	}
	// Names in place of variables: those that there are, and others.
	names := []string{"x", "disks/x", "db/x", "app", "workload", "export", "claviger", "claviger-session", "claviger-byok-x"}
	variable := regexp.MustCompile(`\{[^}]*\}`)
	var calls []string
	for path, item := range described.Paths {
		path = strings.TrimPrefix(path, "/")
		open := false
		for k, v := range item {
			open = open || k == "x-vault-unauthenticated" && string(v) == "true"
		}
		if open || strings.HasPrefix(path, "sys/init") || strings.HasPrefix(path, "sys/rekey") || strings.HasPrefix(path, "sys/generate-root") {
			continue // no token is asked for
		}
		for _, name := range names {
			for _, method := range []string{"GET", "LIST", "PUT", "DELETE"} {
				if method == "PUT" && strings.HasSuffix(path, "/") { // a list
					continue
				}
				calls = append(calls, method+" "+variable.ReplaceAllLiteralString(path, name))
			}
		}
	}
	slices.Sort(calls)
	calls = slices.Compact(calls)
	for who, tt := range map[string]struct {
		token string
		may   []allowedCall
	}{
		"broker": {*d.src.token.Load(), []allowedCall{
			{"GET auth/token/lookup-self", "its own token"}, {"PUT auth/token/renew-self", "its own token"},
			{"PUT auth/token/create/claviger-session", "owners of sessions"}, {"PUT auth/token/(renew|revoke)-accessor", "of sessions, by the accessor"},
			{"PUT sys/leases/renew", "of sessions"}, {"PUT sys/renew", "the same by its old name"},
			{"(GET|PUT) secret/data/disks/x", "create_bytes"}, {"GET secret/data/db/x", "read only"}, {"GET secret/metadata/(disks|db)/x/?", "versions"},
			{"GET database/static-(creds|roles)/.*", "static passwords"}, {"PUT database/rotate-role/.*", "rotatable entries"},
			{"PUT pki/sign/workload", "certificates"},
			{"PUT transit/decrypt/app", "decrypt"}, {"PUT transit/datakey/plaintext/app", "datakey"},
			{"(PUT|DELETE) transit/keys/claviger-byok-x.*", "the guest's key, for the moment that it is there"}, {"GET transit/byok-export/[^/]+/export", "export"},
		}},
		"session": {string(owner.Secret), []allowedCall{
			{"GET auth/token/lookup-self", "its own token"}, {"PUT auth/token/renew-self", "its own token"}, {"PUT sys/(leases/)?renew", "its own leases"},
			{"GET database/creds/app", "dynamic role"}, {"PUT auth/token/create/claviger-login", "logins"},
		}},
		"guest": {parse[struct{ Token string }](t, login).Token, []allowedCall{
			{"GET auth/token/lookup-self", "its own token"}, {"PUT auth/token/renew-self", "its own token"},
			{"(GET|PUT|DELETE) cubbyhole/.*", "its own"},
		}},
	} {
		tried, refused := 0, 0
		for _, call := range calls {
			if allowedFor(everybody, call) || allowedFor(tt.may, call) {
				continue
			}
			method, path, _ := strings.Cut(call, " ")
			req, err := http.NewRequestWithContext(t.Context(), method, d.vault.Address+"/v1/"+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Vault-Token", tt.token)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			tried++
			if resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusMethodNotAllowed {
				refused++
			} else {
				t.Errorf("%s: %s: %d, want 403", who, call, resp.StatusCode)
			}
		}
		if tried < 3000 || refused < tried*9/10 {
			t.Errorf("%s: %d calls, %d refused", who, tried, refused)
		}
		t.Logf("%s: %d calls refused of %d", who, refused, tried)
	}
	// It was the tokens' rights: they are good.
	for who, token := range map[string]string{"broker": *d.src.token.Load(), "session": string(owner.Secret)} {
		c := d.root.WithRequestCallbacks(func(q *api.Request) { q.ClientToken = token })
		if _, err := c.Auth().Token().LookupSelf(); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	if _, err := d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Key: "disks/x"}}); err != nil {
		t.Error(err)
	}
}
