package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/teesim"
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
		a := w.attempt(b)
		a.req.KeyAlgorithm, a.req.PublicKey = string(seal.Hybrid), key.Public()
		a.req.OfferedSuites = []string{string(seal.Hybrid)}
		a.bind = attest.Transcript{
			Nonce: a.req.Nonce, BrokerID: w.id.ID(), KeyAlgorithm: a.req.KeyAlgorithm, PublicKey: a.req.PublicKey,
			OfferedSuites: a.req.OfferedSuites, Resources: a.req.Resources,
		}
		a.req.Evidence, err = w.device.Evidence(a.bind.Digest64(), teesim.ReportOptions{Measurement: teesim.Measurement("")})
		if err != nil {
			b.Fatal(err)
		}
		requests[i] = a.req
	}
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	for i := range b.N {
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
func BenchmarkReleaseFloor(b *testing.B) {
	w := newWorld(b)
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
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
		if !ecdsa.VerifyASN1(&k.PublicKey, d[:], sig) {
			b.Fatal("does not verify")
		}
		if err := seal.Floor(guest.Public(), w.id); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
}
