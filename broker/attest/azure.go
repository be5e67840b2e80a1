package attest

import (
	"encoding/json"
	"fmt"
)

// AzureReport is Evidence.Report of type "azure-vtpm": JSON, byte strings in
// standard base64. Evidence.Endorsements are those of the hardware report inside
// (for SNP the GUID certificate table; or empty), Evidence.EventLog is the TCG log.
type AzureReport struct {
	// HCLReport is what the paravisor left in the vTPM's NV index 0x01400001
	// ("HCLA", at most 4 KiB): for SNP it holds the hardware report, and for
	// both types the runtime data that the hardware report covers.
	HCLReport  []byte `json:"hcl_report"`
	TDQuote    []byte `json:"td_quote,omitempty"`    // for TDX: the quote made of the HCL report's TDREPORT
	Quote      []byte `json:"quote"`                 // TPMS_ATTEST of TPM2_Quote by key 0x81000003; extraData is the SHA-256 binding digest
	Signature  []byte `json:"signature"`             // TPMT_SIGNATURE
	PCRs       []PCR  `json:"pcrs"`                  // as in TPMReport
	Cmdline    string `json:"cmdline,omitempty"`     // as in TPMReport
	SystemdLog []byte `json:"systemd_log,omitempty"` // as in TPMReport
}

// Encode is the JSON form.
func (r AzureReport) Encode() ([]byte, error) { return json.Marshal(r) }

// DecodeAzureReport reads the JSON form strictly. Lengths are checked here, what they hold is not.
func DecodeAzureReport(b []byte) (AzureReport, error) {
	var r AzureReport
	if err := decodeStrict(b, &r); err != nil {
		return AzureReport{}, fmt.Errorf("azure report: %w", err)
	}
	err := checkLengths(r.PCRs,
		length{"hcl_report", len(r.HCLReport), 1, 16 << 10},
		length{"td_quote", len(r.TDQuote), 0, 16 << 10},
		length{"quote", len(r.Quote), 1, maxQuote},
		length{"signature", len(r.Signature), 1, maxQuoteSignature},
		length{"cmdline", len(r.Cmdline), 0, maxCmdline},
		length{"systemd_log", len(r.SystemdLog), 0, MaxSystemdLog},
	)
	if err != nil {
		return AzureReport{}, fmt.Errorf("azure report: %w", err)
	}
	return r, nil
}
