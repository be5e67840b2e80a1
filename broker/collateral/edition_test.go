package collateral

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// authority signs lists and certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, id byte) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Now().AddDate(9, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, SubjectKeyId: []byte{id},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) crl(t *testing.T, number int64, this, next time.Time) []byte {
	t.Helper()
	b, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: this, NextUpdate: next}, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (a authority) leaf(t *testing.T, from, to time.Time) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: to}
	b, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func document(member string, number int, issued, next time.Time) []byte {
	return fmt.Appendf(nil, `{%q:{"issueDate":%q,"nextUpdate":%q,"tcbEvaluationDataNumber":%d},"signature":"00"}`, member, issued.Format(time.RFC3339), next.Format(time.RFC3339), number)
}

// TestEditions: which of two documents of a kind is the worse.
func TestEditions(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	day := func(n int) time.Time { return now.AddDate(0, 0, n) }
	a, b := newAuthority(t, 1), newAuthority(t, 2)
	tcb := func(n, from, to int) []byte { return document("tcbInfo", n, day(from), day(to)) }
	crl := func(n int64, from, to int) []byte { return a.crl(t, n, day(from), day(to)) }
	chain := func(from, to int) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.leaf(t, day(from), day(to))})
	}
	for name, tc := range map[string]struct {
		kind      attest.CollateralKind
		got, held []byte
		want      string // in the reason; empty: it is taken
	}{
		"CRL: the same":                    {attest.SNPCRL, crl(20, -1, 29), crl(20, -1, 29), ""},
		"CRL: the next":                    {attest.SNPCRL, crl(21, 0, 30), crl(20, -1, 29), ""},
		"CRL: lapsed":                      {attest.SNPCRL, crl(12, -240, -210), crl(20, -1, 29), "expired"},
		"CRL: older, still valid":          {attest.SNPCRL, crl(19, -2, 28), crl(20, -1, 29), "number 19"},
		"CRL: a lower number, dated later": {attest.PCKCRL, crl(19, 0, 30), crl(20, -1, 29), "number 19"},
		"CRL: the number, dated earlier":   {attest.IntelRootCRL, crl(20, -2, 30), crl(20, -1, 29), "it is of"},
		"CRL: both lapsed, older":          {attest.SNPCRL, crl(12, -240, -210), crl(13, -200, -170), "number 12"},
		"CRL: both lapsed, newer":          {attest.SNPCRL, crl(13, -200, -170), crl(12, -240, -210), ""},
		"CRL: valid for a lapsed one":      {attest.SNPCRL, crl(12, -1, 29), crl(13, -200, -170), ""},
		"CRL: by a new key":                {attest.SNPCRL, b.crl(t, 1, day(0), day(30)), crl(20, -1, 29), ""},
		"CRL: of tomorrow":                 {attest.SNPCRL, crl(21, 1, 30), crl(20, -1, 29), "ahead"},
		"TCB: the next":                    {attest.TDXTCBInfo, tcb(18, 0, 30), tcb(17, -1, 29), ""},
		"TCB: an older evaluation":         {attest.TDXTCBInfo, tcb(16, 0, 30), tcb(17, -1, 29), "number 16"},
		"TCB: issued earlier":              {attest.SGXTCBInfo, tcb(17, -3, 27), tcb(17, -1, 29), "it is of"},
		"TCB: lapsed":                      {attest.SGXTCBInfo, tcb(17, -40, -10), tcb(17, -1, 29), "expired"},
		"TCB: no JSON":                     {attest.TDXTCBInfo, []byte("x"), tcb(17, -1, 29), "JSON"},
		// The verifier reads the old one only.
		"TCB: an old one, and a new one in capitals": {attest.TDXTCBInfo, append(bytes.TrimSuffix(bytes.TrimSpace(tcb(16, -3, 27)), []byte("}")),
			fmt.Sprintf(`,"TCBInfo":{"issueDate":%q,"nextUpdate":%q,"tcbEvaluationDataNumber":99}}`, now.UTC().Format(time.RFC3339), day(30).UTC().Format(time.RFC3339))...), tcb(17, -1, 29), "TCBInfo"},
		"QE: an older evaluation": {attest.TDXQEID, document("enclaveIdentity", 3, day(0), day(30)), document("enclaveIdentity", 4, day(-1), day(29)), "number 3"},
		"QE: the next":            {attest.SGXQEID, document("enclaveIdentity", 4, day(0), day(30)), document("enclaveIdentity", 4, day(-1), day(29)), ""},
		"VCEK: reissued":          {attest.SNPVCEK, a.leaf(t, day(-1), day(900)), a.leaf(t, day(-400), day(500)), ""},
		"VCEK: the one before":    {attest.SNPVCEK, a.leaf(t, day(-400), day(500)), a.leaf(t, day(-1), day(900)), "it is of"},
		"chain: expired":          {attest.SNPChain, chain(-400, -1), chain(-500, 900), "expired"},
		"chain: the next":         {attest.SNPChain, chain(-1, 900), chain(-500, 900), ""},
	} {
		held, err := editionOf(tc.kind, tc.held)
		if err != nil {
			t.Fatal(err)
		}
		got, err := editionOf(tc.kind, tc.got)
		if err == nil {
			err = got.worse(held, now)
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// answering makes the vendor answer questions for lists with b.
func (v *vendor) answering(b *[]byte) {
	v.set(func(w http.ResponseWriter, r *http.Request) bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/crl") {
			w.Write(*b)
			return true
		}
		return false
	})
}

func (v *vendor) change(b *[]byte, to []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	*b = to
}

// settled waits until the source has n answers behind it, and nothing is on its way.
func settled(t *testing.T, v *vendor, s *Source, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the vendor is asked %d times", n), func() bool { return v.total() >= n })
	// A flight of the same piece waits for the one that is under way.
	<-s.flight.DoChan(string(milanCRL.Kind)+"|"+milanCRL.Key, func() (any, error) { return nil, nil })
}

// TestMirrorThatGoesBack: an older answer takes nobody's place, is counted, is said
// once, and the mirror is asked again soon. A restart changes nothing of that.
func TestMirrorThatGoesBack(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, 1)
	good := a.crl(t, 20, now.AddDate(0, 0, -1), now.AddDate(0, 0, 29))
	for name, old := range map[string][]byte{
		"lapsed":      a.crl(t, 12, now.AddDate(0, -8, 0), now.AddDate(0, -7, 0)),
		"still valid": a.crl(t, 19, now.AddDate(0, 0, -2), now.AddDate(0, 0, 28)),
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			v, c, answer := newVendor(t), &clock{}, good
			v.answering(&answer)
			cfg := Config{CacheDir: tempDir(t), Services: v.services(), Now: c.now, Logger: slog.New(slog.NewTextHandler(&log, nil))}
			s := newSource(t, cfg)
			mustGet(t, s, milanCRL)
			v.change(&answer, old)
			c.advance(25 * time.Hour)
			asked := v.total()
			for i := range 3 {
				if it := mustGet(t, s, milanCRL); !bytes.Equal(it.Data, good) {
					t.Fatal("the older list is served")
				}
				settled(t, v, s, asked+1+i)
				c.advance(retryMax)
			}
			if it := mustGet(t, s, milanCRL); !it.Stale {
				t.Error("what could not be refreshed is not called stale")
			}
			settled(t, v, s, asked+4)
			if n := s.Worse(); n != 4 {
				t.Errorf("%d worse answers are counted, want 4", n)
			}
			if n := strings.Count(log.String(), "cannot fetch collateral"); n != 1 {
				t.Errorf("said %d times, want once:\n%s", n, log.String())
			}
			// The cache on disk is as good.
			s = newSource(t, cfg)
			if it := mustGet(t, s, milanCRL); !bytes.Equal(it.Data, good) {
				t.Error("the older list is in the cache on disk")
			}
			settled(t, v, s, asked+5)
			// The mirror heals.
			newer := a.crl(t, 21, now, now.AddDate(0, 0, 30))
			v.change(&answer, newer)
			c.advance(retryMax)
			mustGet(t, s, milanCRL)
			settled(t, v, s, asked+6)
			if it := mustGet(t, s, milanCRL); !bytes.Equal(it.Data, newer) || it.Stale {
				t.Errorf("the mirror has healed, and the old list is served (stale %v)", it.Stale)
			}
		})
	}
}

// TestExpiredAnswer: where there is nothing better an expired list is all that
// can be had, but not for a day.
func TestExpiredAnswer(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, 1)
	old, good := a.crl(t, 12, now.AddDate(0, -8, 0), now.AddDate(0, -7, 0)), a.crl(t, 20, now.AddDate(0, 0, -1), now.AddDate(0, 0, 29))
	v, c, answer := newVendor(t), &clock{}, old
	v.answering(&answer)
	s := newSource(t, Config{CacheDir: tempDir(t), Services: v.services(), Now: c.now})
	for range 3 {
		if it := mustGet(t, s, milanCRL); !bytes.Equal(it.Data, old) {
			t.Fatal("another list")
		}
	}
	if n := v.total(); n != 1 {
		t.Errorf("asked %d times at once", n)
	}
	v.change(&answer, good)
	c.advance(retryMax)
	if it := mustGet(t, s, milanCRL); !bytes.Equal(it.Data, good) || it.Stale {
		t.Error("the expired list is kept")
	}
}

// TestNewestSourceWins: whatever the order of sources, an older document does not
// hide a newer one.
func TestNewestSourceWins(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, 1)
	old, good := a.crl(t, 19, now.AddDate(0, 0, -2), now.AddDate(0, 0, 28)), a.crl(t, 20, now.AddDate(0, 0, -1), now.AddDate(0, 0, 29))
	lapsed := a.crl(t, 12, now.AddDate(0, -8, 0), now.AddDate(0, -7, 0))
	for name, tc := range map[string]struct {
		folder, cache, service []byte
		want                   []byte
		from                   string
	}{
		"the folder's is newer":               {good, old, nil, good, "folder"},
		"both are the same":                   {good, good, nil, good, "folder"},
		"the cache's is newer":                {old, good, nil, good, "cache"},
		"the folder's has lapsed":             {lapsed, nil, good, good, "service"},
		"the folder's has lapsed, offline":    {lapsed, nil, nil, lapsed, "folder"},
		"the folder's is good, and not asked": {old, nil, good, old, "folder"},
	} {
		t.Run(name, func(t *testing.T) {
			folder, cache := tempDir(t), tempDir(t)
			if err := writeFolder(t, folder, milanCRL, attest.CollateralItem{Data: tc.folder}); err != nil {
				t.Fatal(err)
			}
			cfg := Config{Folder: folder, CacheDir: cache}
			if tc.cache != nil {
				newSource(t, cfg).store(milanCRL, attest.CollateralItem{Data: tc.cache, FetchedAt: now})
			}
			if tc.service != nil {
				v := newVendor(t)
				v.answering(&tc.service)
				cfg.Services = v.services()
			}
			if it := mustGet(t, newSource(t, cfg), milanCRL); !bytes.Equal(it.Data, tc.want) || it.Source != tc.from {
				t.Errorf("from the %s, want the %s", it.Source, tc.from)
			}
		})
	}
	// One that the clock cannot allow does not win.
	folder := tempDir(t)
	path := filepath.Join(folder, fileName(milanCRL))
	if err := writeFolder(t, folder, milanCRL, attest.CollateralItem{Data: good}); err != nil {
		t.Fatal(err)
	}
	s := newSource(t, Config{Folder: folder, CacheDir: tempDir(t)})
	s.store(milanCRL, attest.CollateralItem{Data: a.crl(t, 99, now.AddDate(0, 0, 2), now.AddDate(0, 0, 29)), FetchedAt: now})
	if it := mustGet(t, s, milanCRL); it.Source != "folder" {
		t.Errorf("a list of the day after tomorrow is served from the %s", it.Source)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// TestFolderDoesNotGoBack: what is fetched into a folder does not replace what is newer.
func TestFolderDoesNotGoBack(t *testing.T) {
	now, folder, a := time.Now(), tempDir(t), newAuthority(t, 1)
	old, good := a.crl(t, 19, now.AddDate(0, 0, -2), now.AddDate(0, 0, 28)), a.crl(t, 20, now.AddDate(0, 0, -1), now.AddDate(0, 0, 29))
	for _, tc := range []struct {
		data []byte
		ok   bool
	}{{old, true}, {good, true}, {old, false}, {good, true}} {
		err := writeFolder(t, folder, milanCRL, attest.CollateralItem{Data: tc.data})
		if (err == nil) != tc.ok {
			t.Errorf("%v, want ok = %v", err, tc.ok)
		}
	}
}

// TestBoundedDisk: certificates of chips do not fill the disk, over a restart either.
func TestBoundedDisk(t *testing.T) {
	dir := tempDir(t)
	ref := func(i int) attest.CollateralRef {
		return attest.CollateralRef{Kind: attest.SNPVCEK, Key: fmt.Sprintf("milan/00/%016x", i)}
	}
	s := newSource(t, Config{CacheDir: dir})
	s.chipFiles = maxChips - 2 // as if there were
	for i := range 5 {
		s.store(ref(i%3), attest.CollateralItem{Data: []byte("x")}) // the first two again
	}
	if s.chipFiles != maxChips {
		t.Errorf("%d files are counted", s.chipFiles)
	}
	if s = newSource(t, Config{CacheDir: dir}); s.chipFiles != 2 {
		t.Errorf("%d files are found, want the 2 that fitted", s.chipFiles)
	}
}

// TestServiceAsksForTime: a service that asks to be left alone is, for all chips, and no longer than an hour.
func TestServiceAsksForTime(t *testing.T) {
	for name, tc := range map[string]struct {
		header string
		quiet  time.Duration
	}{
		"seconds":  {"600", 10 * time.Minute},
		"a date":   {time.Now().Add(10 * time.Minute).UTC().Format(http.TimeFormat), 10 * time.Minute},
		"for ever": {strconv.Itoa(1 << 31), maxQuiet},
	} {
		t.Run(name, func(t *testing.T) {
			v, c := newVendor(t), &clock{}
			v.set(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/vcek/v1/Milan/") || strings.HasSuffix(r.URL.Path, "/crl") {
					return false
				}
				w.Header().Set("Retry-After", tc.header)
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			})
			s := newSource(t, Config{Services: v.services(), Now: c.now})
			ask := func() (n int) {
				before := v.total()
				for i := range 40 {
					wantReason(t, s, attest.CollateralRef{Kind: attest.SNPVCEK, Key: fmt.Sprintf("milan/%0128x/0000000000000000", i)}, attest.ReasonCollateralMissing)
				}
				return v.total() - before
			}
			if n := ask(); n != 1 {
				t.Errorf("%d requests at once, want 1", n)
			}
			mustGet(t, s, milanCRL) // who makes up chips does not keep lists from being fetched
			c.advance(tc.quiet - 5*time.Second)
			if n := ask(); n != 0 {
				t.Errorf("%d requests before the time that it asked for", n)
			}
			c.advance(10 * time.Second)
			if n := ask(); n != 1 {
				t.Errorf("%d requests after it, want 1", n)
			}
		})
	}
	for header, want := range map[string]time.Duration{"": 0, "0": 0, "-1": 0, "soon": 0, "120": 2 * time.Minute, "Wed, 21 Oct 2015 07:28:00 GMT": 0, "99999999999": 0} {
		if got := parseRetryAfter(header, time.Now()); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}
