package attest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/strictjson"
)

// TPMReport is Evidence.Report of type "tpm": JSON, byte strings in standard
// base64. The structures inside are those of the TPM 2.0 Library, Part 2.
type TPMReport struct {
	Quote     []byte `json:"quote"`     // TPMS_ATTEST of TPM2_Quote; extraData is the SHA-256 binding digest
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
	AKPublic  []byte `json:"ak_public"` // TPMT_PUBLIC of the attestation key
	PCRs      []PCR  `json:"pcrs"`      // the quoted ones of the SHA-256 bank, ascending
	// Cmdline is what the guest says its kernel command line is; it becomes a
	// claim only if the event log holds its digest.
	Cmdline string `json:"cmdline,omitempty"`
	// SystemdLog are the records of systemd's log (/run/log/systemd/tpm2-measure.log) about PCR 9; it too is
	// believed only if the PCR bears it out.
	SystemdLog []byte `json:"systemd_log,omitempty"`
	// Ticket and Secret prove that the attestation key is in a TPM with a
	// certified endorsement key (KeyBroker.ActivateTPM). Empty where
	// Evidence.Endorsements holds a certificate of the attestation key.
	Ticket []byte `json:"ticket,omitempty"`
	Secret []byte `json:"secret,omitempty"`
}

// PCR is one platform configuration register.
type PCR struct {
	Index  int    `json:"index"`
	Digest []byte `json:"digest"` // 32 bytes
}

// Limits of single fields, in bytes. maxCmdline is Linux's COMMAND_LINE_SIZE with room to spare.
const (
	maxQuote          = 4 << 10
	maxQuoteSignature = 2 << 10
	maxCmdline        = 8 << 10
)

// MaxSystemdLog bounds TPMReport.SystemdLog. A guest sends no longer one.
const MaxSystemdLog = 16 << 10

// Encode is the JSON form.
func (r TPMReport) Encode() ([]byte, error) { return json.Marshal(r) }

// DecodeTPMReport reads the JSON form strictly. Lengths are checked here, what they hold is not.
func DecodeTPMReport(b []byte) (TPMReport, error) {
	var r TPMReport
	if err := decodeStrict(b, &r); err != nil {
		return TPMReport{}, fmt.Errorf("TPM report: %w", err)
	}
	err := checkLengths(r.PCRs,
		length{"quote", len(r.Quote), 1, maxQuote},
		length{"signature", len(r.Signature), 1, maxQuoteSignature},
		length{"ak_public", len(r.AKPublic), 1, 2 << 10},
		length{"cmdline", len(r.Cmdline), 0, maxCmdline},
		length{"systemd_log", len(r.SystemdLog), 0, MaxSystemdLog},
		length{"ticket", len(r.Ticket), 0, 4 << 10},
		length{"secret", len(r.Secret), 0, 64},
	)
	if err != nil {
		return TPMReport{}, fmt.Errorf("TPM report: %w", err)
	}
	return r, nil
}

// decodeStrict reads one JSON value into v, and nothing but it.
func decodeStrict(b []byte, v any) error {
	return strictjson.UnmarshalKnown(b, v)
}

// length of a field, and what it may be.
type length struct {
	name     string
	n        int
	min, max int
}

func checkLengths(pcrs []PCR, fields ...length) error {
	for _, f := range append(fields, length{"pcrs", len(pcrs), 1, 24}) {
		if f.n < f.min || f.n > f.max {
			return fmt.Errorf("%s: length %d, want %d to %d", f.name, f.n, f.min, f.max)
		}
	}
	last := -1
	for _, p := range pcrs {
		if p.Index <= last || p.Index > 23 || len(p.Digest) != 32 {
			return fmt.Errorf("pcrs: index %d with %d bytes; want ascending indices to 23 with 32 bytes", p.Index, len(p.Digest))
		}
		last = p.Index
	}
	return nil
}

// TPMActivation is what a guest sends to have its attestation key believed.
type TPMActivation struct {
	EKCertificates [][]byte // DER; the endorsement key's own first, then issuers if the TPM holds them
	EKPublic       []byte   // TPMT_PUBLIC
	AKPublic       []byte   // TPMT_PUBLIC
}

// TPMChallenge is the answer: only a TPM that holds both keys gets the secret out of it (TPM2_ActivateCredential).
type TPMChallenge struct {
	CredentialBlob  []byte // contents of TPM2B_ID_OBJECT
	EncryptedSecret []byte // contents of TPM2B_ENCRYPTED_SECRET
	// Ticket goes into evidence beside the secret. It states, authenticated,
	// which two keys the secret joins; without the secret it is worth nothing.
	Ticket  []byte
	Expires time.Time
}
