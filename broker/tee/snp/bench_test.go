package snp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
)

// BenchmarkFloorP384 is one signature check over a report: no verifier can be faster.
func BenchmarkFloorP384(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	msg := make([]byte, signatureOffset)
	d := sha512.Sum384(msg)
	r, s, err := ecdsa.Sign(rand.Reader, key, d[:])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		d := sha512.Sum384(msg)
		if !ecdsa.Verify(&key.PublicKey, d[:], r, s) {
			b.Fatal("signature")
		}
	}
}

// BenchmarkVerifyWarm has the chain and the CRL memoised.
func BenchmarkVerifyWarm(b *testing.B) {
	l := newLab(b)
	ev := l.evidence(b, teesim.DeviceOptions{}, teesim.ReportOptions{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.verify(b, ev); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyCold is a real Milan report, nothing memoised: parsing, two
// RSA-4096 signatures and the report's.
func BenchmarkVerifyCold(b *testing.B) {
	r := realVectors(b)[0]
	v := newVerifier(b, Config{CRLOptional: true})
	b.ReportAllocs()
	for b.Loop() {
		v.chains = memo[*chain]{size: 4096}
		if _, err := v.Verify(b.Context(), r.ev, attest.Unbound(), teetest.MapCollateral{}, r.now); err != nil {
			b.Fatal(err)
		}
	}
}
