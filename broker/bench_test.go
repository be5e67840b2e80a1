package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"runtime/debug"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/bench/benchtest"
	"github.com/claviger/claviger/policy"
)

// BenchmarkRelease is one whole release with chain and collateral warm:
// admission, verification, policy, wrap and receipt; the store, the source and
// the log are in memory.
func BenchmarkRelease(b *testing.B) {
	b.Run("sev-snp", func(b *testing.B) { releaseSNP(b, false) })
	b.Run("tdx", func(b *testing.B) { releaseTDX(b, false) })
}

// BenchmarkReleaseCold is the same for guests of which each has claims that the
// policy has not seen before, so that it decides anew. Chain and collateral are warm.
func BenchmarkReleaseCold(b *testing.B) {
	b.Run("sev-snp", func(b *testing.B) { releaseSNP(b, true) })
	b.Run("tdx", func(b *testing.B) { releaseTDX(b, true) })
}

// BenchmarkReleaseFloor is the unavoidable cryptography: the verification of the
// report or quote, one encapsulation, two signatures (secret and receipt), one
// nonce MAC. Signatures that are the same in all evidence of a machine, such as
// that over the quoting enclave's report, are remembered after the first.
func BenchmarkReleaseFloor(b *testing.B) {
	b.Run("sev-snp", func(b *testing.B) {
		b.Run("P-384+encapsulation+2_signatures+MAC", func(b *testing.B) { releaseFloor(b, elliptic.P384()) })
	})
	b.Run("tdx", func(b *testing.B) {
		b.Run("P-256+encapsulation+2_signatures+MAC", func(b *testing.B) { releaseFloor(b, elliptic.P256()) })
	})
}

func releaseSNP(b *testing.B, anew bool) {
	w := newWorld(b)
	w.cfg.Observe = nil
	key, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		b.Fatal(err)
	}
	requests := make([]broker.Request, b.N+1)
	for i := range requests {
		a := w.hybrid(b, key)
		o := teesim.ReportOptions{Measurement: teesim.Measurement("")}
		if anew {
			binary.BigEndian.PutUint64(o.HostData[:], uint64(i))
		}
		a.req.Evidence, err = w.device.Evidence(a.bind.Digest64(), o)
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

// run measures all requests but the first, which warms chain and collateral.
func (w *world) run(b *testing.B, requests []broker.Request) {
	b.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(broker.GCPercent)) // as the command runs
	if _, err := w.Release(b.Context(), requests[0]); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	start := benchtest.CPU(b)
	for _, r := range requests[1:] {
		if _, err := w.Release(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
	benchtest.Report(b, start)
}

func releaseFloor(b *testing.B, curve elliptic.Curve) {
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
	start := benchtest.CPU(b)
	for range b.N {
		if _, _, err := w.nonces.Check(nonce, now); err != nil {
			b.Fatal(err)
		}
		if !ecdsa.VerifyASN1(&k.PublicKey, d[:], sig) {
			b.Fatal("does not verify")
		}
		if err := seal.Floor(guest.Public(), w.id); err != nil {
			b.Fatal(err)
		}
	}
	benchtest.Report(b, start)
}

// releaseTDX is on a simulated Intel platform, decided by the strict example policy.
func releaseTDX(b *testing.B, anew bool) {
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
	}}, nil)
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
	requests := make([]broker.Request, b.N+1)
	for i := range requests {
		a := w.hybrid(b, key)
		td.REPORTDATA = a.bind.Digest64()
		if anew {
			binary.BigEndian.PutUint64(td.RTMR[3][:], uint64(i))
		}
		quote, err := platform.QuoteTD(4, td)
		if err != nil {
			b.Fatal(err)
		}
		a.req.Evidence = attest.Evidence{Type: attest.TypeTDX, Report: quote}
		requests[i] = a.req
	}
	w.run(b, requests)
}
