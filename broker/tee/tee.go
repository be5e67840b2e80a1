// Package tee is the list of evidence types, one line each.
package tee

import (
	"crypto/x509"
	"errors"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/azure"
	"github.com/claviger/claviger/broker/tee/cca"
	"github.com/claviger/claviger/broker/tee/gce"
	"github.com/claviger/claviger/broker/tee/keystone"
	"github.com/claviger/claviger/broker/tee/nitro"
	"github.com/claviger/claviger/broker/tee/nvidia"
	"github.com/claviger/claviger/broker/tee/psa"
	"github.com/claviger/claviger/broker/tee/results"
	"github.com/claviger/claviger/broker/tee/sgx"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/tpm"
)

// TestRoot is the root of simulated SNP hardware. Claims that end there say
// simulated = true. No configuration file can name one.
type TestRoot = snp.TestRoot

// Config of the verifiers. The zero value believes the vendors whose roots are
// pinned, and nobody where the operator has to endorse keys.
type Config struct {
	SNP        snp.Config
	TDX        tdx.Config
	SGX        sgx.Config
	TPM        tpm.Config
	GCEAKRoots []*x509.Certificate // Google's CAs for the attestation keys of its vTPMs
	Nitro      nitro.Config
	Keystone   keystone.Config
	Results    results.Config
	PSA        psa.Config
	CCA        cca.Config
	NVIDIA     nvidia.Config
}

// Optional is the configuration for looking at evidence from a file: what is
// missing to believe it, revocation lists, TCB information, the endorsement of a
// device, is reported as a skipped check. It never stands behind a release.
func (c Config) Optional() Config {
	c.SNP.CRLOptional, c.TDX.CollateralOptional, c.SGX.CollateralOptional = true, true, true
	c.Keystone.Unendorsed, c.PSA.Unendorsed, c.CCA.Unendorsed, c.NVIDIA.OCSPOptional = true, true, true, true
	return c
}

// Set is one verifier per type, and what activates attestation keys of TPMs.
type Set struct {
	Verifiers []attest.Verifier
	TPM       *tpm.Verifier
}

// New makes one verifier per type.
func New(cfg Config) (Set, error) {
	var s Set
	var errs []error
	add := func(v attest.Verifier, err error) {
		s.Verifiers, errs = append(s.Verifiers, v), append(errs, err)
	}
	amd, err := snp.New(cfg.SNP)
	add(amd, err)
	intel := tdx.New(cfg.TDX)
	add(intel, nil)
	s.TPM, err = tpm.New(cfg.TPM)
	add(s.TPM, err)
	add(sgx.New(cfg.SGX), nil)
	add(azure.New(azure.Config{SNP: amd, TDX: intel}), nil)
	add(gce.New(gce.Config{AKRoots: cfg.GCEAKRoots, SNP: amd, TDX: intel}), nil)
	add(nitro.New(cfg.Nitro))
	add(keystone.New(cfg.Keystone))
	add(results.New(cfg.Results))
	add(psa.New(cfg.PSA))
	add(cca.New(cfg.CCA))
	add(nvidia.New(cfg.NVIDIA))
	if err := errors.Join(errs...); err != nil {
		return Set{}, err
	}
	return s, nil
}
