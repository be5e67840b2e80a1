// Package tee is the list of evidence types, one line each.
package tee

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/azure"
	"github.com/claviger/claviger/broker/tee/gce"
	"github.com/claviger/claviger/broker/tee/keystone"
	"github.com/claviger/claviger/broker/tee/nitro"
	"github.com/claviger/claviger/broker/tee/nvidia"
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
	// NVIDIARIMs are manifests by name, NVIDIAOCSPOptional believes devices without OCSP answers.
	NVIDIARIMs         map[string]*nvidia.RIM
	NVIDIAOCSPOptional bool
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
		keystone.Config{DeviceKeys: cfg.KeystoneDevices, Monitors: cfg.KeystoneMonitors},
		nvidia.Config{RIMs: cfg.NVIDIARIMs, OCSPOptional: cfg.NVIDIAOCSPOptional})
}

// Appraisers are for looking at evidence from a file: missing revocation lists
// and TCB information are reported as skipped checks where optional is set, and
// so is the endorsement of Keystone devices other than these. NVIDIA's devices
// are compared with rims. They never stand behind a release.
func Appraisers(optional bool, rims map[string]*nvidia.RIM, devices ...[32]byte) ([]attest.Verifier, error) {
	s, err := build(snp.Config{CRLOptional: optional}, tdx.Config{CollateralOptional: optional}, tpm.Config{}, sgx.Config{CollateralOptional: optional}, nil, nitro.Config{},
		keystone.Config{DeviceKeys: devices, Unendorsed: optional}, nvidia.Config{RIMs: rims, OCSPOptional: optional})
	return s.Verifiers, err
}

func build(snpCfg snp.Config, tdxCfg tdx.Config, tpmCfg tpm.Config, sgxCfg sgx.Config, gceRoots []*x509.Certificate, nitroCfg nitro.Config, keystoneCfg keystone.Config, nvidiaCfg nvidia.Config) (Set, error) {
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
	g, err := nvidia.New(nvidiaCfg)
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
		g,
	}, TPM: t}, nil
}
