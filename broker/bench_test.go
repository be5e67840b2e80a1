package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/policy"
)

// BenchmarkRelease is one whole SNP release with chain and collateral warm:
// admission, verification, policy, wrap and receipt; the store, the source and
// the log are in memory. BenchmarkReleaseFloor is its unavoidable cryptography.
func BenchmarkRelease(b *testing.B) {
	w := newWorld(b)
	w.cfg.Observe = nil
	key, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		b.Fatal(err)
	}
	requests := make([]broker.Request, b.N)
	for i := range requests {
		a := w.hybrid(b, key)
		a.req.Evidence, err = w.device.Evidence(a.bind.Digest64(), teesim.ReportOptions{Measurement: teesim.Measurement("")})
		if err != nil {
			b.Fatal(err)
		}
		requests[i] = a.req
	}
	w.run(b, requests)
}

// hybrid is an attempt with the default suite and a given key.
func (w *world) hybrid(b *testing.B, key *seal.PrivateKey) *attempt {
	a := w.attempt(b)
	a.req.KeyAlgorithm, a.req.PublicKey, a.req.OfferedSuites = string(seal.Hybrid), key.Public(), []string{string(seal.Hybrid)}
	a.bind.KeyAlgorithm, a.bind.PublicKey, a.bind.OfferedSuites = a.req.KeyAlgorithm, a.req.PublicKey, a.req.OfferedSuites
	return a
}

func (w *world) run(b *testing.B, requests []broker.Request) {
	b.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(broker.GCPercent)) // as the command runs
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	for i := range requests {
		if _, err := w.Release(b.Context(), requests[i]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
}

// cpuTime is what this process has used, all threads: on a busy machine the wall clock says little.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReleaseFloor: one P-384 verification, one encapsulation, two
// signatures (secret and receipt), one nonce MAC.
func BenchmarkReleaseFloor(b *testing.B) { releaseFloor(b, elliptic.P384(), 1) }

func releaseFloor(b *testing.B, curve elliptic.Curve, verifications int) {
	w := newWorld(b)
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	d := sha512.Sum384([]byte("report"))
	sig, err := ecdsa.SignASN1(rand.Reader, k, d[:])
	if err != nil {
		b.Fatal(err)
	}
	guest, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		b.Fatal(err)
	}
	nonce, _, err := w.Challenge()
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	b.ResetTimer()
	cpu := cpuTime(b)
	for range b.N {
		if _, _, err := w.nonces.Check(nonce, now); err != nil {
			b.Fatal(err)
		}
		for range verifications {
			if !ecdsa.VerifyASN1(&k.PublicKey, d[:], sig) {
				b.Fatal("does not verify")
			}
		}
		if err := seal.Floor(guest.Public(), w.id); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
}

// BenchmarkReleaseTDX is one whole TDX release with collateral warm, on a
// simulated Intel platform, decided by the strict example policy.
func BenchmarkReleaseTDX(b *testing.B) {
	platform, err := dcaptest.New(time.Now().UTC())
	if err != nil {
		b.Fatal(err)
	}
	coll, err := platform.Collateral()
	if err != nil {
		b.Fatal(err)
	}
	engine, err := policy.New(policy.Config{Dir: "../examples/policies/tdx_strict", ExtraData: map[string]any{"allow_simulated": true}})
	if err != nil {
		b.Fatal(err)
	}
	td := platform.TD()
	hexes := func(d []byte) []string { return []string{hex.EncodeToString(d)} }
	err = engine.SetReferences([]broker.ReferenceSet{{
		Name: "td", Type: attest.TypeTDX, State: broker.ReferenceActive, Values: map[string][]string{
			"mrtd": hexes(td.MRTD[:]), "rtmr0": hexes(td.RTMR[0][:]), "rtmr1": hexes(td.RTMR[1][:]), "rtmr2": hexes(td.RTMR[2][:]),
		},
	}})
	if err != nil {
		b.Fatal(err)
	}
	w := newWorld(b, func(c *broker.Config) {
		c.Verifiers = []attest.Verifier{tdx.New(tdx.Config{TestRoots: []*x509.Certificate{platform.Root.Certificate}})}
		c.Collateral, c.Policy, c.Observe = coll, engine, nil
	})
	catalog, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "tdx_strict"}})
	if err != nil {
		b.Fatal(err)
	}
	w.SetCatalog(catalog)
	key, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		b.Fatal(err)
	}
	requests := make([]broker.Request, b.N)
	for i := range requests {
		a := w.hybrid(b, key)
		td.REPORTDATA = a.bind.Digest64()
		quote, err := platform.QuoteTD(4, td)
		if err != nil {
			b.Fatal(err)
		}
		a.req.Evidence = attest.Evidence{Type: attest.TypeTDX, Report: quote}
		requests[i] = a.req
	}
	w.run(b, requests)
}

// BenchmarkReleaseTDXFloor: the two P-256 verifications of a quote (its own and
// the quoting enclave's report), one encapsulation, two signatures, one nonce MAC.
func BenchmarkReleaseTDXFloor(b *testing.B) { releaseFloor(b, elliptic.P256(), 2) }

// BenchmarkReleaseTDXWarmFloor leaves out the quoting enclave's report, which is
// the same in all quotes of a platform and remembered after the first.
func BenchmarkReleaseTDXWarmFloor(b *testing.B) { releaseFloor(b, elliptic.P256(), 1) }
