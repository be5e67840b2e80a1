package brokertest

import (
	"bufio"
	"context"
	"fmt"
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
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
)

// stormVault is a real Vault behind a proxy that counts the requests for
// secrets that are under way, and holds them until it is opened.
type stormVault struct {
	front     *httptest.Server
	open      chan struct{}
	now, most atomic.Int64
}

// newStormVault returns a Vault and the broker's configuration for it, as deploy/vault/setup.sh prints it.
func newStormVault(t *testing.T) (*stormVault, server.Vault) {
	t.Helper()
	v := testservers.StartVault(t)
	cmd := exec.Command(filepath.Join(testservers.Root(t), "deploy", "vault", "setup.sh"))
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
	to, err := url.Parse(v.Address)
	if err != nil {
		t.Fatal(err)
	}
	s := &stormVault{open: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(to)
	s.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/secret/") {
			n := s.now.Add(1)
			defer s.now.Add(-1)
			for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
			}
			select {
			case <-s.open:
			case <-r.Context().Done():
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.front.Close)
	c := printed.Vault[0]
	c.Address = s.front.URL
	return s, c
}

// metric is the sum over all labels of a metric of the broker, or of one sample with its label.
func (b *Broker) metric(t *testing.T, name string) int {
	t.Helper()
	_, _, addr := b.Server.Addresses()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum, found := 0, false
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok && (rest[0] == ' ' || rest[0] == '{') {
			var n float64
			if _, err := fmt.Sscan(rest[strings.LastIndex(rest, " ")+1:], &n); err != nil {
				t.Fatal(err)
			}
			sum, found = sum+int(n), true
		}
	}
	if !found {
		t.Fatalf("the broker has no metric %s", name)
	}
	return sum
}

// TestBootStorm boots 500 guests at once, half of them for a disk key and half
// for an application secret, on 64 SIMULATED chips. Vault stands still until all
// have come. The vendor's service is down; it was not before.
func TestBootStorm(t *testing.T) {
	if testing.Short() {
		t.Skip("500 guests are not short")
	}
	const guests, chips, concurrency, vaultConcurrency = 500, 64, 8, 4
	for name, queue := range map[string]int{"all wait": guests, "most are sent away": 64} {
		t.Run(name, func(t *testing.T) {
			vault, vaultConfig := newStormVault(t)
			vaultConfig.MaxConcurrency, vaultConfig.Timeout = vaultConcurrency, server.Duration(2*time.Minute)
			var crl []byte
			var asked atomic.Int64
			kds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.Write(crl)
			}))
			defer kds.Close()
			b := Start(t, func(c *server.Config) {
				off := 0.0
				c.Limits = server.Limits{Concurrency: concurrency, Queue: queue, QueueTime: server.Duration(2 * time.Minute), PeerRate: &off}
				c.Vault = []server.Vault{vaultConfig}
				c.Evidence = server.Evidence{KDS: kds.URL, Ages: map[attest.CollateralKind]server.AgeSpec{
					attest.SNPCRL: {Refresh: server.Duration(time.Millisecond), Max: server.Duration(24 * time.Hour)}}}
				c.Catalog = append(c.Catalog,
					server.Entry{Pattern: "boot/{vm}", Source: "vault", Key: "disks/{vm}", Policy: "disks", CreateBytes: 32, Priority: "boot"},
					server.Entry{Pattern: "app/{vm}", Source: "vault", Key: "disks/{vm}", Policy: "disks", CreateBytes: 32})
			})
			var err error
			if crl, err = b.Env.Root.CRL(time.Now()); err != nil {
				t.Fatal(err)
			}
			get(t, b.Client(t, teesim.ReportOptions{}), "disks/warm") // from the embedded store: Vault stands still
			if asked.Load() == 0 {
				t.Fatal("the vendor's service was not asked: nothing is proven by its absence")
			}
			kds.Close()

			addr, _, _ := b.Server.Addresses()
			cfg := b.clientConfig(t, teesim.ReportOptions{}, addr)
			var devices [chips]device
			for i := range devices {
				d, err := b.Env.Root.NewDevice(teesim.DeviceOptions{})
				if err != nil {
					t.Fatal(err)
				}
				devices[i] = device{d, teesim.ReportOptions{Measurement: teesim.Measurement("")}}
			}
			var mu sync.Mutex
			var order []string // of the classes, as guests got their keys; guarded by mu, as are the next two
			keys := map[string]string{}
			var refused int
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			var wg sync.WaitGroup
			defer wg.Wait()
			boot := func(i int) {
				class := []string{"app", "boot"}[i%2]
				resource := fmt.Sprintf("%s/vm-%d", class, i)
				cfg := cfg
				cfg.Device = devices[i%chips]
				// A guest that is sent away counts once, when it says that it tries again.
				var once sync.Once
				cfg.Logf = func(string, ...any) { once.Do(func() { mu.Lock(); refused++; mu.Unlock() }) }
				c, err := agent.New(cfg)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				s, _, err := c.Get(ctx, resource)
				if err != nil {
					t.Errorf("%s: %v", resource, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				order, keys[string(s[0].Value)] = append(order, class), resource
				if len(s[0].Value) != 32 {
					t.Errorf("%s: %d bytes", resource, len(s[0].Value))
				}
			}
			for i := range guests {
				wg.Go(func() { boot(i) })
			}
			// All have come: they are served, wait, or have been sent away.
			fewest := min(queue, guests-concurrency)
			for {
				waiting := b.metric(t, "claviger_queue_waiting")
				mu.Lock()
				sentAway := refused
				mu.Unlock()
				if waiting > queue {
					t.Fatalf("%d wait in a queue for %d", waiting, queue)
				}
				if waiting == fewest && concurrency+waiting+sentAway >= guests {
					break
				}
				select {
				case <-time.After(10 * time.Millisecond):
				case <-ctx.Done():
					t.Fatalf("%d wait and %d were sent away", waiting, sentAway)
				}
			}
			if got := vault.now.Load(); got != vaultConcurrency {
				t.Errorf("Vault has %d requests, want all of its %d", got, vaultConcurrency)
			}
			close(vault.open)
			wg.Wait()
			if len(order) != guests || len(keys) != guests {
				t.Fatalf("%d of %d guests were served, with %d different keys", len(order), guests, len(keys))
			}
			if got := vault.most.Load(); got > vaultConcurrency {
				t.Errorf("Vault had %d requests at a time, of at most %d", got, vaultConcurrency)
			}
			if displaced := b.metric(t, "claviger_queue_displaced_total"); (displaced > 0) != (queue < guests) {
				t.Errorf("%d displaced from a queue for %d", displaced, queue)
			}
			if queue < guests {
				return // who is sent away comes back by chance
			}
			places := map[string][]int{}
			for i, class := range order {
				places[class] = append(places[class], i)
			}
			p99 := func(class string) int { return places[class][len(places[class])*99/100] }
			t.Logf("in the order of %d, the place of p50 and p99: disk keys %d, %d; application secrets %d, %d", guests,
				places["boot"][len(places["boot"])/2], p99("boot"), places["app"][len(places["app"])/2], p99("app"))
			if p99("boot") > p99("app") {
				t.Errorf("p99 of the disk keys is at place %d, of the application secrets at %d", p99("boot"), p99("app"))
			}
		})
	}
}
