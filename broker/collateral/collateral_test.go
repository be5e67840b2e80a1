package collateral

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sevdata "github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"
	tdxtesting "github.com/google/go-tdx-guest/testing"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"
	"golang.org/x/time/rate"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// vendor replays recorded answers of AMD's KDS and Intel's PCS, and misbehaves on request.
type vendor struct {
	*httptest.Server
	snpCRL []byte

	mu        sync.Mutex
	requests  map[string]int                                // guarded by mu; by path and query
	misbehave func(http.ResponseWriter, *http.Request) bool // guarded by mu; says whether it answered
}

func newVendor(t *testing.T) *vendor {
	t.Helper()
	root, err := teesim.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	v := &vendor{requests: map[string]int{}}
	if v.snpCRL, err = root.CRL(time.Now()); err != nil {
		t.Fatal(err)
	}
	v.Server = httptest.NewServer(v)
	t.Cleanup(v.Close)
	return v
}

func (v *vendor) services() Services {
	return Services{KDS: v.URL, PCS: v.URL + "/", IntelRootCRL: v.URL + "/IntelSGXRootCA.der"}
}

func (v *vendor) set(f func(http.ResponseWriter, *http.Request) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.misbehave = f
}

func (v *vendor) total() (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.requests {
		n += c
	}
	return n
}

func (v *vendor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	v.requests[r.URL.RequestURI()]++
	bad := v.misbehave
	v.mu.Unlock()
	if bad != nil && bad(w, r) {
		return
	}
	header := func(h map[string][]string) {
		for k, vs := range h {
			w.Header()[http.CanonicalHeaderKey(k)] = vs
		}
	}
	switch p := r.URL.Path; {
	case strings.HasSuffix(p, "/cert_chain"):
		w.Write(trust.AskArkMilanVcekBytes)
	case strings.HasSuffix(p, "/crl"):
		w.Write(v.snpCRL)
	case strings.HasPrefix(p, "/vcek/v1/"):
		w.Write(sevdata.VcekBytes)
	case strings.HasSuffix(p, "/tcb"):
		header(tdxtesting.TcbInfoHeader)
		w.Write(tdxdata.TcbInfoBody)
	case strings.HasSuffix(p, "/qe/identity"):
		header(tdxtesting.QeIdentityHeader)
		w.Write(tdxdata.QeIdentityBody)
	case strings.HasSuffix(p, "/pckcrl"):
		header(tdxtesting.PckCrlHeader)
		w.Write(tdxdata.PckCrlBody)
	case p == "/IntelSGXRootCA.der":
		w.Write(tdxdata.RootCrlBody)
	default:
		http.NotFound(w, r)
	}
}

// clock is a settable Config.Now.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// anybody is a Checker that believes all that has the form of a piece: the tests
// of ages, outages and editions replay answers to other questions.
type anybody struct{}

func (anybody) CheckCollateral(_ context.Context, ref attest.CollateralRef, it attest.CollateralItem, _ attest.Collateral) error {
	if err := plausible(ref.Kind, it.Data); err != nil {
		return attest.Errorf("anybody", attest.ReasonCollateralInvalid, "%w", err)
	}
	return nil
}

func writeFolder(t *testing.T, folder string, ref attest.CollateralRef, it attest.CollateralItem) error {
	t.Helper()
	_, err := newSource(t, Config{}).WriteFolder(t.Context(), folder, ref, it)
	return err
}

func newSource(t *testing.T, cfg Config) *Source {
	t.Helper()
	if cfg.Checker == nil {
		cfg.Checker = anybody{}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.limiter, s.chips = rate.NewLimiter(rate.Inf, 0), rate.NewLimiter(rate.Inf, 0)
	return s
}

func mustGet(t *testing.T, s *Source, ref attest.CollateralRef) attest.CollateralItem {
	t.Helper()
	it, err := s.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return it
}

func wantReason(t *testing.T, s *Source, ref attest.CollateralRef, want attest.Reason) error {
	t.Helper()
	_, err := s.Get(t.Context(), ref)
	if err == nil || attest.ReasonOf(err) != want {
		t.Fatalf("got %v, want reason %s", err, want)
	}
	return err
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 12_000 { // a minute
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

var milanCRL = attest.CollateralRef{Kind: attest.SNPCRL, Key: "milan/vcek"}

// TestURLs pins the requests: AMD publication 57230 and Intel's PCS API v4.
func TestURLs(t *testing.T) {
	const chip = "00ff"
	for _, c := range []struct {
		kind  attest.CollateralKind
		key   string
		want  string
		chain bool
	}{
		{attest.SNPChain, "milan/vcek", "/vcek/v1/Milan/cert_chain", false},
		{attest.SNPChain, "genoa/vlek", "/vlek/v1/Genoa/cert_chain", false},
		{attest.SNPCRL, "milan/vcek", "/vcek/v1/Milan/crl", false},
		{attest.SNPCRL, "turin/vlek", "/vlek/v1/Turin/crl", false},
		{attest.SNPVCEK, "milan/" + chip + "/d315000000000004", "/vcek/v1/Milan/00ff?blSPL=4&teeSPL=0&snpSPL=21&ucodeSPL=211", false},
		{attest.SNPVCEK, "genoa/" + chip + "/4815000000000107", "/vcek/v1/Genoa/00ff?blSPL=7&teeSPL=1&snpSPL=21&ucodeSPL=72", false},
		{attest.SNPVCEK, "turin/" + chip + "/4d00000004030201", "/vcek/v1/Turin/00ff?fmcSPL=1&blSPL=2&teeSPL=3&snpSPL=4&ucodeSPL=77", false},
		{attest.TDXTCBInfo, "50806f000000", "/tdx/certification/v4/tcb?fmspc=50806f000000", true},
		{attest.SGXTCBInfo, "50806f000000", "/sgx/certification/v4/tcb?fmspc=50806f000000", true},
		{attest.TDXQEID, "", "/tdx/certification/v4/qe/identity", true},
		{attest.SGXQEID, "", "/sgx/certification/v4/qe/identity", true},
		{attest.PCKCRL, "platform", "/sgx/certification/v4/pckcrl?ca=platform&encoding=der", true},
		{attest.IntelRootCRL, "", "/IntelSGXRootCA.der", false},
	} {
		t.Run(string(c.kind)+" "+c.key, func(t *testing.T) {
			v := newVendor(t)
			it := mustGet(t, newSource(t, Config{Services: v.services()}), attest.CollateralRef{Kind: c.kind, Key: c.key})
			if v.requests[c.want] != 1 || v.total() != 1 {
				t.Errorf("requests %v, want %s", v.requests, c.want)
			}
			if it.Source != "service" || it.Stale || time.Since(it.FetchedAt) > time.Minute {
				t.Errorf("got %s stale=%v %s", it.Source, it.Stale, it.FetchedAt)
			}
			if has := bytes.HasPrefix(it.IssuerChain, []byte("-----BEGIN CERTIFICATE-----\n")); has != c.chain {
				t.Errorf("issuer chain %.40q", it.IssuerChain)
			}
		})
	}
}

// TestKeys: a key that a guest influences names nothing but a piece.
func TestKeys(t *testing.T) {
	dir := tempDir(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), tdxdata.RootCrlBody, 0o600); err != nil {
		t.Fatal(err)
	}
	v := newVendor(t)
	s := newSource(t, Config{Services: v.services(), Folder: filepath.Join(dir, "folder"), CacheDir: filepath.Join(dir, "cache")})
	for _, key := range []string{
		"../../secret", "..", ".", "milan/../../secret", "/etc/passwd", "milan//vcek", "milan/", "Milan/vcek", "milan\\vcek",
		"milan/vcek\x00", "milan/vcek?x=1", "milan/vcek#", "a b", "%2e%2e", "milan/.hidden", "milan/vcek\n", strings.Repeat("a", 257),
	} {
		wantReason(t, s, attest.CollateralRef{Kind: attest.SNPCRL, Key: key}, attest.ReasonUnsupported)
		if err := writeFolder(t, dir, attest.CollateralRef{Kind: attest.SNPCRL, Key: key}, attest.CollateralItem{Data: []byte("x")}); err == nil && len(key) <= 256 {
			t.Errorf("WriteFolder took %q", key)
		}
	}
	wantReason(t, s, attest.CollateralRef{Kind: "../x"}, attest.ReasonUnsupported)
	for _, ref := range []attest.CollateralRef{
		{Kind: attest.SNPCRL, Key: "milan/root"}, {Kind: attest.SNPCRL, Key: "a/b/c"}, {Kind: attest.SNPChain, Key: "milan"},
		{Kind: attest.SNPVCEK, Key: "milan/00"}, {Kind: attest.SNPVCEK, Key: "milan/00/zz"}, {Kind: attest.SNPVCEK, Key: "milan/00/00"},
	} {
		wantReason(t, s, ref, attest.ReasonCollateralMissing)
	}
	if v.total() != 0 {
		t.Errorf("bad keys went to the service: %v", v.requests)
	}
}

// TestOrder: bundle, folder, cache, service; the next one where one is missing or too old.
func TestOrder(t *testing.T) {
	v := newVendor(t)
	dir := tempDir(t)
	pack, folder, cache := filepath.Join(dir, "pack"), filepath.Join(dir, "folder"), filepath.Join(dir, "cache")
	pub, key, _ := ed25519.GenerateKey(nil)
	for _, d := range []string{pack, folder} {
		if err := writeFolder(t, d, milanCRL, attest.CollateralItem{Data: v.snpCRL}); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-31 * 24 * time.Hour)
	packed := filepath.Join(pack, fileName(milanCRL))
	bundle := func() *Bundle {
		path := filepath.Join(dir, "b.tar.gz")
		if err := WriteBundle(path, pack, key); err != nil {
			t.Fatal(err)
		}
		b, err := ReadBundle(path, pub)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	all := Config{Bundle: bundle(), Folder: folder, CacheDir: cache, Services: v.services()}
	want := func(cfg Config, source string) {
		t.Helper()
		if it := mustGet(t, newSource(t, cfg), milanCRL); it.Source != source {
			t.Errorf("from %s, want %s", it.Source, source)
		}
	}
	want(all, "bundle")
	if err := os.Chtimes(packed, old, old); err != nil {
		t.Fatal(err)
	}
	all.Bundle = bundle()
	want(all, "folder") // the bundle's is too old
	if err := os.Chtimes(filepath.Join(folder, fileName(milanCRL)), old, old); err != nil {
		t.Fatal(err)
	}
	want(all, "service")
	want(all, "cache") // a restart
	if v.total() != 1 {
		t.Errorf("%d requests, want 1", v.total())
	}
	if err := os.WriteFile(filepath.Join(cache, fileName(milanCRL)+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(all, "service") // a damaged cache is no cache
	// Garbage in the folder is passed over.
	if err := os.WriteFile(filepath.Join(folder, fileName(milanCRL)), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(Config{Folder: folder, Services: v.services()}, "service")
}

// TestIssuerChainInFolder: what Intel sends in a header survives folder and bundle.
func TestIssuerChainInFolder(t *testing.T) {
	v, dir := newVendor(t), tempDir(t)
	ref := attest.CollateralRef{Kind: attest.TDXQEID}
	it := mustGet(t, newSource(t, Config{Services: v.services()}), ref)
	if err := writeFolder(t, dir, ref, it); err != nil {
		t.Fatal(err)
	}
	got := mustGet(t, newSource(t, Config{Folder: dir}), ref)
	if !bytes.Equal(got.Data, it.Data) || !bytes.Equal(got.IssuerChain, it.IssuerChain) {
		t.Error("folder changed the piece")
	}
	pub, key, _ := ed25519.GenerateKey(nil)
	path := filepath.Join(tempDir(t), "b")
	if err := WriteBundle(path, dir, key); err != nil {
		t.Fatal(err)
	}
	b, err := ReadBundle(path, pub)
	if err != nil || b.Len() != 1 {
		t.Fatalf("%d pieces: %v", b.Len(), err)
	}
	got = mustGet(t, newSource(t, Config{Bundle: b}), ref)
	if !bytes.Equal(got.Data, it.Data) || !bytes.Equal(got.IssuerChain, it.IssuerChain) {
		t.Error("bundle changed the piece")
	}
}

func TestSingleFlight(t *testing.T) {
	v := newVendor(t)
	v.set(func(http.ResponseWriter, *http.Request) bool { time.Sleep(50 * time.Millisecond); return false })
	s := newSource(t, Config{Services: v.services()})
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := s.Get(t.Context(), milanCRL); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if v.total() != 1 {
		t.Errorf("%d requests for 100 callers", v.total())
	}
}

// TestStaleWhileRevalidate: nobody waits for a refresh, and stale means that one failed.
func TestStaleWhileRevalidate(t *testing.T) {
	v, c := newVendor(t), &clock{}
	s := newSource(t, Config{Services: v.services(), Now: c.now})
	first := mustGet(t, s, milanCRL)
	c.advance(23 * time.Hour)
	mustGet(t, s, milanCRL)
	if v.total() != 1 {
		t.Fatal("refreshed before the refresh age")
	}
	c.advance(2 * time.Hour)
	block := make(chan struct{})
	v.set(func(http.ResponseWriter, *http.Request) bool { <-block; return false })
	for range 50 {
		if it := mustGet(t, s, milanCRL); it.Stale || !it.FetchedAt.Equal(first.FetchedAt) {
			t.Fatalf("stale=%v fetched %s", it.Stale, it.FetchedAt)
		}
	}
	close(block)
	v.set(nil)
	eventually(t, "refreshed in the background", func() bool { return mustGet(t, s, milanCRL).FetchedAt.After(first.FetchedAt) })
	if v.total() != 2 {
		t.Errorf("%d requests, want 2", v.total())
	}
	// Now the service is down: served, and stale from the first failure on.
	v.set(fail500)
	c.advance(25 * time.Hour)
	if mustGet(t, s, milanCRL).Stale {
		t.Error("stale before a refresh failed")
	}
	eventually(t, "stale", func() bool { return mustGet(t, s, milanCRL).Stale })
	// It comes back.
	v.set(nil)
	c.advance(retryAfter)
	mustGet(t, s, milanCRL)
	eventually(t, "fresh again", func() bool { return !mustGet(t, s, milanCRL).Stale })
	c.advance(25 * time.Hour)
	if mustGet(t, s, milanCRL).Stale {
		t.Error("an old failure makes it stale after a success")
	}
}

func fail500(w http.ResponseWriter, _ *http.Request) bool {
	http.Error(w, "no", http.StatusInternalServerError)
	return true
}

// TestAgeLimit: beyond the limit nothing is served, and the reason says which.
func TestAgeLimit(t *testing.T) {
	v, c := newVendor(t), &clock{}
	s := newSource(t, Config{Services: v.services(), Now: c.now})
	v.set(fail500)
	wantReason(t, s, milanCRL, attest.ReasonCollateralMissing)
	v.set(nil)
	c.advance(retryAfter)
	mustGet(t, s, milanCRL)
	v.set(fail500)
	c.advance(30*24*time.Hour - time.Minute)
	mustGet(t, s, milanCRL)
	c.advance(2 * time.Minute)
	err := wantReason(t, s, milanCRL, attest.ReasonCollateralExpired)
	if !strings.Contains(err.Error(), "500") {
		t.Errorf("does not say what is wrong with the service: %v", err)
	}
	wantReason(t, newSource(t, Config{}), milanCRL, attest.ReasonCollateralMissing)
}

func TestBackoff(t *testing.T) {
	v, c := newVendor(t), &clock{}
	s := newSource(t, Config{Services: v.services(), Now: c.now})
	v.set(fail500)
	for range 20 {
		wantReason(t, s, milanCRL, attest.ReasonCollateralMissing)
	}
	if v.total() != 1 {
		t.Errorf("a failing service was asked %d times", v.total())
	}
	// Another piece is not held back.
	wantReason(t, s, attest.CollateralRef{Kind: attest.SNPCRL, Key: "genoa/vcek"}, attest.ReasonCollateralMissing)
	if v.total() != 2 {
		t.Error("backoff of one piece holds back another")
	}
	v.set(nil)
	c.advance(retryAfter)
	mustGet(t, s, milanCRL)
}

// TestOutageOverRestart: a broker that restarts while the vendor is down goes on with its cache.
func TestOutageOverRestart(t *testing.T) {
	v, c, dir := newVendor(t), &clock{}, tempDir(t)
	cfg := Config{Services: v.services(), Now: c.now, CacheDir: dir}
	refs := []attest.CollateralRef{milanCRL, {Kind: attest.SNPChain, Key: "milan/vcek"}, {Kind: attest.TDXTCBInfo, Key: "50806f000000"}, {Kind: attest.PCKCRL, Key: "platform"}}
	s := newSource(t, cfg)
	before := map[attest.CollateralRef]attest.CollateralItem{}
	for _, ref := range refs {
		before[ref] = mustGet(t, s, ref)
	}
	v.Close()
	c.advance(10 * 24 * time.Hour)
	s = newSource(t, cfg)
	for _, ref := range refs {
		it := mustGet(t, s, ref)
		if it.Source != "cache" || !bytes.Equal(it.Data, before[ref].Data) || !bytes.Equal(it.IssuerChain, before[ref].IssuerChain) || !it.FetchedAt.Equal(before[ref].FetchedAt) {
			t.Errorf("%s: not what was cached", ref.Kind)
		}
	}
	wantReason(t, s, attest.CollateralRef{Kind: attest.PCKCRL, Key: "processor"}, attest.ReasonCollateralMissing)
}

// TestGarbage: no bad answer takes the place of a good piece, in memory or on disk.
func TestGarbage(t *testing.T) {
	answer := func(b []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.Write(b); return true }
	}
	for name, bad := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"error page with 200": answer([]byte("<html>try later</html>")),
		"empty":               answer(nil),
		"huge":                answer(append(bytes.Clone(trust.AskArkMilanVcekBytes), bytes.Repeat([]byte{10}, maxPiece)...)),
		"truncated": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "9999")
			w.Write([]byte("x"))
			return true
		},
		"500": fail500,
	} {
		t.Run(name, func(t *testing.T) {
			v, c, dir := newVendor(t), &clock{}, tempDir(t)
			cfg := Config{Services: v.services(), Now: c.now, CacheDir: dir}
			for _, ref := range []attest.CollateralRef{
				milanCRL, {Kind: attest.SNPChain, Key: "milan/vcek"}, {Kind: attest.SNPVCEK, Key: "milan/00/d315000000000004"},
				{Kind: attest.TDXTCBInfo, Key: "50806f000000"}, {Kind: attest.TDXQEID}, {Kind: attest.PCKCRL, Key: "platform"}, {Kind: attest.IntelRootCRL},
			} {
				v.set(nil)
				s := newSource(t, cfg)
				good := mustGet(t, s, ref)
				v.set(bad)
				c.advance(s.cfg.Ages[ref.Kind].Refresh + time.Hour)
				mustGet(t, s, ref)
				eventually(t, "the attempt failed", func() bool { return mustGet(t, s, ref).Stale })
				if !bytes.Equal(mustGet(t, s, ref).Data, good.Data) || !bytes.Equal(mustGet(t, newSource(t, cfg), ref).Data, good.Data) {
					t.Errorf("%s was replaced", ref.Kind)
				}
				wantReason(t, newSource(t, Config{Services: v.services()}), ref, attest.ReasonCollateralMissing)
			}
		})
	}
}

// TestNoChainHeader: signed JSON without its issuers is of no use.
func TestNoChainHeader(t *testing.T) {
	v := newVendor(t)
	v.set(func(w http.ResponseWriter, _ *http.Request) bool { w.Write(tdxdata.QeIdentityBody); return true })
	wantReason(t, newSource(t, Config{Services: v.services()}), attest.CollateralRef{Kind: attest.TDXQEID}, attest.ReasonCollateralMissing)
}

// TestHexCRL: a PCCS sends CRLs in hex.
func TestHexCRL(t *testing.T) {
	v := newVendor(t)
	v.set(func(w http.ResponseWriter, _ *http.Request) bool {
		for k, vs := range tdxtesting.PckCrlHeader {
			w.Header()[http.CanonicalHeaderKey(k)] = vs
		}
		fmt.Fprintln(w, hex.EncodeToString(tdxdata.PckCrlBody))
		return true
	})
	it := mustGet(t, newSource(t, Config{Services: v.services()}), attest.CollateralRef{Kind: attest.PCKCRL, Key: "platform"})
	if !bytes.Equal(it.Data, tdxdata.PckCrlBody) {
		t.Error("not decoded")
	}
}

// TestCancel: a caller who gives up does not wait, and the flight goes on for the others.
func TestCancel(t *testing.T) {
	v := newVendor(t)
	block := make(chan struct{})
	v.set(func(http.ResponseWriter, *http.Request) bool { <-block; return false })
	s := newSource(t, Config{Services: v.services()})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Get(ctx, milanCRL); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if time.Since(start) > 2*time.Second {
		t.Error("waited for a stalled service")
	}
	close(block)
	mustGet(t, s, milanCRL)
	if v.total() != 1 {
		t.Errorf("%d requests", v.total())
	}
}

// TestStall: a service that never answers costs one time-out, then nothing.
func TestStall(t *testing.T) {
	v := newVendor(t)
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	v.set(func(http.ResponseWriter, *http.Request) bool { <-block; return true })
	s := newSource(t, Config{Services: v.services(), Client: &http.Client{Timeout: 50 * time.Millisecond}})
	wantReason(t, s, milanCRL, attest.ReasonCollateralMissing)
	wantReason(t, s, milanCRL, attest.ReasonCollateralMissing)
	if v.total() != 1 {
		t.Errorf("%d requests", v.total())
	}
}

// TestBoundedMemory: made-up keys do not fill the memory.
func TestBoundedMemory(t *testing.T) {
	s := newSource(t, Config{})
	ref := func(i int) attest.CollateralRef {
		return attest.CollateralRef{Kind: attest.SNPVCEK, Key: fmt.Sprintf("milan/%08x/0000000000000000", i)}
	}
	for i := range maxItems + 100 {
		s.remember(ref(i), piece{CollateralItem: attest.CollateralItem{FetchedAt: time.Now()}})
		s.fail(ref(i), errors.New("x"))
	}
	if s.items.Len() != maxItems || s.fails.Len() != maxItems {
		t.Errorf("%d, %d", s.items.Len(), s.fails.Len())
	}
	if p, err := s.remembered(ref(0)); p != nil || err != nil {
		t.Error("the oldest is still there")
	}
	if p, err := s.remembered(ref(maxItems + 99)); p == nil || err != nil {
		t.Error("the newest is gone")
	}
}

// TestBundleSignature: nothing is unpacked that the operator did not sign.
func TestBundleSignature(t *testing.T) {
	v, dir := newVendor(t), tempDir(t)
	if err := writeFolder(t, dir, milanCRL, attest.CollateralItem{Data: v.snpCRL}); err != nil {
		t.Fatal(err)
	}
	pub, key, _ := ed25519.GenerateKey(nil)
	other, _, _ := ed25519.GenerateKey(nil)
	path := filepath.Join(tempDir(t), "b.tar.gz")
	if err := WriteBundle(path, dir, key); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadBundle(path, pub); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, k ed25519.PublicKey) {
		t.Helper()
		if b, err := ReadBundle(path, k); err == nil {
			t.Errorf("%s: accepted with %d pieces", what, b.Len())
		}
	}
	refused("another key", other)
	refused("no key", nil)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(raw); i += 7 {
		raw[i] ^= 1
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(fmt.Sprintf("byte %d flipped", i), pub)
		raw[i] ^= 1
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	// A signature by the same key over the bytes alone, without our label, is none.
	bare := ed25519.Sign(key, raw)
	if err := os.WriteFile(path+".sig", bare, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("raw signature", pub)
	if err := os.Remove(path + ".sig"); err != nil {
		t.Fatal(err)
	}
	refused("no signature", pub)
}

func TestAges(t *testing.T) {
	for _, a := range []Age{{0, time.Hour}, {time.Hour, time.Minute}, {-1, 1}} {
		if _, err := New(Config{Checker: anybody{}, Ages: map[attest.CollateralKind]Age{attest.SNPCRL: a}}); err == nil {
			t.Errorf("accepted %v", a)
		}
	}
}

// tempDir is t.TempDir for folders that a refresh in the background may still write to when the test ends.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "collateral")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if err = os.RemoveAll(dir); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir
}

// TestSetBundle: another bundle counts from the next question on, also where nothing was found before.
func TestSetBundle(t *testing.T) {
	v, dir := newVendor(t), tempDir(t)
	if err := writeFolder(t, filepath.Join(dir, "pack"), milanCRL, attest.CollateralItem{Data: v.snpCRL}); err != nil {
		t.Fatal(err)
	}
	pub, key, _ := ed25519.GenerateKey(nil)
	path := filepath.Join(dir, "b.tar.gz")
	if err := WriteBundle(path, filepath.Join(dir, "pack"), key); err != nil {
		t.Fatal(err)
	}
	b, err := ReadBundle(path, pub)
	if err != nil {
		t.Fatal(err)
	}
	s := newSource(t, Config{})
	wantReason(t, s, milanCRL, attest.ReasonCollateralMissing)
	s.SetBundle(b)
	if it := mustGet(t, s, milanCRL); it.Source != "bundle" {
		t.Errorf("from %s", it.Source)
	}
}
