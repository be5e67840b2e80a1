package teesim

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// TCB is a firmware level (AMD publication 56860, TCB_VERSION). FMC exists on Turin only.
type TCB struct {
	Bootloader uint8 `json:"bootloader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
	FMC        uint8 `json:"fmc"`
}

// DeviceOptions describe a chip. The zero value is a Milan with a random
// identity, a plausible TCB and a VCEK.
type DeviceOptions struct {
	Product string // "Milan", "Genoa" or "Turin"; "" means Milan
	ChipID  []byte // 64 bytes, Turin 8; nil is random
	TCB     TCB
	VLEK    bool   // sign with a provider's loaded key; reports then hide CHIP_ID
	CSPID   string // of the VLEK
	// The rest serves tests of verifiers.
	NotBefore, NotAfter time.Time
	Serial              *big.Int
	HWIDOctetString     bool             // encode HWID as newer certificates do, as a DER OCTET STRING
	Extensions          []pkix.Extension // in place of those of AMD's KDS specification
	Curve               elliptic.Curve   // of the leaf's key; nil is P-384
}

// Device is a simulated chip with its signing key and certificates.
type Device struct {
	product         string
	chipID          []byte
	tcb             TCB
	vlek            bool
	key             *ecdsa.PrivateKey
	leaf, ask, root []byte // DER
}

// NewDevice makes a chip certified by r.
func (r *Root) NewDevice(o DeviceOptions) (*Device, error) {
	if o.Product == "" {
		o.Product = "Milan"
	}
	kind := vcek
	if o.VLEK {
		kind = vlek
	}
	ca := r.authorities[o.Product+"/"+kind]
	if ca == nil {
		return nil, fmt.Errorf("simulated device: no product %q", o.Product)
	}
	if o.TCB == (TCB{}) {
		o.TCB = TCB{Bootloader: 4, TEE: 0, SNP: 24, Microcode: 219}
		if o.Product == "Turin" {
			o.TCB = TCB{FMC: 1, Bootloader: 3, TEE: 2, SNP: 5, Microcode: 97}
		}
	}
	if o.ChipID == nil {
		o.ChipID = make([]byte, chipIDSize(o.Product))
		if _, err := rand.Read(o.ChipID); err != nil {
			return nil, fmt.Errorf("simulated device: %w", err)
		}
	}
	if len(o.ChipID) != chipIDSize(o.Product) {
		return nil, fmt.Errorf("simulated device: a chip id of %d bytes, want %d", len(o.ChipID), chipIDSize(o.Product))
	}
	if o.VLEK && o.CSPID == "" {
		o.CSPID = "CN=simulated.invalid"
	}
	if o.Curve == nil {
		o.Curve = elliptic.P384()
	}
	key, err := ecdsa.GenerateKey(o.Curve, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("simulated device: %w", err)
	}
	leaf, err := newLeaf(ca, o, kind, key)
	if err != nil {
		return nil, fmt.Errorf("simulated device: certify the %s: %w", kind, err)
	}
	return &Device{
		product: o.Product, chipID: o.ChipID, tcb: o.TCB, vlek: o.VLEK, key: key,
		leaf: leaf, ask: ca.cert.Raw, root: r.ark.cert.Raw,
	}, nil
}

// Leaf is the VCEK or VLEK certificate, DER.
func (d *Device) Leaf() []byte { return bytes.Clone(d.leaf) }

// ChipID is 64 bytes, on Turin 8.
func (d *Device) ChipID() []byte { return bytes.Clone(d.chipID) }

// Product is the product line.
func (d *Device) Product() string { return d.product }

func chipIDSize(product string) int {
	if product == "Turin" {
		return 8
	}
	return 64
}

func newLeaf(ca *authority, o DeviceOptions, kind string, key *ecdsa.PrivateKey) ([]byte, error) {
	if o.Serial == nil {
		s, err := newSerial()
		if err != nil {
			return nil, err
		}
		o.Serial = s
	}
	if o.NotBefore.IsZero() {
		o.NotBefore = ca.cert.NotBefore
	}
	if o.NotAfter.IsZero() {
		o.NotAfter = ca.cert.NotAfter
	}
	if o.Extensions == nil {
		ext, err := kdsExtensions(o)
		if err != nil {
			return nil, err
		}
		o.Extensions = ext
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:       o.Serial,
		Subject:            pkix.Name{CommonName: "SEV-" + kind, Organization: []string{Marker}},
		NotBefore:          o.NotBefore,
		NotAfter:           o.NotAfter,
		ExtraExtensions:    o.Extensions,
		SignatureAlgorithm: x509.ECDSAWithSHA384,
	}, ca.cert, key.Public(), ca.key)
}

// kdsExtensions are the certificate extensions of AMD publication 57230, §3.1.
func kdsExtensions(o DeviceOptions) ([]pkix.Extension, error) {
	var out []pkix.Extension
	var err error
	add := func(v any, params string, arc ...int) {
		b, e := asn1.MarshalWithParams(v, params)
		if e != nil {
			err = e
		}
		out = append(out, pkix.Extension{Id: oid(arc...), Value: b})
	}
	name := o.Product
	if !o.VLEK && o.Product != "Turin" {
		name += "-B1"
	}
	add(0, "", 1)
	add(name, "ia5", 2)
	spl := []struct {
		arc int
		v   uint8
	}{{1, o.TCB.Bootloader}, {2, o.TCB.TEE}, {4, 0}, {5, 0}, {6, 0}, {7, 0}, {3, o.TCB.SNP}, {8, o.TCB.Microcode}}
	if o.Product == "Turin" {
		spl[2].arc, spl[2].v = 9, o.TCB.FMC // instead of the fourth level
	}
	for _, s := range spl {
		add(int(s.v), "", 3, s.arc)
	}
	switch {
	case o.VLEK:
		add(o.CSPID, "ia5", 5)
	case o.HWIDOctetString:
		add(o.ChipID, "", 4)
	default:
		out = append(out, pkix.Extension{Id: oid(4), Value: o.ChipID})
	}
	if err != nil {
		return nil, fmt.Errorf("encode the extensions: %w", err)
	}
	return out, nil
}

func oid(arc ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arc...)
}

// ReportOptions are what the guest and the host chose at launch. The zero
// value is a guest at VMPL 0 that cannot be debugged.
type ReportOptions struct {
	Version         uint32 // 2 to 5; 0 means 3, on Turin 5
	GuestSVN        uint32
	Policy          uint64 // 0 means 0x30000: SMT allowed, reserved bit 17
	VMPL            uint32
	PlatformInfo    uint64 // 0 means 0x25: SMT, ECC, alias check complete
	Measurement     [48]byte
	HostData        [32]byte
	FamilyID        [16]byte
	ImageID         [16]byte
	IDKeyDigest     [48]byte
	AuthorKeyDigest [48]byte
	MaskChipID      bool
	// Patch changes the report before it is signed, for tests of verifiers.
	Patch func(report []byte)
}

// Offsets in ATTESTATION_REPORT (AMD publication 56860, table "ATTESTATION_REPORT Structure").
const (
	reportSize      = 0x4a0
	signatureOffset = 0x2a0
	componentSize   = 72 // of r and s, little-endian
)

// Evidence makes a signed report over reportData, with the certificate table.
func (d *Device) Evidence(reportData [64]byte, o ReportOptions) (attest.Evidence, error) {
	report := d.report(reportData, o)
	if o.Patch != nil {
		o.Patch(report)
	}
	digest := sha512.Sum384(report[:signatureOffset])
	r, s, err := ecdsa.Sign(rand.Reader, d.key, digest[:])
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("simulated device: sign the report: %w", err)
	}
	putLE(report[signatureOffset:][:componentSize], r)
	putLE(report[signatureOffset+componentSize:][:componentSize], s)
	return attest.Evidence{Type: attest.TypeSNP, Report: report, Endorsements: d.CertTable()}, nil
}

func (d *Device) report(reportData [64]byte, o ReportOptions) []byte {
	if o.Version == 0 {
		o.Version = 3
		if d.product == "Turin" {
			o.Version = 5
		}
	}
	if o.Policy == 0 {
		o.Policy = 0x30000
	}
	if o.PlatformInfo == 0 {
		o.PlatformInfo = 0x25
	}
	b := make([]byte, reportSize)
	le := binary.LittleEndian
	le.PutUint32(b[0x00:], o.Version)
	le.PutUint32(b[0x04:], o.GuestSVN)
	le.PutUint64(b[0x08:], o.Policy)
	copy(b[0x10:], o.FamilyID[:])
	copy(b[0x20:], o.ImageID[:])
	le.PutUint32(b[0x30:], o.VMPL)
	le.PutUint32(b[0x34:], 1) // ECDSA P-384 with SHA-384
	le.PutUint64(b[0x40:], o.PlatformInfo)
	if d.vlek {
		b[0x48] = 1 << 2 // SIGNING_KEY
	}
	copy(b[0x50:], reportData[:])
	copy(b[0x90:], o.Measurement[:])
	copy(b[0xc0:], o.HostData[:])
	copy(b[0xe0:], o.IDKeyDigest[:])
	copy(b[0x110:], o.AuthorKeyDigest[:])
	copy(b[0x140:], bytes.Repeat([]byte{0x5e}, 32)) // REPORT_ID
	copy(b[0x160:], bytes.Repeat([]byte{0xff}, 32)) // REPORT_ID_MA: no migration agent
	tcb := d.tcbBytes()
	for _, off := range []int{0x38, 0x180, 0x1e0, 0x1f0} { // current, reported, committed, launch
		copy(b[off:], tcb[:])
	}
	if o.Version >= 3 {
		copy(b[0x188:], map[string][]byte{"Milan": {0x19, 0x01, 1}, "Genoa": {0x19, 0x11, 1}, "Turin": {0x1a, 0x02, 1}}[d.product])
	}
	if !d.vlek && !o.MaskChipID {
		copy(b[0x1a0:], d.chipID)
	}
	copy(b[0x1e8:], []byte{1, 58, 1, 0, 1, 58, 1}) // current and committed build, minor, major
	return b
}

func (d *Device) tcbBytes() [8]byte {
	t := d.tcb
	if d.product == "Turin" {
		return [8]byte{t.FMC, t.Bootloader, t.TEE, t.SNP, 0, 0, 0, t.Microcode}
	}
	return [8]byte{t.Bootloader, t.TEE, 0, 0, 0, 0, t.SNP, t.Microcode}
}

func putLE(dst []byte, n *big.Int) {
	n.FillBytes(dst)
	for i, j := 0, len(dst)-1; i < j; i, j = i+1, j-1 {
		dst[i], dst[j] = dst[j], dst[i]
	}
}

// GUIDs of the certificate table (AMD publication 56421, §4.1.8.1), in the
// byte order of RFC 4122, as hosts write them.
const (
	guidVCEK = "63da758de6644564adc5f4b93be8accd"
	guidVLEK = "a8074bc2a25a483eaae639c045a0b8a1"
	guidASK  = "4ab7b379bbac4fe4a02f05aef327c782"
	guidARK  = "c0b406a4a803495297433fb6014cd0ae"
)

// CertTable is the GUID table with the leaf, its issuer and the root, DER.
func (d *Device) CertTable() []byte {
	leaf := guidVCEK
	if d.vlek {
		leaf = guidVLEK
	}
	entries := []struct {
		guid string
		der  []byte
	}{{leaf, d.leaf}, {guidASK, d.ask}, {guidARK, d.root}}
	const entrySize = 24
	table := make([]byte, entrySize*(len(entries)+1)) // the last entry is zero
	for i, e := range entries {
		h := table[i*entrySize:]
		g, err := hex.DecodeString(e.guid)
		if err != nil {
			panic("teesim: bad GUID constant") // unreachable: the constants are above
		}
		copy(h, g)
		binary.LittleEndian.PutUint32(h[16:], uint32(len(table)))
		binary.LittleEndian.PutUint32(h[20:], uint32(len(e.der)))
		table = append(table, e.der...)
	}
	return table
}

const warning = "SIMULATED DEVICE - NOT HARDWARE. Whoever can read this file can make any evidence."

// file is the JSON form of a device; bytes are base64.
type file struct {
	Warning string `json:"warning"`
	Product string `json:"product"`
	ChipID  []byte `json:"chip_id"`
	TCB     TCB    `json:"tcb"`
	VLEK    bool   `json:"vlek,omitempty"`
	Key     []byte `json:"key"` // PKCS #8
	Leaf    []byte `json:"leaf"`
	ASK     []byte `json:"ask"`
	ARK     []byte `json:"ark"`
}

// MarshalJSON writes the device with its private key.
func (d *Device) MarshalJSON() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(d.key)
	if err != nil {
		return nil, fmt.Errorf("simulated device: encode the key: %w", err)
	}
	return json.Marshal(file{warning, d.product, d.chipID, d.tcb, d.vlek, key, d.leaf, d.ask, d.root})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (d *Device) UnmarshalJSON(data []byte) error {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return fmt.Errorf("simulated device: %w", err)
	}
	if f.Warning != warning {
		return fmt.Errorf("simulated device: the file does not say that it is simulated")
	}
	k, err := x509.ParsePKCS8PrivateKey(f.Key)
	if err != nil {
		return fmt.Errorf("simulated device: key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("simulated device: the key is a %T, want ECDSA", k)
	}
	if len(f.ChipID) != chipIDSize(f.Product) {
		return fmt.Errorf("simulated device: a chip id of %d bytes", len(f.ChipID))
	}
	*d = Device{product: f.Product, chipID: f.ChipID, tcb: f.TCB, vlek: f.VLEK, key: key, leaf: f.Leaf, ask: f.ASK, root: f.ARK}
	return nil
}

// Save writes the device to a file that only its owner can read.
func (d *Device) Save(path string) error {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save the simulated device: %w", err)
	}
	err = f.Chmod(0o600) // of a file that was there before
	if err == nil {
		_, err = f.Write(append(b, '\n'))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("save the simulated device: %w", err)
	}
	return nil
}

// LoadDevice reads a device that Save wrote.
func LoadDevice(path string) (*Device, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load the simulated device: %w", err)
	}
	d := new(Device)
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("load the simulated device %s: %w", path, err)
	}
	return d, nil
}
