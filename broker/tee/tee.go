// Package tee is the list of evidence types, one line each.
package tee

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

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
	"github.com/claviger/claviger/broker/tpmquote"
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
	// GCEUnvouched: see gce.Config.Unvouched.
	GCEUnvouched bool
	Nitro        nitro.Config
	Keystone     keystone.Config
	Results      results.Config
	PSA          psa.Config
	CCA          cca.Config
	NVIDIA       nvidia.Config
}

// Optional is the configuration for looking at evidence from a file: what is
// missing to believe it, revocation lists, TCB information, the endorsement of a
// device, is reported as a skipped check. It never stands behind a release.
func (c Config) Optional() Config {
	c = c.WithoutRevocation()
	c.Keystone.Unendorsed, c.PSA.Unendorsed, c.CCA.Unendorsed, c.TPM.Unvouched, c.GCEUnvouched = true, true, true, true, true
	return c
}

// WithoutRevocation is the configuration for evidence from a file without
// revocation lists and TCB information. Who vouches for the evidence is checked all the same.
func (c Config) WithoutRevocation() Config {
	c.SNP.CRLOptional, c.TDX.CollateralOptional, c.SGX.CollateralOptional, c.NVIDIA.OCSPOptional = true, true, true, true
	return c
}

// Describe is what the bytes of evidence say, verified or not, for the types that
// can be read without knowing who signed: nothing in it may be relied on. missing
// are pieces of collateral of which one would be needed to verify it.
func Describe(ev attest.Evidence) (c attest.Claims, missing []attest.CollateralRef, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	switch ev.Type {
	case attest.TypeSNP:
		claims, keys, err := snp.Describe(ev.Report)
		for _, k := range keys {
			missing = append(missing, attest.CollateralRef{Kind: attest.SNPVCEK, Key: k})
		}
		return claims, missing, err
	case attest.TypeTDX:
		c, err = tdx.Describe(ev.Report)
	case attest.TypeSGX:
		c, err = sgx.Describe(ev.Report)
	default:
		err = fmt.Errorf("evidence of type %s says nothing before it is verified", ev.Type)
	}
	return c, nil, err
}

// Claims names all that claims can hold: each vendor's, under its member, are empty.
func Claims() attest.Claims {
	return attest.Claims{
		SNP: snp.Claims{}, TDX: tdx.Claims{}, TPM: tpmquote.Claims{}, SGX: sgx.Claims{}, Azure: azure.Claims{}, GCE: gce.Claims{}, Nitro: nitro.Claims{},
		Keystone: keystone.Claims{}, Result: results.Claims{}, PSA: psa.Claims{}, CCA: cca.Claims{}, NVIDIA: nvidia.Claims{},
	}
}

// Set is one verifier per type, what activates attestation keys of TPMs, and
// what tells whether collateral is genuine.
type Set struct {
	Verifiers []attest.Verifier
	TPM       *tpm.Verifier

	snp *snp.Verifier
	tdx *tdx.Verifier
	sgx *sgx.Verifier
}

// CheckCollateral implements collateral.Checker: whatever the kind, by the roots that the verifiers have.
func (s Set) CheckCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) error {
	switch ref.Kind {
	case attest.SNPChain, attest.SNPVCEK, attest.SNPCRL:
		return s.snp.CheckCollateral(ctx, ref, it, c)
	case attest.TDXTCBInfo, attest.TDXQEID:
		return s.tdx.CheckCollateral(ctx, ref, it, c)
	case attest.SGXTCBInfo, attest.SGXQEID:
		return s.sgx.CheckCollateral(ctx, ref, it, c)
	case attest.PCKCRL, attest.IntelRootCRL: // they serve both
		if err := s.tdx.CheckCollateral(ctx, ref, it, c); err == nil {
			return nil
		}
		return s.sgx.CheckCollateral(ctx, ref, it, c)
	}
	return attest.Errorf("collateral", attest.ReasonUnsupported, "nothing here verifies %s", ref.Kind)
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
	intel, enclaves := tdx.New(cfg.TDX), sgx.New(cfg.SGX)
	s.snp, s.tdx, s.sgx = amd, intel, enclaves
	add(intel, nil)
	s.TPM, err = tpm.New(cfg.TPM)
	add(s.TPM, err)
	add(enclaves, nil)
	add(azure.New(azure.Config{SNP: amd, TDX: intel}), nil)
	add(gce.New(gce.Config{AKRoots: cfg.GCEAKRoots, Unvouched: cfg.GCEUnvouched, SNP: amd, TDX: intel}), nil)
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
