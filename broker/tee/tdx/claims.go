package tdx

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/eventlog"
)

// States of Claims.EventLog.
const (
	EventLogAbsent   = "absent"   // no log came with the quote
	EventLogVerified = "verified" // the log replays to all four RTMRs
	EventLogPartial  = "partial"  // it does not touch a register that is not zero
)

// Limits on what of an event log becomes claims.
const (
	maxEvents     = 512
	maxEventText  = 4 << 10
	maxEventValue = 64 // bytes of a UEFI variable
)

// Claims are the claims of a TDX quote under the vendor's names ("Intel TDX
// DCAP Quoting Library API", "Intel TDX Module ABI Specification"). Byte
// strings are lower-case hex, in the order of the quote.
type Claims struct {
	QuoteVersion uint16 `json:"quote_version"`
	TDReport     string `json:"td_report"` // "1.0" or "1.5"
	QEVendorID   string `json:"qe_vendor_id"`
	UserData     string `json:"user_data"`

	TEETCBSVN      string       `json:"tee_tcb_svn"`
	MRSEAM         string       `json:"mrseam"`
	MRSIGNERSEAM   string       `json:"mrsignerseam"`
	SEAMATTRIBUTES string       `json:"seamattributes"`
	TDATTRIBUTES   TDAttributes `json:"tdattributes"`
	XFAM           string       `json:"xfam"`
	MRTD           string       `json:"mrtd"`
	MRCONFIGID     string       `json:"mrconfigid"`
	MROWNER        string       `json:"mrowner"`
	MROWNERCONFIG  string       `json:"mrownerconfig"`
	RTMR0          string       `json:"rtmr0"`
	RTMR1          string       `json:"rtmr1"`
	RTMR2          string       `json:"rtmr2"`
	RTMR3          string       `json:"rtmr3"`
	REPORTDATA     string       `json:"reportdata"`
	// TDX 1.5 only.
	TEETCBSVN2  string `json:"tee_tcb_svn2,omitempty"`
	MRSERVICETD string `json:"mrservicetd,omitempty"`

	// From the PCK certificate.
	FMSPC   string            `json:"fmspc"`
	PCEID   string            `json:"pceid"`
	PCESVN  uint16            `json:"pcesvn"`
	CPUSVN  string            `json:"cpusvn"`
	PPID    string            `json:"ppid"`
	PCKCA   string            `json:"pck_ca"`         // "platform" or "processor"
	SGXType int               `json:"sgx_type"`       // 0 standard, 1 scalable, 2 scalable with integrity
	PIID    string            `json:"piid,omitempty"` // platform instance id; this and the flags from the Platform CA only
	Flags   *dcap.PCKPlatform `json:"configuration,omitempty"`

	// The state of each part; absent without collateral, and tdx_module also
	// for modules of version 0. Their union is the claim tcb.
	Platform                *dcap.Level `json:"platform_tcb,omitempty"`
	Module                  *dcap.Level `json:"tdx_module_tcb,omitempty"`
	QE                      *dcap.Level `json:"qe_tcb,omitempty"`
	TCBEvaluationDataNumber uint32      `json:"tcb_evaluation_data_number"`

	EventLog         string   `json:"event_log"`
	RTMRsUnexplained []string `json:"rtmrs_unexplained,omitempty"`
	Events           []Event  `json:"events,omitempty"`
	EventsOmitted    int      `json:"events_omitted,omitempty"` // beyond the limit of 512
}

// TDAttributes is TDATTRIBUTES, whole and by its flags.
type TDAttributes struct {
	Raw string `json:"raw"` // 8 bytes, little-endian
	// TUD, "TD under debug": any of these makes the TD debuggable.
	Debug       bool `json:"debug"`
	HGSPlusProf bool `json:"hgs_plus_prof"`
	PerfProf    bool `json:"perf_prof"`
	PMTProf     bool `json:"pmt_prof"`
	// SEC
	ICSSD         bool `json:"icssd"`
	LASS          bool `json:"lass"`
	SEPTVEDisable bool `json:"sept_ve_disable"`
	Migratable    bool `json:"migratable"`
	PKS           bool `json:"pks"`
	KL            bool `json:"kl"`
	// OTHER
	TPA     bool `json:"tpa"`
	Perfmon bool `json:"perfmon"`
	// Reserved are the flags set that have no name here, as 16 hex digits of
	// the number; "" if none.
	Reserved string `json:"reserved"`
}

// Event is one measured event. Register and Digest are proven by the replay.
// Text and Variable are shown only if the digest covers them. Type is the log's
// word: nothing covers it.
type Event struct {
	Register string    `json:"register"` // "rtmr0"…
	Type     string    `json:"type"`
	Digest   string    `json:"digest"`
	Verified bool      `json:"verified"` // the digest is that of the event's data
	Text     string    `json:"text,omitempty"`
	Variable *Variable `json:"variable,omitempty"`
}

// Variable is a UEFI variable, for example SecureBoot.
type Variable struct {
	GUID  string `json:"guid"`
	Name  string `json:"name"`
	Value string `json:"value"` // at most 64 bytes; longer values are left out
}

func newClaims(q *dcap.Quote, res dcap.Result) *Claims {
	td, pck := q.TD, res.PCK
	c := &Claims{
		QuoteVersion: q.Header.Version, TDReport: "1.0",
		QEVendorID: hex.EncodeToString(q.Header.QEVendorID[:]), UserData: hex.EncodeToString(q.Header.UserData[:]),

		TEETCBSVN:      hex.EncodeToString(td.TEETCBSVN[:]),
		MRSEAM:         hex.EncodeToString(td.MRSEAM[:]),
		MRSIGNERSEAM:   hex.EncodeToString(td.MRSIGNERSEAM[:]),
		SEAMATTRIBUTES: hex.EncodeToString(td.SEAMATTRIBUTES[:]),
		TDATTRIBUTES:   newTDAttributes(td.TDATTRIBUTES),
		XFAM:           hex.EncodeToString(td.XFAM[:]),
		MRTD:           hex.EncodeToString(td.MRTD[:]),
		MRCONFIGID:     hex.EncodeToString(td.MRCONFIGID[:]),
		MROWNER:        hex.EncodeToString(td.MROWNER[:]),
		MROWNERCONFIG:  hex.EncodeToString(td.MROWNERCONFIG[:]),
		RTMR0:          hex.EncodeToString(td.RTMR[0][:]),
		RTMR1:          hex.EncodeToString(td.RTMR[1][:]),
		RTMR2:          hex.EncodeToString(td.RTMR[2][:]),
		RTMR3:          hex.EncodeToString(td.RTMR[3][:]),
		REPORTDATA:     hex.EncodeToString(td.REPORTDATA[:]),

		FMSPC: hex.EncodeToString(pck.FMSPC[:]), PCEID: hex.EncodeToString(pck.PCEID[:]), PCESVN: pck.PCESVN,
		CPUSVN: hex.EncodeToString(pck.CPUSVN[:]), PPID: hex.EncodeToString(pck.PPID[:]), PCKCA: pck.CA, SGXType: pck.SGXType,

		Platform: res.Platform, Module: res.Module, QE: res.QE,
		TCBEvaluationDataNumber: res.TCBEvaluationDataNumber,
	}
	if x := td.TDX15; x != nil {
		c.TDReport = "1.5"
		c.TEETCBSVN2 = hex.EncodeToString(x.TEETCBSVN2[:])
		c.MRSERVICETD = hex.EncodeToString(x.MRSERVICETD[:])
	}
	if p := pck.Platform; p != nil {
		c.PIID = hex.EncodeToString(p.InstanceID[:])
		c.Flags = p
	}
	return c
}

func newTDAttributes(raw [8]byte) TDAttributes {
	a := TDAttributes{Raw: hex.EncodeToString(raw[:])}
	n := binary.LittleEndian.Uint64(raw[:])
	for _, f := range []struct {
		bit  int
		flag *bool
	}{
		{0, &a.Debug}, {4, &a.HGSPlusProf}, {5, &a.PerfProf}, {6, &a.PMTProf},
		{16, &a.ICSSD}, {27, &a.LASS}, {28, &a.SEPTVEDisable}, {29, &a.Migratable}, {30, &a.PKS}, {31, &a.KL},
		{62, &a.TPA}, {63, &a.Perfmon},
	} {
		*f.flag = n>>f.bit&1 == 1
		n &^= 1 << f.bit
	}
	if n != 0 {
		a.Reserved = fmt.Sprintf("%016x", n)
	}
	return a
}

func (c *Claims) addEvents(log *eventlog.Log) {
	for i := range log.Events {
		e := &log.Events[i]
		if e.Type == eventlog.EVNoAction {
			continue // in no register: anybody could have written it
		}
		if len(c.Events) == maxEvents {
			c.EventsOmitted++
			continue
		}
		out := Event{Register: fmt.Sprintf("rtmr%d", e.Register-1), Type: eventlog.TypeName(e.Type), Digest: hex.EncodeToString(e.Digest)}
		_, out.Verified = e.Content()
		if s, ok := e.Text(); ok && len(s) <= maxEventText {
			out.Text = s
		}
		if v, ok := e.Variable(); ok && len(v.Value) <= maxEventValue {
			out.Variable = &Variable{v.GUID, v.Name, hex.EncodeToString(v.Value)}
		}
		c.Events = append(c.Events, out)
	}
}
