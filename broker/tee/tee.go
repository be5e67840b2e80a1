// Package tee is the list of evidence types, one line each.
package tee

import (
	"crypto/x509"
	"fmt"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
)

// TestRoot is the root of simulated SNP hardware. Claims that end there say
// simulated = true. No configuration file can name one.
type TestRoot struct {
	Product string // "Milan", "Genoa" or "Turin"
	ARK     *x509.Certificate
}

// Verifiers makes one verifier per type. Without test roots only the vendors' pinned roots are trusted.
func Verifiers(simulated ...TestRoot) ([]attest.Verifier, error) {
	var snpCfg snp.Config
	for _, r := range simulated {
		snpCfg.TestRoots = append(snpCfg.TestRoots, snp.TestRoot(r))
	}
	return build(snpCfg, tdx.Config{})
}

// Appraisers are for looking at evidence from a file: missing revocation lists
// and TCB information are reported as skipped checks where optional is set.
// They never stand behind a release.
func Appraisers(optional bool) ([]attest.Verifier, error) {
	return build(snp.Config{CRLOptional: optional}, tdx.Config{CollateralOptional: optional})
}

func build(snpCfg snp.Config, tdxCfg tdx.Config) ([]attest.Verifier, error) {
	s, err := snp.New(snpCfg)
	if err != nil {
		return nil, fmt.Errorf("sev-snp verifier: %w", err)
	}
	return []attest.Verifier{
		s,
		tdx.New(tdxCfg),
	}, nil
}
