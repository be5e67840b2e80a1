package azure

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/broker/tpmquote"
)

// The HCL report, little-endian: a header of 32 bytes ("HCLA", version, size,
// request type, status, 12 reserved), 1184 bytes of hardware report, the header
// of the runtime data (five uint32: size of what follows the hardware report,
// version, report type, hash type, size of the runtime data), and the runtime data.
const (
	hclHeaderSize     = 32
	hwReportSize      = 1184
	runtimeHeaderSize = 20
	vmplOffset        = 0x30 // in an SNP report (AMD publication 56860)
)

const (
	reportSNP  = 2
	reportTDX  = 4
	hashSHA256 = 1
)

// hclReport is a parsed HCL report. Nothing in it is trusted: its own header is
// covered by nothing, and is not claimed.
type hclReport struct {
	hardware    attest.Type
	report      []byte // SNP: ATTESTATION_REPORT; TDX: TDREPORT and padding
	runtimeData []byte // JSON
}

func parseHCL(t *dcap.Trail, b []byte) (hclReport, error) {
	if len(b) < hclHeaderSize+hwReportSize+runtimeHeaderSize || !bytes.HasPrefix(b, []byte("HCLA")) {
		return hclReport{}, t.Fail("format", attest.ReasonMalformed, "HCL report: %d bytes that do not start with HCLA, or are cut short", len(b))
	}
	rest := b[hclHeaderSize:]
	h := hclReport{report: rest[:hwReportSize]}
	rest = rest[hwReportSize:]
	field := func(i int) uint32 { return binary.LittleEndian.Uint32(rest[4*i:]) }
	switch typ := field(2); typ {
	case reportSNP:
		h.hardware = attest.TypeSNP
	case reportTDX:
		h.hardware = attest.TypeTDX
	default: // 1 is a VM without a CPU TEE (VBS)
		return hclReport{}, t.Fail("format", attest.ReasonUnsupported, "HCL report: report type %d, want 2 (SNP) or 4 (TDX)", typ)
	}
	if field(3) != hashSHA256 {
		return hclReport{}, t.Fail("format", attest.ReasonUnsupported, "HCL report: hash type %d of the runtime data, want 1 (SHA-256)", field(3))
	}
	data := rest[runtimeHeaderSize:]
	if n := field(4); uint64(n) > uint64(len(data)) {
		return hclReport{}, t.Fail("format", attest.ReasonMalformed, "HCL report: runtime data of %d bytes in a rest of %d", n, len(data))
	}
	h.runtimeData = data[:field(4)]
	return h, nil
}

// vmpl is the VMPL field of an SNP report.
func (h hclReport) vmpl() uint32 { return binary.LittleEndian.Uint32(h.report[vmplOffset:]) }

// runtimeData is what the paravisor says.
type runtimeData struct {
	ak       tpmquote.Key
	config   vmConfiguration
	userData [64]byte
}

// vmConfiguration are the VM's settings as the host gave them to the paravisor.
type vmConfiguration struct {
	ConsoleEnabled bool   `json:"console-enabled"`
	SecureBoot     bool   `json:"secure-boot"`
	TPMEnabled     bool   `json:"tpm-enabled"`
	TPMPersisted   bool   `json:"tpm-persisted"`
	VMUniqueID     string `json:"vmUniqueId"`
}

func parseRuntimeData(t *dcap.Trail, b []byte) (runtimeData, error) {
	var doc struct {
		Keys []struct {
			KID string `json:"kid"`
			KTY string `json:"kty"`
			N   string `json:"n"`
			E   string `json:"e"`
		} `json:"keys"`
		Config   vmConfiguration `json:"vm-configuration"`
		UserData string          `json:"user-data"`
	}
	if err := strictjson.Unmarshal(b, &doc); err != nil {
		return runtimeData{}, t.Fail("ak", attest.ReasonMalformed, "runtime data: %w", err)
	}
	d := runtimeData{config: doc.Config}
	// Absent in reports of early paravisors.
	if raw, err := hex.DecodeString(doc.UserData); err != nil || len(raw) != 0 && len(raw) != len(d.userData) {
		return runtimeData{}, t.Fail("ak", attest.ReasonMalformed, "runtime data: user-data is not %d bytes in hex", len(d.userData))
	} else {
		copy(d.userData[:], raw)
	}
	if len(d.config.VMUniqueID) > 64 {
		return runtimeData{}, t.Fail("ak", attest.ReasonMalformed, "runtime data: vmUniqueId of %d bytes", len(d.config.VMUniqueID))
	}
	found := false
	for _, k := range doc.Keys {
		if k.KID != "HCLAkPub" {
			continue // HCLEkPub: an encryption key
		}
		if found || k.KTY != "RSA" {
			return runtimeData{}, t.Fail("ak", attest.ReasonUnsupported, "runtime data: HCLAkPub is there twice, or is a key of type %q", k.KTY)
		}
		found = true
		n, err := base64.RawURLEncoding.Strict().DecodeString(k.N)
		e, err2 := base64.RawURLEncoding.Strict().DecodeString(k.E)
		if err := errors.Join(err, err2); err != nil || len(n) > 512 || len(e) > 4 {
			return runtimeData{}, t.Fail("ak", attest.ReasonMalformed, "runtime data: HCLAkPub: n or e is not a number in base64url: %v", err)
		}
		d.ak, err = tpmquote.NewKey(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())})
		if err != nil {
			return runtimeData{}, t.Fail("ak", attest.ReasonUnsupported, "runtime data: HCLAkPub: %w", err)
		}
	}
	if !found {
		return runtimeData{}, t.Fail("ak", attest.ReasonMalformed, "runtime data: no key HCLAkPub")
	}
	return d, nil
}

// Claims are what the paravisor says, which the hardware report covers; what it
// says of the VM it has from the host.
type Claims struct {
	Hardware attest.Type `json:"hardware"` // "sev-snp" or "tdx": where the claims of the report inside stand
	// AK is the SHA-256 of HCLAkPub (SubjectPublicKeyInfo). It is made anew with the vTPM.
	AK       string `json:"ak_sha256"`
	UserData string `json:"user_data"` // 64 bytes that the guest wrote into NV index 0x01400002
	// UserDataBound says that they are the 64-byte digest of this request: then the
	// hardware report itself is as fresh as the quote.
	UserDataBound   bool            `json:"user_data_bound"`
	VMConfiguration VMConfiguration `json:"vm_configuration"`
}

// VMConfiguration are the VM's settings as the host gave them to the paravisor.
type VMConfiguration struct {
	ConsoleEnabled bool   `json:"console_enabled"`
	SecureBoot     bool   `json:"secure_boot"`
	TPMEnabled     bool   `json:"tpm_enabled"`
	TPMPersisted   bool   `json:"tpm_persisted"`
	VMUniqueID     string `json:"vm_unique_id"` // lower case
}

func newClaims(h hclReport, d runtimeData, ak string, b attest.Binding) *Claims {
	bound, err := b.Check(d.userData[:])
	vm := VMConfiguration(d.config)
	vm.VMUniqueID = strings.ToLower(vm.VMUniqueID)
	return &Claims{
		Hardware: h.hardware, AK: ak, UserData: hex.EncodeToString(d.userData[:]), UserDataBound: bound && err == nil,
		VMConfiguration: vm,
	}
}
