// Package attest holds what guest and broker must agree on: evidence, the
// binding of evidence to a key and a request, and the claims that appraisal
// yields (terms of RFC 9334). It verifies nothing itself, and imports only the
// standard library so that the guest stays small.
package attest

import (
	"context"
	"time"
)

// Type names a kind of evidence, as in DESIGN §4 ("sev-snp", "tdx", …).
type Type string

// The evidence types that this build knows.
const (
	TypeSNP Type = "sev-snp"
	TypeTDX Type = "tdx"
	TypeTPM Type = "tpm"
	TypeSGX Type = "sgx"
	// TypeAzure is a confidential VM of Azure: SNP or TDX under a paravisor that keeps a vTPM.
	TypeAzure Type = "azure-vtpm"
	// TypeGCE is a confidential VM of Google Compute Engine: an SNP or TDX report beside a quote of its vTPM.
	TypeGCE Type = "gce-vtpm"
	// TypeNitro is an attestation document of AWS: of a Nitro enclave, or of NitroTPM.
	TypeNitro Type = "nitro"
	// TypeKeystone is a report of a Keystone enclave (RISC-V).
	TypeKeystone Type = "keystone"
	// TypeResult is what another verifier says of a guest: a token of an issuer that the operator configured.
	TypeResult Type = "attestation-result"
	// TypePSA is a PSA attestation token (TrustZone).
	TypePSA Type = "psa"
	// TypeCCA is a token of an Arm CCA realm and its platform.
	TypeCCA Type = "cca"
	// TypeNVIDIA is a report of one confidential GPU or NVSwitch of NVIDIA.
	TypeNVIDIA Type = "nvidia-gpu"
)

// Limits on what a guest may send. They are checked before anything is parsed.
const (
	MaxReportSize       = 64 << 10
	MaxEndorsementsSize = 64 << 10
	MaxEventLogSize     = 512 << 10
	// MaxDevices is how many pieces of evidence come beside the first: eight GPUs, their switches and a TPM.
	MaxDevices = 15
)

// Evidence is one signed statement by hardware, as received: nothing in it is trusted.
type Evidence struct {
	Type Type
	// Report is the signed part in the vendor's own encoding: an SNP
	// ATTESTATION_REPORT (1184 bytes), a TDX quote; for a TPM, a TPMReport; for Azure and GCE, an AzureReport or GCEReport.
	Report []byte
	// Endorsements is what the platform handed over beside the report, or
	// empty: for SNP the GUID certificate table (configfs-tsm "auxblob"), for a
	// TPM the certificate of the attestation key and its issuers (PEM), for
	// NVIDIA the device's certificates and OCSP answers (PEM).
	Endorsements []byte
	// EventLog is the log whose replay explains the measurement registers, or
	// empty: for TDX the CCEL data, for a TPM the TCG log.
	EventLog []byte
}

// Verifier appraises one type of evidence. Verify is a pure function of its
// arguments apart from memoised intermediate results; it is safe for
// concurrent use and never panics, whatever the bytes.
//
// On success every claim has been verified up to the vendor's root. On failure
// the error is an *Error; the claims then hold only Type and Checks, for display.
type Verifier interface {
	Type() Type
	Verify(ctx context.Context, ev Evidence, b Binding, c Collateral, now time.Time) (Claims, error)
}

// TCB statuses, normalised. The vendor's own word stands in the vendor section.
const (
	TCBUpToDate               = "UpToDate"
	TCBSWHardeningNeeded      = "SWHardeningNeeded"
	TCBConfigurationNeeded    = "ConfigurationNeeded"
	TCBConfigAndSWHardening   = "ConfigurationAndSWHardeningNeeded"
	TCBOutOfDate              = "OutOfDate"
	TCBOutOfDateConfiguration = "OutOfDateConfigurationNeeded"
	TCBRevoked                = "Revoked"
	TCBUnknown                = "Unknown"  // the vendor publishes no status (SNP): compare the version with a reference value
	TCBUnstated               = "Unstated" // there is one, and the evidence does not say which
)

// TCBStatuses are all of them.
var TCBStatuses = []string{
	TCBUpToDate, TCBSWHardeningNeeded, TCBConfigurationNeeded, TCBConfigAndSWHardening, TCBOutOfDate, TCBOutOfDateConfiguration, TCBRevoked, TCBUnknown, TCBUnstated,
}

// TCB is the state of the platform's trusted computing base.
type TCB struct {
	Status     string     `json:"status"`
	Advisories []string   `json:"advisories"`
	Date       *time.Time `json:"date,omitempty"`
}

// Claims is the normalised document that a policy sees as input.attestation.
// Digests are lower-case hex. Integers that can pass 2^53 are decimal strings.
type Claims struct {
	Type          Type   `json:"type"`
	HardwareModel string `json:"hardware_model"` // for example "Milan", "Genoa", "TDX"
	// Bound says that report_data was compared with the transcript of this
	// very request. Claims of unbound evidence (appraised from a file) never release anything.
	Bound      bool `json:"bound"`
	Debuggable bool `json:"debuggable"`
	// Migratable: an agent that the host chose may take the guest's memory to another machine, or has been let to: SNP
	// MIGRATE_MA, TDX MIGRATABLE. Such an agent can read all of it.
	Migratable    bool `json:"migratable"`
	BoundToCPUTEE bool `json:"bound_to_cpu_tee"`
	// Simulated is true if the chain ends at a test root.
	Simulated bool `json:"simulated"`
	// Unstated names those of the claims "debuggable", "migratable" and "tcb.status" about which the evidence
	// (another verifier's word) says nothing. They have their worst value, and the baseline denies them.
	Unstated []string `json:"unstated,omitempty"`
	// ChipID identifies the hardware: CHIP_ID for SNP (the VCEK's HWID where the host masks it), PIID or PPID for TDX and SGX,
	// the SHA-256 of the endorsement key (SubjectPublicKeyInfo) for a TPM, the device's public key for Keystone, the instance id for PSA
	// and CCA, the PDI for NVIDIA; empty for a VLEK and for Nitro.
	ChipID string `json:"chip_id"`
	// Identities are further names of the machine in this evidence: the PPID beside the PIID, the digests of a TPM's attestation key and
	// of another endorsement key; for a VLEK the CHIP_ID that the firmware wrote, which no key of the chip confirms. They are
	// for revocation and denials: ChipID alone is for a policy to compare.
	Identities []string `json:"identities,omitempty"`
	TCB        TCB      `json:"tcb"`
	// Measurements by the vendor's name in lower case: "measurement" for SNP,
	// "mrtd", "rtmr0"… for TDX, "pcr0"… and what the event log shows for a TPM, "mrenclave" and "mrsigner" for SGX,
	// the types of software components for PSA, and after "platform_" for CCA, beside "rim", "rem0"….
	Measurements map[string]string `json:"measurements"`
	// Components are digests of programs, files and other things that an event log proves to have been measured, in order and each once,
	// without what they are: a log's labels are not measured. Each can be revoked as a measurement.
	Components []string `json:"components,omitempty"`
	// Omits names what evidence of this type can have, and the guest left out ("event_log", "pcr2"). While any measurement is
	// revoked that might stand there, such a guest gets nothing.
	Omits []string `json:"omits,omitempty"`
	// HostData is SNP HOST_DATA, TDX MRCONFIGID, SGX CONFIGID or the personalization value of a CCA realm.
	HostData   string          `json:"host_data"`
	ReportData string          `json:"report_data"`
	Collateral CollateralState `json:"collateral"`

	// SNP and the following hold the claims under the vendor's names; nil where absent.
	SNP any `json:"sev_snp,omitempty"`
	TDX any `json:"tdx,omitempty"`
	TPM any `json:"tpm,omitempty"`
	SGX any `json:"sgx,omitempty"`
	// Azure and GCE stand beside TPM and one of SNP and TDX.
	Azure    any `json:"azure_vtpm,omitempty"`
	GCE      any `json:"gce_vtpm,omitempty"`
	Nitro    any `json:"nitro,omitempty"`
	Keystone any `json:"keystone,omitempty"`
	// Result is what another verifier said, and who it is.
	Result any `json:"attestation_result,omitempty"`

	// Devices are the claims of further devices whose evidence came in the same request, in its order.
	Devices []Claims `json:"devices,omitempty"`
	// VouchedBy is, for a device, the type of the first evidence: what that measured handed in this very
	// evidence (its digest is in the transcript that the first evidence signs). It does not say that the
	// device is in the same machine, which no hardware of today does; that depends on what was measured.
	VouchedBy Type `json:"vouched_by,omitempty"`
	PSA       any  `json:"psa,omitempty"`
	CCA       any  `json:"cca,omitempty"`
	NVIDIA    any  `json:"nvidia_gpu,omitempty"`

	// Checks lists what was checked, in order. Not part of the policy input.
	Checks []Check `json:"-"`
}

// Check is one step of an appraisal.
type Check struct {
	Name    string  `json:"name"` // stable, for example "snp.chip_id"
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
}

// Outcome of a check.
type Outcome string

// Outcomes. Skipped is for what does not apply, and says why in Detail.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)
