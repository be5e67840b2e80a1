package attest

import (
	"encoding/json"
	"fmt"
)

// GCEReport is Evidence.Report of type "gce-vtpm": JSON, byte strings in standard
// base64. Evidence.Endorsements are those of the hardware report inside (for SNP
// the GUID certificate table), Evidence.EventLog is the vTPM's TCG log.
type GCEReport struct {
	Hardware       Type     `json:"hardware"`              // TypeSNP or TypeTDX
	HardwareReport []byte   `json:"hardware_report"`       // ATTESTATION_REPORT or quote; report_data is the binding digest of 64 bytes
	Quote          []byte   `json:"quote"`                 // TPMS_ATTEST of TPM2_Quote; extraData is the binding digest of 32 bytes
	Signature      []byte   `json:"signature"`             // TPMT_SIGNATURE
	AKCertificates [][]byte `json:"ak_certificates"`       // DER: the key's own (NV index 0x01c10000 for RSA), then its issuers
	PCRs           []PCR    `json:"pcrs"`                  // as in TPMReport
	Cmdline        string   `json:"cmdline,omitempty"`     // as in TPMReport
	SystemdLog     []byte   `json:"systemd_log,omitempty"` // as in TPMReport
}

// Encode is the JSON form.
func (r GCEReport) Encode() ([]byte, error) { return json.Marshal(r) }

// DecodeGCEReport reads the JSON form strictly. Lengths are checked here, what they hold is not.
func DecodeGCEReport(b []byte) (GCEReport, error) {
	var r GCEReport
	if err := decodeStrict(b, &r); err != nil {
		return GCEReport{}, fmt.Errorf("GCE report: %w", err)
	}
	fields := []length{
		{"hardware_report", len(r.HardwareReport), 1, 16 << 10},
		{"quote", len(r.Quote), 1, maxQuote},
		{"signature", len(r.Signature), 1, maxQuoteSignature},
		{"ak_certificates", len(r.AKCertificates), 1, 4},
		{"cmdline", len(r.Cmdline), 0, maxCmdline},
		{"systemd_log", len(r.SystemdLog), 0, MaxSystemdLog},
	}
	for i, c := range r.AKCertificates {
		fields = append(fields, length{fmt.Sprintf("ak_certificates[%d]", i), len(c), 1, 8 << 10})
	}
	if err := checkLengths(r.PCRs, fields...); err != nil {
		return GCEReport{}, fmt.Errorf("GCE report: %w", err)
	}
	return r, nil
}
