package brokertest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// leaseWorld is a real Vault over a real PostgreSQL, set up by deploy/vault/setup.sh, and a real etcd.
type leaseWorld struct {
	vault *testservers.Vault
	pg    *testservers.Postgres
	env   *dev.Env
	cfg   server.Config
}

func newLeaseWorld(t *testing.T) *leaseWorld {
	t.Helper()
	w := &leaseWorld{vault: testservers.StartVault(t)}
	testservers.PostgresPlugin(t)
	w.pg = testservers.StartPostgres(t)
	cmd := exec.Command(filepath.Join(testservers.Root(t), "deploy", "vault", "setup.sh"), "database")
	cmd.Env = append(os.Environ(), "VAULT="+testservers.VaultBinary(t), "VAULT_ADDR="+w.vault.Address, "VAULT_TOKEN="+w.vault.Token,
		"SECRET_ID_FILE="+filepath.Join(t.TempDir(), "secret-id"), "HOME="+t.TempDir(), "DATABASE_TTL=30s",
		"POSTGRES="+w.pg.Address+"/app", "POSTGRES_USER="+w.pg.User, "POSTGRES_PASSWORD="+w.pg.Password, "POSTGRES_SSLMODE=disable")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("setup.sh: %v", err)
	}
	var printed server.Config
	if err := yaml.Unmarshal(out, &printed); err != nil {
		t.Fatal(err)
	}
	if w.env, err = dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now()); err != nil {
		t.Fatal(err)
	}
	sealKey := filepath.Join(w.env.Dir, "seal.key")
	if err := os.WriteFile(sealKey, []byte(strings.Repeat("ab", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.cfg = w.env.Config
	w.cfg.Listen, w.cfg.Admin.Listen, w.cfg.Metrics = "127.0.0.1:0", "127.0.0.1:0", "off"
	w.cfg.Etcd.Endpoints, w.cfg.SealKey = testservers.StartEtcd(t, 1).Endpoints, sealKey
	w.cfg.Vault = printed.Vault
	w.cfg.Catalog = append(w.cfg.Catalog, server.Entry{Pattern: "reports/db", Source: "vault", Kind: "database", Key: "app", Policy: "disks"})
	w.cfg.Sessions = server.Sessions{
		TTL: server.Duration(4 * time.Second), OwnerTTL: server.Duration(6 * time.Second), Resume: server.Duration(2 * time.Second),
	}
	return w
}

// broker is one broker of the cluster, in this process.
func (w *leaseWorld) broker(t *testing.T) *Broker {
	t.Helper()
	return StartEnv(t, w.env, func(c *server.Config) { *c = w.config(t, "here") })
}

// config is that of one of the brokers: each has data and a log of its own.
func (w *leaseWorld) config(t *testing.T, name string) server.Config {
	c := w.cfg
	c.DataDir = filepath.Join(t.TempDir(), name)
	c.Audit = server.Audit{Origin: "claviger/" + name}
	return c
}

// roles are the PostgreSQL users that Vault has made.
func (w *leaseWorld) roles(t *testing.T) int {
	t.Helper()
	out := strings.TrimSpace(w.pg.Query(t, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'"))
	return int(out[0] - '0')
}

// leases are those that Vault knows of.
func (w *leaseWorld) leases(t *testing.T) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "LIST", w.vault.Address+"/v1/sys/leases/lookup/database/creds/app", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", w.vault.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return 0
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b[strings.Index(string(b), `"keys"`):]), `"`)/2 - 1
}

type credential struct{ Username, Password string }

func credentialOf(t *testing.T, s agent.Secret) credential {
	t.Helper()
	var c credential
	if err := json.Unmarshal(s.Value, &c); err != nil || c.Username == "" || s.ContentType != "application/json" {
		t.Fatalf("%v: %s", err, s.ContentType)
	}
	return c
}

// within waits for something that takes its time.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			t.Fatalf("not within %s: %s", d, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("%s: after %s", what, time.Since(start).Round(10*time.Millisecond))
}

// TestLeaseFollowsItsSession: a database user lives while its session does, and no longer.
func TestLeaseFollowsItsSession(t *testing.T) {
	t.Parallel()
	w := newLeaseWorld(t)
	b := w.broker(t)
	start := func(t *testing.T) (*guest, credential) {
		g := watch(t, b.Client(t, teesim.ReportOptions{}), "reports/db")
		c := credentialOf(t, g.next(t, 10*time.Second))
		if err := w.pg.Login(c.Username, c.Password); err != nil {
			t.Fatalf("the credential does not work: %v", err)
		}
		return g, c
	}
	gone := func(c credential) func() bool {
		return func() bool { return w.pg.Login(c.Username, c.Password) != nil && w.leases(t) == 0 && w.roles(t) == 0 }
	}
	t.Run("renewed while the session is healthy", func(t *testing.T) {
		g, c := start(t)
		g.quiet(t, 14*time.Second) // several re-attestations, and twice the owner's life
		if err := w.pg.Login(c.Username, c.Password); err != nil {
			t.Errorf("the credential ended before its session: %v", err)
		}
		g.stop()
		within(t, 15*time.Second, "revoked once the workload is gone", gone(c))
	})
	t.Run("revoked with the session", func(t *testing.T) {
		g, c := start(t)
		all, err := b.Admin.ListSessions(t.Context(), &pb.ListSessionsRequest{})
		if err != nil || len(all.GetSessions()) != 1 || all.GetSessions()[0].GetLeases() != 1 {
			t.Fatalf("%v %v", all, err)
		}
		if _, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "session", Value: all.GetSessions()[0].GetId()}}); err != nil {
			t.Fatal(err)
		}
		within(t, 3*time.Second, "user dropped after the revocation", gone(c))
		if err := g.ended(t, 5*time.Second); !errors.Is(err, agent.ErrDenied) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("a release without a session", func(t *testing.T) {
		secrets, _ := get(t, b.Client(t, teesim.ReportOptions{}), "reports/db")
		c := credentialOf(t, secrets[0])
		if err := w.pg.Login(c.Username, c.Password); err != nil {
			t.Fatalf("the credential does not work: %v", err)
		}
		time.Sleep(8 * time.Second) // the owner would have ended by itself, were it not kept
		if err := w.pg.Login(c.Username, c.Password); err != nil {
			t.Errorf("ended before its time: %v", err)
		}
		sets, err := b.Admin.ListReferenceSets(t.Context(), &pb.ListReferenceSetsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sets.GetSets() { // the policy stops allowing it
			s.State = "retired"
			if _, err := b.Admin.PutReferenceSet(t.Context(), &pb.PutReferenceSetRequest{Set: s}); err != nil {
				t.Fatal(err)
			}
		}
		within(t, 5*time.Second, "user dropped after the policy changed", gone(c))
	})
}

// gate is a proxy before Vault that lets a test act at an exact step.
type gate struct {
	*httptest.Server
	mu   sync.Mutex
	stop func(stage, path string) bool // true: cut the connection, nothing goes through any more
	cut  atomic.Bool
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{}
	proxy := httputil.NewSingleHostReverseProxy(u)
	at := func(stage, path string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.cut.Load() || g.stop != nil && g.stop(stage, path) {
			g.cut.Store(true)
			panic(http.ErrAbortHandler)
		}
	}
	proxy.ModifyResponse = func(r *http.Response) error { at("after", r.Request.URL.Path); return nil }
	g.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		at("before", r.URL.Path)
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(g.Close)
	return g
}

// TestNoLeaseIsOrphaned kills a broker at each step of a lease's making, as a
// power cut does, and counts what is left in Vault and PostgreSQL once the
// session's time is over and another broker has seen to it.
func TestNoLeaseIsOrphaned(t *testing.T) {
	t.Parallel()
	w := newLeaseWorld(t)
	survivor := w.broker(t)
	for _, step := range []struct {
		name, stage, path string
		made              int // database users at that moment
	}{
		{"before the owner is made", "before", "/v1/auth/token/create/claviger-session", 0},
		{"the owner is made, nobody knows", "after", "/v1/auth/token/create/claviger-session", 0},
		{"before the user is made", "before", "/v1/database/creds/app", 0},
		{"the user is made, nobody knows", "after", "/v1/database/creds/app", 1},
		{"the workload has it", "", "", 1},
	} {
		t.Run(step.name, func(t *testing.T) {
			proxy := newGate(t, w.vault.Address)
			cfg := w.config(t, "victim")
			cfg.Vault = append([]server.Vault(nil), cfg.Vault...)
			cfg.Vault[0].Address = proxy.URL
			addr, kill := startChild(t, w.env, cfg)
			reached := make(chan struct{})
			proxy.mu.Lock()
			proxy.stop = func(stage, path string) bool {
				if stage != step.stage || path != step.path {
					return false
				}
				kill()
				close(reached)
				return true
			}
			proxy.mu.Unlock()
			got := make(chan struct{}, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c := clientAt(t, survivor, addr)
			go func() {
				_ = c.Watch(ctx, []string{"reports/db"}, func(context.Context, agent.Secret) error { got <- struct{}{}; return nil })
			}()
			if step.stage == "" {
				<-got
				kill()
			} else {
				select {
				case <-reached:
				case <-got:
					t.Fatal("the broker was not killed at this step")
				case <-time.After(time.Minute):
					t.Fatal("the step was never reached")
				}
			}
			cancel()
			if n := w.roles(t); n != step.made {
				t.Errorf("%d users in PostgreSQL at the moment of the kill, want %d", n, step.made)
			}
			within(t, 40*time.Second, "nothing is left", func() bool { return w.roles(t) == 0 && w.leases(t) == 0 && w.owners(t) == 0 })
		})
	}
}

// owners are the session tokens that Vault knows of.
func (w *leaseWorld) owners(t *testing.T) int {
	t.Helper()
	n := 0
	var list struct{ Data struct{ Keys []string } }
	w.do(t, "LIST", "auth/token/accessors", nil, &list)
	for _, a := range list.Data.Keys {
		var one struct {
			Data struct {
				DisplayName string `json:"display_name"`
			}
		}
		if w.do(t, http.MethodPost, "auth/token/lookup-accessor", map[string]string{"accessor": a}, &one) && strings.Contains(one.Data.DisplayName, "claviger-session") {
			n++
		}
	}
	return n
}

func (w *leaseWorld) do(t *testing.T, method, path string, body, out any) bool {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, w.vault.Address+"/v1/"+path, strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", w.vault.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		t.Fatal(err)
	}
	return true
}

// clientAt is a guest's client of the cluster at another address.
func clientAt(t *testing.T, b *Broker, addr string) *agent.Client {
	t.Helper()
	c, err := agent.New(b.clientConfig(t, teesim.ReportOptions{}, addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestLeaseSurvivesItsBroker: the workload goes on with another broker, with
// the same session and the same credential, which that broker keeps alive.
func TestLeaseSurvivesItsBroker(t *testing.T) {
	t.Parallel()
	w := newLeaseWorld(t)
	w.cfg.Sessions.Resume = server.Duration(20 * time.Second)
	survivor := w.broker(t)
	addr, kill := startChild(t, w.env, w.config(t, "victim"))
	front := newFront(t, addr)
	g := watch(t, clientAt(t, survivor, front.addr), "reports/db")
	c := credentialOf(t, g.next(t, 20*time.Second))
	time.Sleep(500 * time.Millisecond) // the acknowledgement
	kill()
	here, _, _ := survivor.Server.Addresses()
	front.to(here)
	g.quiet(t, 14*time.Second)
	if err := w.pg.Login(c.Username, c.Password); err != nil {
		t.Errorf("the credential died with its broker: %v", err)
	}
	h := survivor.holders(t, "reports/db").GetHolders()
	if len(h) != 1 || w.roles(t) != 1 {
		t.Errorf("holders %v, users %d", h, w.roles(t))
	}
}

// front is an address whose broker can change.
type front struct {
	addr    string
	backend atomic.Value
}

func newFront(t *testing.T, backend string) *front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f := &front{addr: l.Addr().String()}
	f.to(backend)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", f.backend.Load().(string))
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(out, in); out.Close() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return f
}

func (f *front) to(backend string) { f.backend.Store(backend) }
