package snp

import (
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

// BenchmarkVerify has the chain and the CRL memoised.
func BenchmarkVerify(b *testing.B) {
	l := newLab(b)
	ev := l.evidence(b, teesim.DeviceOptions{}, teesim.ReportOptions{})
	benchtest.Loop(b, func() error {
		_, err := l.verify(b, ev)
		return err
	})
}

// BenchmarkVerifyCold is a real Milan report, nothing memoised: parsing, two
// RSA-4096 signatures and the report's.
func BenchmarkVerifyCold(b *testing.B) {
	r := realVectors(b)[0]
	v := newVerifier(b, Config{CRLOptional: true})
	benchtest.Loop(b, func() error {
		v.chains = memo.Memo[*chain]{}
		_, err := v.Verify(b.Context(), r.ev, attest.Unbound(), teetest.MapCollateral{}, r.now)
		return err
	})
}

// BenchmarkFloor: the report's signature; those of chain and CRL are remembered.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.P384) }
