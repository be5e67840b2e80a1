// Package benchtest measures benchmarks in CPU time, and signatures that a
// verifier cannot do without: the floor. `make bench` prints one beside the other.
package benchtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"
)

// CPU is what this process has used, all threads: on a busy machine the wall clock says little.
func CPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Loop runs op as often as b wants, and reports cpu-ns/op beside ns/op. What op
// remembers for the next time is warm: one run goes ahead of the measured ones.
func Loop(b *testing.B, op func() error) {
	b.Helper()
	if err := op(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	start := CPU(b)
	for b.Loop() {
		if err := op(); err != nil {
			b.Fatal(err)
		}
	}
	Report(b, start)
}

// Report reports the CPU time since start, a value of CPU, over all b.N.
func Report(b *testing.B, start time.Duration) {
	b.Helper()
	b.ReportMetric(float64(CPU(b)-start)/float64(b.N), "cpu-ns/op")
}

// A Signature is a kind of signature. Verification is of a digest: hashing is not part of the floor.
type Signature struct {
	name string
	make func(digest []byte) (verify func() bool, err error)
}

// Kinds of signatures.
var (
	P256    = Signature{"P-256", func(d []byte) (func() bool, error) { return ecdsaSignature(elliptic.P256(), d) }}
	P384    = Signature{"P-384", func(d []byte) (func() bool, error) { return ecdsaSignature(elliptic.P384(), d) }}
	RSA2048 = Signature{"RSA-2048", rsaSignature}
	Ed25519 = Signature{"Ed25519", ed25519Signature}
)

func ecdsaSignature(curve elliptic.Curve, digest []byte) (func() bool, error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest)
	return func() bool { return ecdsa.VerifyASN1(&key.PublicKey, digest, sig) }, err
}

func rsaSignature(digest []byte) (func() bool, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest)
	return func() bool { return rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest, sig) == nil }, err
}

func ed25519Signature(digest []byte) (func() bool, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	sig := ed25519.Sign(private, digest)
	return func() bool { return ed25519.Verify(public, digest, sig) }, nil
}

// Floor measures one verification of each of sigs, in a sub-benchmark that is
// named for them: `make bench` prints the name.
func Floor(b *testing.B, sigs ...Signature) {
	b.Helper()
	digest := sha256.Sum256([]byte("signed"))
	var names []string
	var verify []func() bool
	for _, s := range sigs {
		v, err := s.make(digest[:])
		if err != nil {
			b.Fatal(err)
		}
		names, verify = append(names, s.name), append(verify, v)
	}
	b.Run(strings.Join(names, "+"), func(b *testing.B) {
		Loop(b, func() error {
			for _, v := range verify {
				if !v() {
					return errors.New("the signature does not verify")
				}
			}
			return nil
		})
	})
}
