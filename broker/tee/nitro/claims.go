package nitro

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// Claims are what the document says, under AWS's names. Byte strings are lower-case hex, empty where absent.
type Claims struct {
	Kind     Kind   `json:"kind"` // "enclave" or "nitrotpm"
	ModuleID string `json:"module_id"`
	// InstanceID is the EC2 instance in module_id ("i-0a22e5c5f24d22174"), empty if none
	// is there. It names a virtual machine, which can be stopped and started on other hardware.
	InstanceID  string    `json:"instance_id"`
	Timestamp   time.Time `json:"timestamp"`
	TimestampMS string    `json:"timestamp_ms"` // the same, in milliseconds since 1970, decimal
	Digest      string    `json:"digest"`       // "SHA384"
	// PCRs by number.
	PCRs      map[string]string `json:"pcrs"`
	PublicKey string            `json:"public_key"`
	UserData  string            `json:"user_data"`
	Nonce     string            `json:"nonce"`
	// CertificateSubject is that of the key that signed, for display.
	CertificateSubject string `json:"certificate_subject"`
}

func (d *document) claims(bound, simulated bool, subject string) attest.Claims {
	c := &Claims{
		Kind: d.kind, ModuleID: d.ModuleID, InstanceID: instanceID(d.ModuleID),
		Timestamp: d.time(), TimestampMS: strconv.FormatUint(d.Timestamp, 10), Digest: d.Digest,
		PCRs:      map[string]string{},
		PublicKey: hex.EncodeToString(d.PublicKey), UserData: hex.EncodeToString(d.UserData), Nonce: hex.EncodeToString(d.Nonce),
		CertificateSubject: subject,
	}
	measurements, prefix := map[string]string{}, ""
	if d.kind == TPM {
		prefix = "nitrotpm_" // an instance's PCR 4 is its boot loader, an enclave's the instance's id
	}
	for i, pcr := range d.registers {
		c.PCRs[strconv.FormatUint(i, 10)] = hex.EncodeToString(pcr)
		measurements[prefix+pcrName(i)] = hex.EncodeToString(pcr)
	}
	model := "Nitro Enclave"
	if d.kind == TPM {
		model = "NitroTPM"
	}
	return attest.Claims{
		Type: attest.TypeNitro, HardwareModel: model, Bound: bound, Debuggable: d.debug(), Simulated: simulated,
		// BoundToCPUTEE stays false: the Nitro hypervisor isolates, and signs. No CPU vendor does.
		// ChipID stays empty: no document names hardware.
		TCB:          attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}},
		Measurements: measurements,
		ReportData:   hex.EncodeToString(d.UserData),
		Collateral:   attest.CollateralState{State: attest.CollateralFresh},
		Nitro:        c,
	}
}

// instanceID is the part of "i-0a22e5c5f24d22174-enc0191cceb4289903f" before the second hyphen.
func instanceID(module string) string {
	rest, ok := strings.CutPrefix(module, "i-")
	if !ok {
		return ""
	}
	id, _, _ := strings.Cut(rest, "-")
	return "i-" + id
}
