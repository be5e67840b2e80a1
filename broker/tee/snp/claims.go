package snp

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/claviger/claviger/broker/attest"
)

// Claims are the fields of a verified report under AMD's names. Bytes are
// lower-case hex; 64-bit integers are decimal strings.
type Claims struct {
	Version         uint32       `json:"version"`
	GuestSVN        uint32       `json:"guest_svn"`
	Policy          Policy       `json:"policy"`
	FamilyID        string       `json:"family_id"`
	ImageID         string       `json:"image_id"`
	VMPL            uint32       `json:"vmpl"` // 0 to 3, or 0xffffffff if the host asked for the report
	HostRequested   bool         `json:"host_requested"`
	SignatureAlgo   uint32       `json:"signature_algo"` // always 1, ECDSA P-384 with SHA-384
	PlatformInfo    PlatformInfo `json:"platform_info"`
	AuthorKeyEn     bool         `json:"author_key_en"`
	MaskChipKey     bool         `json:"mask_chip_key"`
	SigningKey      string       `json:"signing_key"` // "VCEK" or "VLEK"
	ReportData      string       `json:"report_data"`
	Measurement     string       `json:"measurement"`
	HostData        string       `json:"host_data"`
	IDKeyDigest     string       `json:"id_key_digest"`
	AuthorKeyDigest string       `json:"author_key_digest"`
	ReportID        string       `json:"report_id"`
	ReportIDMA      string       `json:"report_id_ma"`
	// The four firmware levels: reported <= committed <= current in every
	// component. Launch is the current one when the guest started; a
	// roll-back of uncommitted firmware may leave it above current.
	ReportedTCB  TCB `json:"reported_tcb"`
	CommittedTCB TCB `json:"committed_tcb"`
	CurrentTCB   TCB `json:"current_tcb"`
	LaunchTCB    TCB `json:"launch_tcb"`
	// The processor's CPUID family, model and stepping are absent before version 3.
	CPUIDFamID *uint8 `json:"cpuid_fam_id,omitempty"`
	CPUIDModID *uint8 `json:"cpuid_mod_id,omitempty"`
	CPUIDStep  *uint8 `json:"cpuid_step,omitempty"`
	// ChipID is CHIP_ID: 64 bytes, on Turin its first 8. Empty if the host masks it. With a VLEK it is the firmware's word alone.
	ChipID       string `json:"chip_id"`
	ChipIDMasked bool   `json:"chip_id_masked"`
	// Versions of the firmware that runs, and of the oldest it can be rolled back to.
	CurrentBuild   uint8 `json:"current_build"`
	CurrentMinor   uint8 `json:"current_minor"`
	CurrentMajor   uint8 `json:"current_major"`
	CommittedBuild uint8 `json:"committed_build"`
	CommittedMinor uint8 `json:"committed_minor"`
	CommittedMajor uint8 `json:"committed_major"`
	// The mitigation vectors are absent before version 5.
	LaunchMitVector  string `json:"launch_mit_vector,omitempty"`
	CurrentMitVector string `json:"current_mit_vector,omitempty"`

	// From the certificate that signed.
	ProductLine string `json:"product_line"`     // "milan", "genoa", "turin"
	ProductName string `json:"product_name"`     // for example "Milan-B0"
	HWID        string `json:"hwid,omitempty"`   // of a VCEK; present even if CHIP_ID is masked
	CSPID       string `json:"csp_id,omitempty"` // of a VLEK: the provider that may use it
	LeafSerial  string `json:"leaf_serial"`      // decimal
	LeafExpires string `json:"leaf_expires"`     // RFC 3339, UTC
}

// Policy is POLICY: what the guest's owner allows (AMD publication 56860, §4.3).
type Policy struct {
	ABIMajor             uint8 `json:"abi_major"`
	ABIMinor             uint8 `json:"abi_minor"`
	SMT                  bool  `json:"smt"`
	MigrateMA            bool  `json:"migrate_ma"`
	Debug                bool  `json:"debug"`
	SingleSocket         bool  `json:"single_socket"`
	CXLAllow             bool  `json:"cxl_allow"`
	MemAES256XTS         bool  `json:"mem_aes_256_xts"`
	RAPLDis              bool  `json:"rapl_dis"`
	CiphertextHidingDRAM bool  `json:"ciphertext_hiding_dram"`
	PageSwapDisable      bool  `json:"page_swap_disable"`
	// UnknownBits is the value of the bits that have no field here; "0" if none is set.
	UnknownBits string `json:"unknown_bits"`
	Raw         string `json:"raw"`
}

// PlatformInfo is PLATFORM_INFO.
type PlatformInfo struct {
	SMTEn                  bool `json:"smt_en"`
	TSMEEn                 bool `json:"tsme_en"`
	ECCEn                  bool `json:"ecc_en"`
	RAPLDis                bool `json:"rapl_dis"`
	CiphertextHidingDRAMEn bool `json:"ciphertext_hiding_dram_en"`
	AliasCheckComplete     bool `json:"alias_check_complete"`
	TIOEn                  bool `json:"tio_en"`
	// UnknownBits is the value of the bits that have no field here; "0" if none is set.
	UnknownBits string `json:"unknown_bits"`
	Raw         string `json:"raw"`
}

// TCB is a TCB_VERSION, one number per component.
type TCB struct {
	Bootloader uint8  `json:"bootloader"`
	TEE        uint8  `json:"tee"`
	SNP        uint8  `json:"snp"`
	Microcode  uint8  `json:"microcode"`
	FMC        uint8  `json:"fmc"` // zero before Turin
	Raw        string `json:"raw"` // 16 hex digits of the little-endian 64-bit value, as the KDS counts
}

// Bits of POLICY.
const (
	policySMT = 16 + iota
	policyMustBeOne
	policyMigrateMA
	policyDebug
	policySingleSocket
	policyCXLAllow
	policyMemAES256XTS
	policyRAPLDis
	policyCiphertextHidingDRAM
	policyPageSwapDisable
	policyUnknown // the first bit without a meaning
)

func parsePolicy(p uint64) Policy {
	bit := func(n int) bool { return p>>n&1 != 0 }
	return Policy{
		ABIMinor:             uint8(p),
		ABIMajor:             uint8(p >> 8),
		SMT:                  bit(policySMT),
		MigrateMA:            bit(policyMigrateMA),
		Debug:                bit(policyDebug),
		SingleSocket:         bit(policySingleSocket),
		CXLAllow:             bit(policyCXLAllow),
		MemAES256XTS:         bit(policyMemAES256XTS),
		RAPLDis:              bit(policyRAPLDis),
		CiphertextHidingDRAM: bit(policyCiphertextHidingDRAM),
		PageSwapDisable:      bit(policyPageSwapDisable),
		UnknownBits:          decimal(p >> policyUnknown << policyUnknown),
		Raw:                  decimal(p),
	}
}

func parsePlatformInfo(p uint64) PlatformInfo {
	bit := func(n int) bool { return p>>n&1 != 0 }
	return PlatformInfo{
		SMTEn:                  bit(0),
		TSMEEn:                 bit(1),
		ECCEn:                  bit(2),
		RAPLDis:                bit(3),
		CiphertextHidingDRAMEn: bit(4),
		AliasCheckComplete:     bit(5),
		TIOEn:                  bit(7),
		UnknownBits:            decimal(p &^ 0b1011_1111),
		Raw:                    decimal(p),
	}
}

// parseTCB reads a TCB_VERSION; Turin has its own layout (AMD publication 57230).
func parseTCB(l line, b [8]byte) TCB {
	t := TCB{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7], Raw: tcbHex(b)}
	if l == turin {
		t.FMC, t.Bootloader, t.TEE, t.SNP = b[0], b[1], b[2], b[3]
	}
	return t
}

// tcbHex is the value as the key of collateral has it.
func tcbHex(b [8]byte) string {
	var be [8]byte
	binary.BigEndian.PutUint64(be[:], binary.LittleEndian.Uint64(b[:]))
	return hex.EncodeToString(be[:])
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

// chipIDHex is the part of CHIP_ID that identifies: 64 bytes, on Turin 8. Empty if masked.
func (r *report) chipIDHex(l line) string {
	if r.chipIDMasked {
		return ""
	}
	if l == turin {
		return hex.EncodeToString(r.chipID[:turinHWIDSize])
	}
	return hex.EncodeToString(r.chipID)
}

// claims of a report that has been verified.
func (r *report) claims(ch *chain, model string) attest.Claims {
	h := hex.EncodeToString
	p := parsePolicy(r.policy)
	c := &Claims{
		Version:         r.version,
		GuestSVN:        r.guestSVN,
		Policy:          p,
		FamilyID:        h(r.familyID),
		ImageID:         h(r.imageID),
		VMPL:            r.vmpl,
		HostRequested:   r.hostRequests,
		SignatureAlgo:   1,
		PlatformInfo:    parsePlatformInfo(r.platformInfo),
		AuthorKeyEn:     r.authorKeyEn,
		MaskChipKey:     r.maskChipKey,
		SigningKey:      strings.ToUpper(r.signingKey.String()),
		ReportData:      h(r.reportData),
		Measurement:     h(r.measurement),
		HostData:        h(r.hostData),
		IDKeyDigest:     h(r.idKeyDigest),
		AuthorKeyDigest: h(r.authorKeyDigest),
		ReportID:        h(r.reportID),
		ReportIDMA:      h(r.reportIDMA),
		ReportedTCB:     parseTCB(ch.line, r.reportedTCB),
		CommittedTCB:    parseTCB(ch.line, r.committedTCB),
		CurrentTCB:      parseTCB(ch.line, r.currentTCB),
		LaunchTCB:       parseTCB(ch.line, r.launchTCB),
		ChipID:          r.chipIDHex(ch.line),
		ChipIDMasked:    r.chipIDMasked,
		CurrentBuild:    r.raw[0x1e8],
		CurrentMinor:    r.raw[0x1e9],
		CurrentMajor:    r.raw[0x1ea],
		CommittedBuild:  r.raw[0x1ec],
		CommittedMinor:  r.raw[0x1ed],
		CommittedMajor:  r.raw[0x1ee],
		ProductLine:     string(ch.line),
		ProductName:     ch.leaf.kds.productName,
		HWID:            h(ch.leaf.kds.hwid),
		CSPID:           ch.leaf.kds.cspID,
		LeafSerial:      ch.leaf.cert.SerialNumber.String(),
		LeafExpires:     ch.leaf.cert.NotAfter.UTC().Format("2006-01-02T15:04:05Z"),
	}
	if r.version >= 3 {
		c.CPUIDFamID, c.CPUIDModID, c.CPUIDStep = new(r.family), new(r.model), new(r.stepping)
	}
	if r.version >= 5 {
		c.LaunchMitVector, c.CurrentMitVector = decimal(r.launchMit), decimal(r.currentMit)
	}
	// A host that masks CHIP_ID must not hide a chip from revocation: a VCEK names it too.
	chipID := c.ChipID
	if chipID == "" {
		chipID = c.HWID
	}
	var identities []string
	if r.signingKey == keyVLEK && chipID != "" { // a provider's, for all its chips
		chipID, identities = "", []string{chipID}
	}
	return attest.Claims{
		Type:          attest.TypeSNP,
		HardwareModel: model,
		Debuggable:    p.Debug,
		Migratable:    p.MigrateMA,
		BoundToCPUTEE: true,
		Simulated:     ch.root.simulated,
		ChipID:        chipID,
		Identities:    identities,
		TCB:           attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}},
		Measurements:  map[string]string{"measurement": c.Measurement},
		HostData:      c.HostData,
		ReportData:    c.ReportData,
		SNP:           c,
	}
}
