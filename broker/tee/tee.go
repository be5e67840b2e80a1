// Package tee is the list of evidence types, one line each.
package tee

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/azure"
	"github.com/claviger/claviger/broker/tee/cca"
	"github.com/claviger/claviger/broker/tee/gce"
	"github.com/claviger/claviger/broker/tee/keystone"
	"github.com/claviger/claviger/broker/tee/nitro"
	"github.com/claviger/claviger/broker/tee/psa"
	"github.com/claviger/claviger/broker/tee/results"
	"github.com/claviger/claviger/broker/tee/sgx"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/tpm"
)

// TestRoot is the root of simulated SNP hardware. Claims that end there say
// simulated = true. No configuration file can name one.
type TestRoot struct {
	Product string // "Milan", "Genoa" or "Turin"
	ARK     *x509.Certificate
}

// Config of the verifiers.
type Config struct {
	TestRoots []TestRoot // without any, only the vendors' pinned roots are trusted
	TPM       tpm.Config
	// GCEAKRoots are Google's CAs for the attestation keys of its vTPMs.
	GCEAKRoots []*x509.Certificate
	// NitroMaxAge is how old a document of Nitro may be; 0 means nitro's default.
	NitroMaxAge time.Duration
	// KeystoneDevices and KeystoneMonitors are endorsed device keys and hashes of security monitors.
	KeystoneDevices  [][32]byte
	KeystoneMonitors [][64]byte
	// Results are other verifiers whose tokens are believed.
	Results []results.Issuer
	// PSAEndorsements and CCAEndorsements are attestation keys of devices and of platforms.
	PSAEndorsements []arm.Endorsement
	CCAEndorsements []arm.Endorsement
}

// Set is one verifier per type, and what activates attestation keys of TPMs.
type Set struct {
	Verifiers []attest.Verifier
	TPM       *tpm.Verifier
}

// New makes one verifier per type.
func New(cfg Config) (Set, error) {
	var snpCfg snp.Config
	for _, r := range cfg.TestRoots {
		snpCfg.TestRoots = append(snpCfg.TestRoots, snp.TestRoot(r))
	}
	return build(snpCfg, tdx.Config{}, cfg.TPM, sgx.Config{}, cfg.GCEAKRoots, nitro.Config{MaxAge: cfg.NitroMaxAge},
		keystone.Config{DeviceKeys: cfg.KeystoneDevices, Monitors: cfg.KeystoneMonitors}, results.Config{Issuers: cfg.Results},
		psa.Config{Endorsements: cfg.PSAEndorsements}, cca.Config{Endorsements: cfg.CCAEndorsements})
}

// Appraisers are for looking at evidence from a file: missing revocation lists
// and TCB information are reported as skipped checks where optional is set, and
// so is the endorsement of devices of Keystone and of Arm other than these. Tokens
// of other verifiers are believed only of these issuers. They never stand behind a release.
func Appraisers(optional bool, issuers []results.Issuer, endorsed []arm.Endorsement, devices ...[32]byte) ([]attest.Verifier, error) {
	s, err := build(snp.Config{CRLOptional: optional}, tdx.Config{CollateralOptional: optional}, tpm.Config{}, sgx.Config{CollateralOptional: optional}, nil, nitro.Config{},
		keystone.Config{DeviceKeys: devices, Unendorsed: optional}, results.Config{Issuers: issuers},
		psa.Config{Endorsements: endorsed, Unendorsed: optional}, cca.Config{Endorsements: endorsed, Unendorsed: optional})
	return s.Verifiers, err
}

func build(snpCfg snp.Config, tdxCfg tdx.Config, tpmCfg tpm.Config, sgxCfg sgx.Config, gceRoots []*x509.Certificate, nitroCfg nitro.Config,
	keystoneCfg keystone.Config, resultsCfg results.Config, psaCfg psa.Config, ccaCfg cca.Config) (Set, error) {
	s, err := snp.New(snpCfg)
	if err != nil {
		return Set{}, fmt.Errorf("sev-snp verifier: %w", err)
	}
	t, err := tpm.New(tpmCfg)
	if err != nil {
		return Set{}, err
	}
	n, err := nitro.New(nitroCfg)
	if err != nil {
		return Set{}, err
	}
	k, err := keystone.New(keystoneCfg)
	if err != nil {
		return Set{}, err
	}
	r, err := results.New(resultsCfg)
	if err != nil {
		return Set{}, err
	}
	p, err := psa.New(psaCfg)
	if err != nil {
		return Set{}, err
	}
	c, err := cca.New(ccaCfg)
	if err != nil {
		return Set{}, err
	}
	td := tdx.New(tdxCfg)
	return Set{Verifiers: []attest.Verifier{
		s,
		td,
		t,
		sgx.New(sgxCfg),
		azure.New(azure.Config{SNP: s, TDX: td}),
		gce.New(gce.Config{AKRoots: gceRoots, SNP: s, TDX: td}),
		n,
		k,
		r,
		p,
		c,
	}, TPM: t}, nil
}
