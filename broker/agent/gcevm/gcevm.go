// Package gcevm makes evidence in a confidential VM of Google Compute Engine: a
// report of the CPU and a quote by the attestation key that Google certifies,
// over one request (docs/evidence/gce-vtpm.md).
package gcevm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/attest"
)

// Where Google keeps the RSA attestation key's certificate and template.
const (
	akCertIndex     = 0x01c10000
	akTemplateIndex = 0x01c10001
)

// CPU reports over 64 bytes.
type CPU interface {
	Raw(ctx context.Context, reportData [64]byte) (attest.Evidence, error)
}

// Device is a confidential VM. It is safe for concurrent use.
type Device struct {
	tpm     *tpmdev.Device
	cpu     CPU
	issuers [][]byte
}

// New is the device of a VM with that vTPM and CPU. issuers are the certificates
// above the attestation key's own (DER), from its issuer on.
func New(tpm *tpmdev.Device, cpu CPU, issuers [][]byte) *Device { return &Device{tpm, cpu, issuers} }

// Evidence implements agent.Device.
func (d *Device) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d.evidence(ctx, t.Digest64(), t.Digest32())
}

// Raw makes evidence that is bound to nothing of ours: the CPU's over the data,
// the vTPM's over their SHA-256.
func (d *Device) Raw(ctx context.Context, reportData [64]byte) (attest.Evidence, error) {
	return d.evidence(ctx, reportData, sha256.Sum256(reportData[:]))
}

func (d *Device) evidence(ctx context.Context, digest64 [64]byte, digest32 [32]byte) (attest.Evidence, error) {
	hardware, err := d.cpu.Raw(ctx, digest64)
	if err != nil {
		return attest.Evidence{}, err
	}
	cert, err := d.tpm.NV(akCertIndex)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("GCE: certificate of the attestation key (is this a VM of Google's?): %w", err)
	}
	template, err := d.tpm.NV(akTemplateIndex)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("GCE: template of the attestation key: %w", err)
	}
	q, err := d.tpm.QuoteFrom(template, digest32)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("GCE: %w", err)
	}
	if len(d.issuers) == 0 {
		return attest.Evidence{}, errors.New("GCE: the issuers of the attestation key's certificate are not configured (tpm.ak_issuers)")
	}
	report, err := attest.GCEReport{
		Hardware: hardware.Type, HardwareReport: hardware.Report, Quote: q.Quote, Signature: q.Signature,
		AKCertificates: append([][]byte{cert}, d.issuers...), PCRs: q.PCRs, Cmdline: q.Cmdline, SystemdLog: q.SystemdLog,
	}.Encode()
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("GCE: encode evidence: %w", err)
	}
	return attest.Evidence{Type: attest.TypeGCE, Report: report, Endorsements: hardware.Endorsements, EventLog: q.EventLog}, nil
}
