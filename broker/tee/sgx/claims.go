package sgx

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/claviger/claviger/broker/dcap"
)

// Claims are the claims of an SGX quote under the vendor's names ("Intel SGX
// ECDSA Quote Library Reference", Intel SDM volume 3D, "REPORT"). Byte strings
// are lower-case hex, in the order of the quote.
type Claims struct {
	QuoteVersion uint16 `json:"quote_version"`
	QEVendorID   string `json:"qe_vendor_id"`
	UserData     string `json:"user_data"`

	CPUSVN       string     `json:"cpusvn"`     // as the enclave's report has it
	MISCSELECT   string     `json:"miscselect"` // 8 hex digits of the number
	ATTRIBUTES   Attributes `json:"attributes"`
	MRENCLAVE    string     `json:"mrenclave"`
	MRSIGNER     string     `json:"mrsigner"`
	ISVPRODID    uint16     `json:"isvprodid"`
	ISVSVN       uint16     `json:"isvsvn"`
	ISVEXTPRODID string     `json:"isvextprodid"` // this to CONFIGSVN are zero without ATTRIBUTES.KSS
	ISVFAMILYID  string     `json:"isvfamilyid"`
	CONFIGID     string     `json:"configid"`
	CONFIGSVN    uint16     `json:"configsvn"`
	REPORTDATA   string     `json:"reportdata"`

	// From the PCK certificate.
	FMSPC   string            `json:"fmspc"`
	PCEID   string            `json:"pceid"`
	PCESVN  uint16            `json:"pcesvn"`
	PPID    string            `json:"ppid"`
	PCKCA   string            `json:"pck_ca"`         // "platform" or "processor"
	SGXType int               `json:"sgx_type"`       // 0 standard, 1 scalable, 2 scalable with integrity
	PIID    string            `json:"piid,omitempty"` // platform instance id; this and the flags from the Platform CA only
	Flags   *dcap.PCKPlatform `json:"configuration,omitempty"`

	// The state of each part; absent without collateral. Their union is the claim tcb.
	Platform                *dcap.Level `json:"platform_tcb,omitempty"`
	QE                      *dcap.Level `json:"qe_tcb,omitempty"`
	TCBEvaluationDataNumber uint32      `json:"tcb_evaluation_data_number"`
}

// Attributes is ATTRIBUTES: the flags, whole and by name, and XFRM.
type Attributes struct {
	Raw          string `json:"raw"` // 16 bytes: flags, XFRM, each little-endian
	Init         bool   `json:"init"`
	Debug        bool   `json:"debug"`
	Mode64Bit    bool   `json:"mode64bit"`
	ProvisionKey bool   `json:"provisionkey"` // may derive keys that name the platform
	EINITToken   bool   `json:"einittoken_key"`
	CET          bool   `json:"cet"`
	KSS          bool   `json:"kss"` // key separation and sharing: CONFIGID and the like mean something
	AEXNotify    bool   `json:"aex_notify"`
	// Reserved are the flags set that have no name here, as 16 hex digits of
	// the number; "" if none.
	Reserved string `json:"reserved"`
}

func newClaims(q *dcap.Quote, res dcap.Result) *Claims {
	e, pck := q.Enclave, res.PCK
	c := &Claims{
		QuoteVersion: q.Header.Version,
		QEVendorID:   hex.EncodeToString(q.Header.QEVendorID[:]), UserData: hex.EncodeToString(q.Header.UserData[:]),

		CPUSVN:     hex.EncodeToString(e.CPUSVN[:]),
		MISCSELECT: fmt.Sprintf("%08x", binary.LittleEndian.Uint32(e.MISCSELECT[:])),
		ATTRIBUTES: newAttributes(e.ATTRIBUTES),
		MRENCLAVE:  hex.EncodeToString(e.MRENCLAVE[:]), MRSIGNER: hex.EncodeToString(e.MRSIGNER[:]),
		ISVPRODID: e.ISVPRODID, ISVSVN: e.ISVSVN,
		ISVEXTPRODID: hex.EncodeToString(e.ISVEXTPRODID[:]), ISVFAMILYID: hex.EncodeToString(e.ISVFAMILYID[:]),
		CONFIGID: hex.EncodeToString(e.CONFIGID[:]), CONFIGSVN: e.CONFIGSVN,
		REPORTDATA: hex.EncodeToString(e.REPORTDATA[:]),

		FMSPC: hex.EncodeToString(pck.FMSPC[:]), PCEID: hex.EncodeToString(pck.PCEID[:]), PCESVN: pck.PCESVN,
		PPID: hex.EncodeToString(pck.PPID[:]), PCKCA: pck.CA, SGXType: pck.SGXType, Flags: pck.Platform,

		Platform: res.Platform, QE: res.QE, TCBEvaluationDataNumber: res.TCBEvaluationDataNumber,
	}
	if p := pck.Platform; p != nil {
		c.PIID = hex.EncodeToString(p.InstanceID[:])
	}
	return c
}

func newAttributes(raw [16]byte) Attributes {
	a := Attributes{Raw: hex.EncodeToString(raw[:])}
	n := binary.LittleEndian.Uint64(raw[:8])
	for _, f := range []struct {
		bit  int
		flag *bool
	}{
		{0, &a.Init}, {1, &a.Debug}, {2, &a.Mode64Bit}, {4, &a.ProvisionKey}, {5, &a.EINITToken}, {6, &a.CET}, {7, &a.KSS}, {10, &a.AEXNotify},
	} {
		*f.flag = n>>f.bit&1 == 1
		n &^= 1 << f.bit
	}
	if n != 0 {
		a.Reserved = fmt.Sprintf("%016x", n)
	}
	return a
}
