package dcap

import (
	"encoding/binary"
	"fmt"

	"github.com/claviger/claviger/broker/attest"
)

// TEEType is the kind of TEE that a quote is about (header field TEE_TYPE).
type TEEType uint32

// TEE types.
const (
	TEESGX TEEType = 0x00
	TEETDX TEEType = 0x81
)

func (t TEEType) String() string {
	switch t {
	case TEESGX:
		return "SGX"
	case TEETDX:
		return "TDX"
	}
	return fmt.Sprintf("TEE type %#x", uint32(t))
}

// Sizes in bytes, from the "Intel TDX DCAP Quoting Library API" and the "Intel
// SGX ECDSA Quote Library Reference", appendix "Quote Format".
const (
	headerSize        = 48
	enclaveReportSize = 384
	tdReport10Size    = 584
	tdReport15Size    = 648
)

const (
	attKeyECDSAP256   = 2 // ECDSA-256-with-P-256 curve
	bodyEnclaveReport = 1 // v5 body types
	bodyTDReport10    = 2
	bodyTDReport15    = 3
	certTypePCKChain  = 5 // certification data: PEM chain, PCK leaf first
	certTypeQEReport  = 6 // certification data: QE report certification data
)

// intelQEVendor is the QE vendor id of Intel's quoting enclaves.
const intelQEVendor = "\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07"

// Header is the quote header, 48 bytes. Fields are little-endian.
type Header struct {
	Version    uint16
	AttKeyType uint16
	TEEType    TEEType // v3 has no such field: always SGX
	QESVN      uint16  // v3; reserved since
	PCESVN     uint16  // v3; reserved since
	QEVendorID [16]byte
	UserData   [20]byte
}

// Quote is a parsed, unverified DCAP quote of version 3, 4 or 5. Exactly one of
// Enclave and TD is set.
type Quote struct {
	Header  Header
	Enclave *EnclaveReport
	TD      *TDReport

	signed    []byte // what the attestation key signs: header, v5 body descriptor, body
	signature []byte // 64, r || s
	attKey    []byte // 64, x || y
	qe        EnclaveReport
	qeRaw     []byte // 384
	qeSig     []byte // 64, by the PCK
	qeAuth    []byte
	pckChain  []byte // PEM
}

// EnclaveReport is an SGX REPORT body, 384 bytes (Intel SDM vol. 3D, "REPORT").
type EnclaveReport struct {
	CPUSVN       [16]byte
	MISCSELECT   [4]byte
	ISVEXTPRODID [16]byte
	ATTRIBUTES   [16]byte // flags, then XFRM
	MRENCLAVE    [32]byte
	MRSIGNER     [32]byte
	CONFIGID     [64]byte
	ISVPRODID    uint16
	ISVSVN       uint16
	CONFIGSVN    uint16
	ISVFAMILYID  [16]byte
	REPORTDATA   [64]byte
}

// Debug reports whether ATTRIBUTES.DEBUG is set.
func (r *EnclaveReport) Debug() bool { return r.ATTRIBUTES[0]&0x02 != 0 }

// TDReport is a TD quote body: 584 bytes for TDX 1.0, 648 for TDX 1.5.
type TDReport struct {
	TEETCBSVN      [16]byte
	MRSEAM         [48]byte
	MRSIGNERSEAM   [48]byte
	SEAMATTRIBUTES [8]byte
	TDATTRIBUTES   [8]byte
	XFAM           [8]byte
	MRTD           [48]byte
	MRCONFIGID     [48]byte
	MROWNER        [48]byte
	MROWNERCONFIG  [48]byte
	RTMR           [4][48]byte
	REPORTDATA     [64]byte
	// TDX15 holds what TDX 1.5 added; nil in a 1.0 body.
	TDX15 *TDReport15
}

// TDReport15 is the tail of a TDX 1.5 body.
type TDReport15 struct {
	TEETCBSVN2  [16]byte // the SVN of the TCB in force now; TEETCBSVN is that at the TD's launch
	MRSERVICETD [48]byte
}

// ParseQuote parses a quote. It copies nothing that it does not have to: the
// quote keeps references into b. Bytes after the signature data are ignored,
// because platforms hand quotes over in padded buffers and nothing reads them.
func ParseQuote(b []byte) (*Quote, error) {
	if len(b) > attest.MaxReportSize {
		return nil, malformed("quote of %d bytes", len(b))
	}
	r := reader{b: b}
	q := &Quote{}
	h := &q.Header
	head := reader{b: r.take(headerSize)}
	h.Version = head.u16()
	h.AttKeyType = head.u16()
	tee := head.u32()
	h.QESVN = head.u16()
	h.PCESVN = head.u16()
	head.fill(h.QEVendorID[:])
	head.fill(h.UserData[:])
	if r.short {
		return nil, malformed("quote header cut short at %d bytes", len(b))
	}
	bodyType, err := q.bodyType(&r, tee)
	if err != nil {
		return nil, err
	}
	if h.AttKeyType != attKeyECDSAP256 {
		return nil, unsupported("attestation key type %d", h.AttKeyType)
	}
	if string(h.QEVendorID[:]) != intelQEVendor {
		return nil, unsupported("QE vendor %x", h.QEVendorID)
	}
	switch bodyType {
	case bodyEnclaveReport:
		q.Enclave = parseEnclaveReport(r.take(enclaveReportSize))
	case bodyTDReport10:
		q.TD = parseTDReport(r.take(tdReport10Size))
	case bodyTDReport15:
		q.TD = parseTDReport(r.take(tdReport15Size))
	}
	if r.short {
		return nil, malformed("quote body cut short")
	}
	q.signed = b[:r.off]
	sig := reader{b: r.take(uint64(r.u32()))}
	if r.short {
		return nil, malformed("signature data cut short")
	}
	if err := q.parseSignature(&sig); err != nil {
		return nil, err
	}
	return q, nil
}

// bodyType tells which body follows; in v5 it reads the body descriptor.
func (q *Quote) bodyType(r *reader, tee uint32) (uint16, error) {
	h := &q.Header
	switch h.Version {
	case 3:
		// Reserved in v3, and only SGX enclaves have v3 quotes: another value
		// would be a TDX quote relabelled.
		if tee != 0 {
			return 0, malformed("quote v3 with TEE type %#x", tee)
		}
		h.TEEType = TEESGX
		return bodyEnclaveReport, nil
	case 4:
		h.TEEType = TEEType(tee)
		switch h.TEEType {
		case TEESGX:
			return bodyEnclaveReport, nil
		case TEETDX:
			return bodyTDReport10, nil
		}
		return 0, unsupported("%v", h.TEEType)
	case 5:
		h.TEEType = TEEType(tee)
		typ, size := r.u16(), r.u32()
		if r.short {
			return 0, malformed("body descriptor cut short")
		}
		var want uint32
		tee := TEETDX
		switch typ {
		case bodyEnclaveReport:
			want, tee = enclaveReportSize, TEESGX
		case bodyTDReport10:
			want = tdReport10Size
		case bodyTDReport15:
			want = tdReport15Size
		default:
			return 0, unsupported("quote body type %d", typ)
		}
		if size != want || h.TEEType != tee {
			return 0, malformed("%v body of type %d and %d bytes", h.TEEType, typ, size)
		}
		return typ, nil
	}
	return 0, unsupported("quote version %d", h.Version)
}

// parseSignature reads the ECDSA-P256 signature data. Its parts must fill it:
// bytes that nobody reads have no place inside a length.
func (q *Quote) parseSignature(r *reader) error {
	q.signature = r.take(64)
	q.attKey = r.take(64)
	if q.Header.Version >= 4 {
		typ := r.u16()
		inner := reader{b: r.take(uint64(r.u32()))}
		if r.short {
			return malformed("certification data cut short")
		}
		if typ != certTypeQEReport {
			return unsupported("certification data type %d", typ)
		}
		if !r.done() {
			return malformed("%d bytes after the certification data", r.left())
		}
		r = &inner
	}
	q.qeRaw = r.take(enclaveReportSize)
	q.qeSig = r.take(64)
	q.qeAuth = r.take(uint64(r.u16()))
	typ := r.u16()
	q.pckChain = r.take(uint64(r.u32()))
	if r.short {
		return malformed("QE certification data cut short")
	}
	if typ != certTypePCKChain {
		// Types 1 to 4 name the PCK certificate instead of carrying it.
		return unsupported("QE certification data type %d, want a PCK certificate chain", typ)
	}
	if !r.done() {
		return malformed("%d bytes after the PCK certificate chain", r.left())
	}
	q.qe = *parseEnclaveReport(q.qeRaw)
	return nil
}

func parseEnclaveReport(b []byte) *EnclaveReport {
	r, e := reader{b: b}, &EnclaveReport{}
	r.fill(e.CPUSVN[:])
	r.fill(e.MISCSELECT[:])
	r.take(12)
	r.fill(e.ISVEXTPRODID[:])
	r.fill(e.ATTRIBUTES[:])
	r.fill(e.MRENCLAVE[:])
	r.take(32)
	r.fill(e.MRSIGNER[:])
	r.take(32)
	r.fill(e.CONFIGID[:])
	e.ISVPRODID = r.u16()
	e.ISVSVN = r.u16()
	e.CONFIGSVN = r.u16()
	r.take(42)
	r.fill(e.ISVFAMILYID[:])
	r.fill(e.REPORTDATA[:])
	return e
}

func parseTDReport(b []byte) *TDReport {
	r, t := reader{b: b}, &TDReport{}
	for _, f := range [][]byte{
		t.TEETCBSVN[:], t.MRSEAM[:], t.MRSIGNERSEAM[:], t.SEAMATTRIBUTES[:], t.TDATTRIBUTES[:], t.XFAM[:],
		t.MRTD[:], t.MRCONFIGID[:], t.MROWNER[:], t.MROWNERCONFIG[:],
		t.RTMR[0][:], t.RTMR[1][:], t.RTMR[2][:], t.RTMR[3][:], t.REPORTDATA[:],
	} {
		r.fill(f)
	}
	if len(b) == tdReport15Size {
		t.TDX15 = &TDReport15{}
		r.fill(t.TDX15.TEETCBSVN2[:])
		r.fill(t.TDX15.MRSERVICETD[:])
	}
	return t
}

// reader reads little-endian fields from b. Once it runs out, short stays set
// and every further read is empty: a length is never trusted before it is compared.
type reader struct {
	b     []byte
	off   int
	short bool
}

func (r *reader) take(n uint64) []byte {
	if r.short || n > uint64(len(r.b)-r.off) {
		r.short = true
		return nil
	}
	s := r.b[r.off : r.off+int(n)]
	r.off += int(n)
	return s
}

func (r *reader) fill(dst []byte) { copy(dst, r.take(uint64(len(dst)))) }

func (r *reader) u16() uint16 {
	var b [2]byte
	r.fill(b[:])
	return binary.LittleEndian.Uint16(b[:])
}

func (r *reader) u32() uint32 {
	var b [4]byte
	r.fill(b[:])
	return binary.LittleEndian.Uint32(b[:])
}

func (r *reader) done() bool { return !r.short && r.off == len(r.b) }
func (r *reader) left() int  { return len(r.b) - r.off }
