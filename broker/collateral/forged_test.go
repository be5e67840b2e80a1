package collateral

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/tee"
	"github.com/claviger/claviger/broker/tee/sgx"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// vendors issue all kinds of collateral. Two of them have the same names, and not the same keys.
type vendors struct {
	amd   *teesim.Root
	intel *dcaptest.Platform
}

type pieces map[attest.CollateralRef]attest.CollateralItem

var chip = bytes.Repeat([]byte{0x5a}, 64)

func newVendors(t *testing.T) vendors {
	t.Helper()
	amd, err := teesim.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	intel, err := dcaptest.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return vendors{amd, intel}
}

// issue makes one piece of each kind, dated at, with a number where the kind has
// one. Lists revoke a certificate.
func (v vendors) issue(t *testing.T, at time.Time, number int64) pieces {
	t.Helper()
	p := v.intel
	p.CRLThisUpdate, p.CRLNextUpdate, p.CRLNumber = at, at.AddDate(0, 0, 30), number
	p.RevokedByRoot, p.RevokedByCA = []*big.Int{p.CA.SerialNumber}, []*big.Int{p.Leaf.SerialNumber}
	if number < 20 {
		p.RevokedByRoot, p.RevokedByCA = nil, nil
	}
	for _, d := range []*dcaptest.TCBInfo{&p.TDX, &p.SGX} {
		d.IssueDate, d.NextUpdate, d.TCBEvaluationDataNumber = at.UTC(), at.AddDate(0, 0, 30).UTC(), int(number)
	}
	for _, d := range []*dcaptest.QEIdentity{&p.TDQE, &p.SGXQE} {
		d.IssueDate, d.NextUpdate, d.TCBEvaluationDataNumber = at.UTC(), at.AddDate(0, 0, 30).UTC(), int(number)
	}
	intel, err := p.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	out := pieces(intel)
	crl, err := v.amd.CRL(at)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := v.amd.NewDevice(teesim.DeviceOptions{ChipID: chip, NotBefore: at})
	if err != nil {
		t.Fatal(err)
	}
	out[milanCRL] = attest.CollateralItem{Data: crl}
	out[attest.CollateralRef{Kind: attest.SNPVCEK, Key: "milan/" + hex.EncodeToString(chip) + "/db18000000000004"}] = attest.CollateralItem{Data: dev.Leaf()}
	out[milanChain] = attest.CollateralItem{Data: append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.amd.ASK("Milan").Raw}), v.amd.RootPEM()...)}
	return out
}

var (
	milanChain = attest.CollateralRef{Kind: attest.SNPChain, Key: "milan/vcek"}
	rootCRL    = attest.CollateralRef{Kind: attest.IntelRootCRL}
	fmspcTCB   = attest.CollateralRef{Kind: attest.TDXTCBInfo, Key: "99806f000000"}
)

// counted is the checker of a broker that believes v, with the number of its verdicts on each piece.
type counted struct {
	tee.Set
	mu    sync.Mutex
	calls map[attest.CollateralRef]int // guarded by mu
}

func (v vendors) checker(t *testing.T) *counted {
	t.Helper()
	set, err := tee.New(tee.Config{
		SNP: snp.Config{TestRoots: []snp.TestRoot{{ARK: v.amd.ARK()}}},
		TDX: tdx.Config{TestRoots: []*x509.Certificate{v.intel.Root.Certificate}}, SGX: sgx.Config{TestRoots: []*x509.Certificate{v.intel.Root.Certificate}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &counted{Set: set, calls: map[attest.CollateralRef]int{}}
}

func (c *counted) CheckCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, s attest.Collateral) error {
	c.mu.Lock()
	c.calls[ref]++
	c.mu.Unlock()
	return c.Set.CheckCollateral(ctx, ref, it, s)
}

func (c *counted) of(ref attest.CollateralRef) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[ref]
}

// mirror makes the vendor's server answer with pieces, in the form of KDS and PCS.
func (v *vendor) mirror(t *testing.T, p pieces) {
	t.Helper()
	answers := map[string]attest.CollateralItem{}
	headers := map[string]string{}
	for ref, it := range p {
		u, header, err := v.services().url(ref)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.TrimPrefix(u, v.URL)
		answers[at], headers[at] = it, header
	}
	v.set(func(w http.ResponseWriter, r *http.Request) bool {
		it, ok := answers[r.URL.RequestURI()]
		if !ok {
			http.NotFound(w, r)
			return true
		}
		if h := headers[r.URL.RequestURI()]; h != "" {
			w.Header().Set(h, url.QueryEscape(string(it.IssuerChain)))
		}
		w.Write(it.Data)
		return true
	})
}

// with is p with one piece of another.
func (p pieces) with(ref attest.CollateralRef, other pieces) pieces {
	out := maps.Clone(p)
	out[ref] = other[ref]
	return out
}

// asked is how often a piece was asked for.
func (v *vendor) asked(t *testing.T, ref attest.CollateralRef) int {
	t.Helper()
	u, _, err := v.services().url(ref)
	if err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.requests[strings.TrimPrefix(u, v.URL)]
}

// landed waits until a piece was asked for n times, and nothing is on its way.
func landed(t *testing.T, v *vendor, s *Source, ref attest.CollateralRef, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is asked for %d times", ref.Kind, n), func() bool { return v.asked(t, ref) >= n })
	<-s.flight.DoChan(string(ref.Kind)+"|"+ref.Key, func() (any, error) { return nil, nil })
	if got := v.asked(t, ref); got != n {
		t.Errorf("%s was asked for %d times, want %d", ref.Kind, got, n)
	}
}

// eachKind runs a test for each kind of collateral. good is of two days ago, forged
// of today, by somebody with the vendors' names, and of the highest number.
func eachKind(t *testing.T, test func(t *testing.T, ref attest.CollateralRef, good, forged pieces, v vendors)) {
	v, thief := newVendors(t), newVendors(t)
	good, forged := v.issue(t, time.Now().AddDate(0, 0, -2), 17), thief.issue(t, time.Now(), 1<<31-1)
	kinds := map[attest.CollateralKind]bool{}
	for ref := range good {
		kinds[ref.Kind] = true
		t.Run(string(ref.Kind), func(t *testing.T) { test(t, ref, good, forged, v) })
	}
	if len(kinds) != len(DefaultAges()) {
		t.Errorf("%d kinds, want %d", len(kinds), len(DefaultAges()))
	}
}

// TestMirrorThatForges: an answer that the authority did not sign takes nobody's
// place, is counted, is said once, and the mirror is asked again soon. The next
// genuine one wins, though it revokes everything.
func TestMirrorThatForges(t *testing.T) {
	eachKind(t, func(t *testing.T, ref attest.CollateralRef, good, forged pieces, iss vendors) {
		var log bytes.Buffer
		v, c, checker := newVendor(t), &clock{}, iss.checker(t)
		cfg := Config{Checker: checker, CacheDir: tempDir(t), Services: v.services(), Now: c.now, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		v.mirror(t, good)
		s := newSource(t, cfg)
		mustGet(t, s, ref)
		for range 10 {
			mustGet(t, s, ref)
		}
		if n := checker.of(ref); n != 1 {
			t.Errorf("checked %d times for one answer", n)
		}
		v.mirror(t, good.with(ref, forged))
		c.advance(s.cfg.Ages[ref.Kind].Refresh + time.Hour)
		for i := range 3 {
			for range 10 {
				if it := mustGet(t, s, ref); !bytes.Equal(it.Data, good[ref].Data) || !bytes.Equal(it.IssuerChain, good[ref].IssuerChain) {
					t.Fatal("the forged one is served")
				}
				landed(t, v, s, ref, 2+i)
			}
			c.advance(retryMax)
		}
		if n := checker.of(ref); n != 4 {
			t.Errorf("checked %d times for four answers", n)
		}
		if n := s.Forged(); n != 3 || s.Worse() != 0 {
			t.Errorf("%d forged answers are counted, and %d worse ones; want 3 and 0", n, s.Worse())
		}
		if it := mustGet(t, s, ref); !it.Stale {
			t.Error("what could not be refreshed is not called stale")
		}
		landed(t, v, s, ref, 5)
		if n := strings.Count(log.String(), "not genuine"); n != 1 {
			t.Errorf("said %d times, want once:\n%s", n, log.String())
		}
		// The cache on disk is as good.
		s = newSource(t, cfg)
		if it := mustGet(t, s, ref); !bytes.Equal(it.Data, good[ref].Data) || it.Source != "cache" {
			t.Error("the forged one is in the cache on disk")
		}
		landed(t, v, s, ref, 6)
		// The mirror is the vendor's again.
		newer := iss.issue(t, c.now(), 21)
		v.mirror(t, good.with(ref, newer))
		c.advance(retryMax)
		mustGet(t, s, ref)
		landed(t, v, s, ref, 7)
		if it := mustGet(t, s, ref); !bytes.Equal(it.Data, newer[ref].Data) || it.Stale {
			t.Errorf("the genuine one is not served (stale %v)", it.Stale)
		}
	})
}

// TestForgedFirst: where there is nothing, a forged answer stays nothing.
func TestForgedFirst(t *testing.T) {
	eachKind(t, func(t *testing.T, ref attest.CollateralRef, good, forged pieces, iss vendors) {
		v, c, dir := newVendor(t), &clock{}, tempDir(t)
		v.mirror(t, good.with(ref, forged))
		s := newSource(t, Config{Checker: iss.checker(t), CacheDir: dir, Services: v.services(), Now: c.now})
		for range 3 {
			err := wantReason(t, s, ref, attest.ReasonCollateralInvalid)
			if !strings.Contains(err.Error(), "from the service: not genuine") {
				t.Error(err)
			}
		}
		if n := v.asked(t, ref); n != 1 || s.Forged() != 1 {
			t.Errorf("asked %d times at once, %d forged answers", n, s.Forged())
		}
		if _, err := os.Stat(filepath.Join(dir, fileName(ref)) + ".json"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("in the cache on disk: %v", err)
		}
		v.mirror(t, good)
		c.advance(retryAfter)
		if it := mustGet(t, s, ref); !bytes.Equal(it.Data, good[ref].Data) {
			t.Error("the genuine one is not served")
		}
	})
}

// TestForgedFile: a forged piece in the folder, in the bundle or in the cache of
// an earlier run hides nothing, is counted once, and is not verified for each request.
func TestForgedFile(t *testing.T) {
	eachKind(t, func(t *testing.T, ref attest.CollateralRef, good, forged pieces, iss vendors) {
		for _, place := range []string{"folder", "bundle", "cache"} {
			t.Run(place, func(t *testing.T) {
				v, c, checker, dir := newVendor(t), &clock{}, iss.checker(t), tempDir(t)
				v.mirror(t, good)
				cfg := Config{Checker: checker, Now: c.now}
				// A certificate of a chip cannot be told from a genuine one without its chain.
				laid := good.with(ref, forged)
				maps.DeleteFunc(laid, func(r attest.CollateralRef, _ attest.CollateralItem) bool { return r != ref && r != milanChain })
				for ref, it := range laid {
					if err := writeFolder(t, dir, ref, it); err != nil {
						t.Fatal(err)
					}
				}
				switch place {
				case "folder":
					cfg.Folder = dir
				case "bundle":
					pub, key, _ := ed25519.GenerateKey(nil)
					path := filepath.Join(tempDir(t), "b")
					if err := WriteBundle(path, dir, key); err != nil {
						t.Fatal(err)
					}
					var err error
					if cfg.Bundle, err = ReadBundle(path, pub); err != nil {
						t.Fatal(err)
					}
				case "cache":
					cfg.CacheDir = tempDir(t)
					for ref, it := range laid {
						it.FetchedAt = time.Now()
						newSource(t, cfg).store(ref, it)
					}
				}
				// There is nothing else.
				s := newSource(t, cfg)
				for range 3 {
					err := wantReason(t, s, ref, attest.ReasonCollateralInvalid)
					if !strings.Contains(err.Error(), "from the "+place+": not genuine") {
						t.Error(err)
					}
				}
				if n := checker.of(ref); n != 1 || s.Forged() != 1 {
					t.Errorf("checked %d times, %d forged pieces are counted; want 1 and 1", n, s.Forged())
				}
				c.advance(retryAfter)
				wantReason(t, s, ref, attest.ReasonCollateralInvalid)
				if n := checker.of(ref); n != 2 || s.Forged() != 1 {
					t.Errorf("later: checked %d times, %d forged pieces are counted; want 2 and 1", n, s.Forged())
				}
				// The next source is asked.
				cfg.Services = v.services()
				s = newSource(t, cfg)
				for range 3 {
					if it := mustGet(t, s, ref); !bytes.Equal(it.Data, good[ref].Data) {
						t.Error("the genuine one is not served")
					}
				}
				if n := v.asked(t, ref); n != 1 || s.Forged() != 1 {
					t.Errorf("asked %d times, %d forged pieces", n, s.Forged())
				}
				if place == "cache" { // and it is gone
					cfg.Services = Services{}
					if it := mustGet(t, newSource(t, cfg), ref); !bytes.Equal(it.Data, good[ref].Data) {
						t.Error("the forged one is still on disk")
					}
				}
				if place == "folder" { // a newer one there
					newer := iss.issue(t, time.Now(), 21)
					if _, err := s.WriteFolder(t.Context(), dir, ref, forged[ref]); !errors.Is(err, errForged) {
						t.Errorf("a forged one is written: %v", err)
					}
					if _, err := s.WriteFolder(t.Context(), dir, ref, newer[ref]); err != nil {
						t.Error(err)
					}
					if it := mustGet(t, s, ref); !bytes.Equal(it.Data, newer[ref].Data) || it.Source != "folder" {
						t.Errorf("the genuine one is served from the %s", it.Source)
					}
				}
			})
		}
	})
}

// sourceOf is a source of a broker that believes iss, and of a mirror of it with these pieces.
func sourceOf(t *testing.T, iss vendors, p pieces) (*Source, *vendor, *clock) {
	t.Helper()
	v, c := newVendor(t), &clock{}
	v.mirror(t, p)
	return newSource(t, Config{Checker: iss.checker(t), CacheDir: tempDir(t), Services: v.services(), Now: c.now}), v, c
}

// TestRevokedSigner: who stole the key of a certificate that Intel revoked since
// does not get his document in; one that he got in before gives way, though its
// number is the higher.
func TestRevokedSigner(t *testing.T) {
	iss := newVendors(t)
	p, stolen := iss.intel, iss.intel.TCBSigning
	if err := p.RenewTCBSigning(); err != nil {
		t.Fatal(err)
	}
	renewed := p.TCBSigning
	signed := func(by *dcaptest.Certificate, number int64) attest.CollateralItem {
		t.Helper()
		p.TCBSigning = by
		return iss.issue(t, time.Now().Add(time.Duration(number)*time.Second), number)[fmspcTCB]
	}
	forged, good, again := signed(stolen, 19), signed(renewed, 18), signed(stolen, 19)
	before := iss.issue(t, time.Now().AddDate(0, 0, -2), 17)
	p.RevokedByRoot, p.CRLThisUpdate, p.CRLNumber = []*big.Int{stolen.SerialNumber}, time.Now(), 18
	c, err := p.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	revoking := pieces(c)

	before[fmspcTCB] = forged
	s, v, clock := sourceOf(t, iss, before)
	mustGet(t, s, fmspcTCB)
	// Nobody knows it yet, and by number and date it is the newer.
	before[fmspcTCB] = good
	v.mirror(t, before)
	clock.advance(25 * time.Hour)
	mustGet(t, s, fmspcTCB)
	landed(t, v, s, fmspcTCB, 2)
	if it := mustGet(t, s, fmspcTCB); !bytes.Equal(it.Data, forged.Data) {
		t.Fatal("an older one is served")
	}
	landed(t, v, s, fmspcTCB, 2)
	// Intel revokes the certificate.
	v.mirror(t, before.with(rootCRL, revoking))
	clock.advance(25 * time.Hour)
	eventually(t, "the root's list is refreshed", func() bool { return bytes.Equal(mustGet(t, s, rootCRL).Data, revoking[rootCRL].Data) })
	mustGet(t, s, fmspcTCB)
	landed(t, v, s, fmspcTCB, 3)
	if it := mustGet(t, s, fmspcTCB); !bytes.Equal(it.Data, good.Data) {
		t.Error("what the thief signed is still served")
	}
	landed(t, v, s, fmspcTCB, 3)
	// The thief tries again.
	before[fmspcTCB] = again
	v.mirror(t, before.with(rootCRL, revoking))
	clock.advance(25 * time.Hour)
	mustGet(t, s, fmspcTCB)
	landed(t, v, s, fmspcTCB, 4)
	if it := mustGet(t, s, fmspcTCB); !bytes.Equal(it.Data, good.Data) || s.Forged() != 1 {
		t.Errorf("what the thief signed is served, or not counted: %d", s.Forged())
	}
}

// TestCannotBeTold: a piece that cannot be checked for want of another one is not
// called forged, replaces nothing, and is taken once it can be.
func TestCannotBeTold(t *testing.T) {
	iss, thief := newVendors(t), newVendors(t)
	good, forged := iss.issue(t, time.Now().AddDate(0, 0, -2), 17), thief.issue(t, time.Now(), 99)
	s, v, c := sourceOf(t, iss, good.with(rootCRL, forged))
	if err := wantReason(t, s, fmspcTCB, attest.ReasonCollateralMissing); !strings.Contains(err.Error(), "not genuine") {
		t.Errorf("says nothing of the list: %v", err)
	}
	if s.Forged() != 1 {
		t.Errorf("%d forged pieces, want the list alone", s.Forged())
	}
	v.mirror(t, good)
	c.advance(retryAfter)
	mustGet(t, s, fmspcTCB)
	// In a file: without the list it waits, and asks no service for it.
	dir := tempDir(t)
	if err := writeFolder(t, dir, fmspcTCB, good[fmspcTCB]); err != nil {
		t.Fatal(err)
	}
	checker := iss.checker(t)
	s = newSource(t, Config{Checker: checker, Folder: dir, Now: c.now})
	for range 3 {
		wantReason(t, s, fmspcTCB, attest.ReasonCollateralMissing)
	}
	if n := checker.of(fmspcTCB); n != 1 || s.Forged() != 0 {
		t.Errorf("checked %d times, %d forged", n, s.Forged())
	}
	if err := writeFolder(t, dir, rootCRL, good[rootCRL]); err != nil {
		t.Fatal(err)
	}
	c.advance(retryAfter)
	if it := mustGet(t, s, fmspcTCB); it.Source != "folder" {
		t.Errorf("from the %s", it.Source)
	}
}

// TestRollbackOverRestart: neither a restart nor a long silence makes a broker
// forget how far a list had come, and nobody but its authority moves that.
func TestRollbackOverRestart(t *testing.T) {
	v, c, dir, now := newVendor(t), &clock{}, tempDir(t), time.Now()
	a := newAuthority(t, 1)
	good, old := a.crl(t, 20, now.AddDate(0, 0, -1), now.AddDate(1, 0, 0)), a.crl(t, 19, now.AddDate(0, 0, -2), now.AddDate(1, 0, 0))
	answer := good
	v.answering(&answer)
	cfg := Config{CacheDir: dir, Services: v.services(), Now: c.now}
	mustGet(t, newSource(t, cfg), milanCRL)
	v.change(&answer, old)
	c.advance(31 * 24 * time.Hour) // longer than max
	s := newSource(t, cfg)
	wantReason(t, s, milanCRL, attest.ReasonCollateralExpired)
	if s.Worse() != 1 {
		t.Errorf("%d worse answers", s.Worse())
	}
	v.change(&answer, good)
	c.advance(retryAfter)
	if it := mustGet(t, s, milanCRL); !bytes.Equal(it.Data, good) {
		t.Error("the current list is not served")
	}
	// That of a folder counts as well.
	folder := tempDir(t)
	if err := writeFolder(t, folder, milanCRL, attest.CollateralItem{Data: good}); err != nil {
		t.Fatal(err)
	}
	v.change(&answer, old)
	s = newSource(t, Config{Folder: folder, Services: v.services(), Now: c.now})
	wantReason(t, s, milanCRL, attest.ReasonCollateralExpired)
	// Certificates do not count their editions: one that is too old to be served stands in nobody's way.
	vcek := attest.CollateralRef{Kind: attest.SNPVCEK, Key: "milan/00/d315000000000004"}
	leaf := a.leaf(t, now.AddDate(0, 0, -2), now.AddDate(5, 0, 0))
	v.set(func(w http.ResponseWriter, r *http.Request) bool { w.Write(leaf); return true })
	newSource(t, cfg).store(vcek, attest.CollateralItem{Data: a.leaf(t, now, now.AddDate(5, 0, 0)), FetchedAt: now})
	c.advance(400 * 24 * time.Hour)
	if it := mustGet(t, newSource(t, cfg), vcek); !bytes.Equal(it.Data, leaf) {
		t.Error("another certificate")
	}
}

// verdicts is a checker that says what a function says.
type verdicts func(attest.CollateralItem) error

func (f verdicts) CheckCollateral(_ context.Context, _ attest.CollateralRef, it attest.CollateralItem, _ attest.Collateral) error {
	return f(it)
}

// TestBrokenChecker: without a checker there is no source; one that panics believes nothing.
func TestBrokenChecker(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a source that believes everything")
	}
	v, dir := newVendor(t), tempDir(t)
	if err := writeFolder(t, dir, milanCRL, attest.CollateralItem{Data: v.snpCRL}); err != nil {
		t.Fatal(err)
	}
	s := newSource(t, Config{Checker: verdicts(func(attest.CollateralItem) error { panic("bug") }), Folder: dir, Services: v.services()})
	if err := wantReason(t, s, milanCRL, attest.ReasonCollateralMissing); !strings.Contains(err.Error(), "panic: bug") || s.Forged() != 0 {
		t.Errorf("%v, %d forged", err, s.Forged())
	}
}

// TestCacheOnDisk: what is on disk gives way to what was fetched while it was
// checked, and to nothing while it cannot be.
func TestCacheOnDisk(t *testing.T) {
	now, a := time.Now(), newAuthority(t, 1)
	held := a.crl(t, 20, now.AddDate(0, 0, -1), now.AddDate(0, 0, 29))
	older, newer := a.crl(t, 19, now.AddDate(0, 0, -2), now.AddDate(0, 0, 28)), a.crl(t, 21, now, now.AddDate(0, 0, 30))
	v, answer, cfg := newVendor(t), older, Config{CacheDir: tempDir(t)}
	v.answering(&answer)
	newSource(t, cfg).store(milanCRL, attest.CollateralItem{Data: held, FetchedAt: now})

	var s *Source
	cfg.Checker = verdicts(func(it attest.CollateralItem) error {
		p, err := newPiece(milanCRL.Kind, attest.CollateralItem{Data: newer, FetchedAt: now, Source: "service"})
		s.remember(milanCRL, p)
		return err
	})
	s = newSource(t, cfg)
	for range 2 {
		if it := mustGet(t, s, milanCRL); !bytes.Equal(it.Data, newer) {
			t.Fatal("the one on disk is served")
		}
	}

	cfg.Services = v.services()
	cfg.Checker = verdicts(func(it attest.CollateralItem) error {
		if it.Source == "cache" {
			return errors.New("it is Sunday")
		}
		return nil
	})
	s = newSource(t, cfg)
	wantReason(t, s, milanCRL, attest.ReasonCollateralMissing)
	cfg.Checker, cfg.Services = nil, Services{}
	if it := mustGet(t, newSource(t, cfg), milanCRL); !bytes.Equal(it.Data, held) {
		t.Error("the one on disk was replaced")
	}
}

// left is a place among the releases that says when it is given up.
type left chan struct{}

func (l left) Leave() (func(context.Context) error, error) {
	close(l)
	return func(context.Context) error { return nil }, nil
}

// TestFilesHoldUpNobody: a request that has a place waits for no service to
// have a file checked.
func TestFilesHoldUpNobody(t *testing.T) {
	iss := newVendors(t)
	good := iss.issue(t, time.Now().AddDate(0, 0, -2), 17)
	dir, v, place := tempDir(t), newVendor(t), make(left)
	if err := writeFolder(t, dir, fmspcTCB, good[fmspcTCB]); err != nil {
		t.Fatal(err)
	}
	v.mirror(t, good)
	answer := v.misbehave
	v.set(func(w http.ResponseWriter, r *http.Request) bool {
		select {
		case <-place:
			return answer(w, r)
		case <-r.Context().Done():
			return true
		}
	})
	s := newSource(t, Config{Checker: iss.checker(t), Folder: dir, Services: v.services()})
	if it, err := s.Get(attest.WithPlace(t.Context(), place), fmspcTCB); err != nil || v.asked(t, rootCRL) != 1 {
		t.Errorf("from the %s, %v; the list of the root was asked for %d times", it.Source, err, v.asked(t, rootCRL))
	}
}
