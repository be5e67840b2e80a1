package snp

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/claviger/claviger/broker/attest"
)

// Layout of ATTESTATION_REPORT (AMD publication 56860, §7.3, table
// "ATTESTATION_REPORT Structure"). Integers are little-endian.
const (
	reportSize      = 0x4a0
	signatureOffset = 0x2a0 // everything before is signed
	componentSize   = 72    // of the signature's R and S
	chipIDSize      = 64
)

// vmplHost in the VMPL field marks a report that the host asked for.
const vmplHost = 0xffffffff

// Values of SIGNING_KEY.
type signingKey uint8

const (
	keyVCEK signingKey = 0
	keyVLEK signingKey = 1
	keyNone signingKey = 7
)

func (k signingKey) String() string {
	switch k {
	case keyVCEK:
		return "vcek"
	case keyVLEK:
		return "vlek"
	default:
		return "none"
	}
}

// report is a parsed ATTESTATION_REPORT. Byte fields alias the input.
type report struct {
	raw          []byte // reportSize bytes
	version      uint32
	guestSVN     uint32
	policy       uint64
	vmpl         uint32
	platformInfo uint64
	signingKey   signingKey
	maskChipKey  bool
	authorKeyEn  bool

	familyID, imageID, reportData, measurement, hostData []byte
	idKeyDigest, authorKeyDigest, reportID, reportIDMA   []byte
	chipID                                               []byte // 64 bytes

	currentTCB, reportedTCB, committedTCB, launchTCB [8]byte

	family, model, stepping    uint8  // CPUID, zero before version 3
	launchMit, currentMit      uint64 // zero before version 5
	signatureR, signatureS     []byte // little-endian
	chipIDMasked, hostRequests bool
}

// parseReport checks the form of a report: checks 1 to 4 of Verifier.
func parseReport(b []byte, a *appraisal) (*report, error) {
	// A longer or shorter field would be another structure than what is signed.
	if len(b) != reportSize {
		return nil, attest.Errorf(checkReport, attest.ReasonMalformed, "%d bytes, want %d", len(b), reportSize)
	}
	le := binary.LittleEndian
	r := &report{
		raw:             b,
		version:         le.Uint32(b),
		guestSVN:        le.Uint32(b[0x04:]),
		policy:          le.Uint64(b[0x08:]),
		familyID:        b[0x10:0x20],
		imageID:         b[0x20:0x30],
		vmpl:            le.Uint32(b[0x30:]),
		currentTCB:      [8]byte(b[0x38:]),
		platformInfo:    le.Uint64(b[0x40:]),
		reportData:      b[0x50:0x90],
		measurement:     b[0x90:0xc0],
		hostData:        b[0xc0:0xe0],
		idKeyDigest:     b[0xe0:0x110],
		authorKeyDigest: b[0x110:0x140],
		reportID:        b[0x140:0x160],
		reportIDMA:      b[0x160:0x180],
		reportedTCB:     [8]byte(b[0x180:]),
		chipID:          b[0x1a0:0x1e0],
		committedTCB:    [8]byte(b[0x1e0:]),
		launchTCB:       [8]byte(b[0x1f0:]),
		signatureR:      b[signatureOffset:][:componentSize],
		signatureS:      b[signatureOffset+componentSize:][:componentSize],
	}
	a.passed(checkReport)

	// An unknown version may give known offsets another meaning.
	if r.version < 2 || r.version > 5 {
		return nil, attest.Errorf(checkVersion, attest.ReasonUnsupported, "report version %d, known are 2 to 5", r.version)
	}
	a.passed(checkVersion)

	// An unknown algorithm's signature must not be read as ECDSA's.
	if algo := le.Uint32(b[0x34:]); algo != 1 {
		return nil, attest.Errorf(checkSignatureAlgo, attest.ReasonUnsupported, "SIGNATURE_ALGO %d, want 1 (ECDSA P-384 with SHA-384)", algo)
	}
	a.passed(checkSignatureAlgo)

	if err := r.parseReserved(); err != nil {
		return nil, err
	}
	a.passed(checkReserved)

	flags := le.Uint32(b[0x48:])
	r.authorKeyEn = flags&1 != 0
	r.maskChipKey = flags&2 != 0
	r.signingKey = signingKey(flags >> 2 & 7)
	r.chipIDMasked = isZero(r.chipID)
	r.hostRequests = r.vmpl == vmplHost
	if r.version >= 3 {
		r.family, r.model, r.stepping = b[0x188], b[0x189], b[0x18a]
	}
	if r.version >= 5 {
		r.launchMit, r.currentMit = le.Uint64(b[0x1f8:]), le.Uint64(b[0x200:])
	}
	return r, nil
}

// parseReserved stops fields that a newer firmware gives a meaning, and
// unsigned bytes after the signature, from passing unseen. Unknown bits of
// POLICY and PLATFORM_INFO become claims instead: real processors set them.
func (r *report) parseReserved() error {
	b := r.raw
	cpuid, mit := 0x188, 0x1f8
	if r.version >= 3 {
		cpuid = 0x18b // family, model, stepping
	}
	if r.version >= 5 {
		mit = 0x208 // mitigation vectors
	}
	for _, z := range [][2]int{
		{0x4c, 0x50}, {cpuid, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {mit, signatureOffset},
		{signatureOffset + 2*componentSize, reportSize},
	} {
		if !isZero(b[z[0]:z[1]]) {
			return attest.Errorf(checkReserved, attest.ReasonMalformed, "reserved bytes %#x to %#x are not zero", z[0], z[1])
		}
	}
	if flags := binary.LittleEndian.Uint32(b[0x48:]); flags>>5 != 0 {
		return attest.Errorf(checkReserved, attest.ReasonMalformed, "reserved bits of the key flags are set: %#x", flags)
	}
	if r.policy&(1<<policyMustBeOne) == 0 {
		return attest.Errorf(checkReserved, attest.ReasonMalformed, "bit %d of POLICY is not one", policyMustBeOne)
	}
	if r.vmpl > 3 && r.vmpl != vmplHost {
		return attest.Errorf(checkReserved, attest.ReasonMalformed, "VMPL %d does not exist", r.vmpl)
	}
	return nil
}

// verifySignature checks the report's signature; it is the only place that does.
func verifySignature(r *report, key *ecdsa.PublicKey) error {
	digest := sha512.Sum384(r.raw[:signatureOffset])
	if !ecdsa.Verify(key, digest[:], fromLE(r.signatureR), fromLE(r.signatureS)) {
		return attest.Errorf(checkSignature, attest.ReasonSignature, "the report is not signed by the certificate's key")
	}
	return nil
}

func fromLE(b []byte) *big.Int {
	b = slices.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// line is a product line: the processors that share one ARK.
type line string

const (
	milan line = "milan"
	genoa line = "genoa"
	turin line = "turin"
)

// name is the line as AMD writes it in certificates.
func (l line) name() string {
	return map[line]string{milan: "Milan", genoa: "Genoa", turin: "Turin"}[l]
}

// product maps the CPUID family and model to the product line and the model's
// name (AMD publication 57230: Siena and Bergamo are certified as Genoa).
func (r *report) product() (l line, model string, err error) {
	switch {
	case r.family == 0x19 && r.model <= 0x0f:
		return milan, "Milan", nil
	case r.family == 0x19 && r.model >= 0x10 && r.model <= 0x1f:
		return genoa, "Genoa", nil
	case r.family == 0x19 && r.model >= 0xa0 && r.model <= 0xaf:
		return genoa, "Siena or Bergamo", nil
	case r.family == 0x1a && r.model <= 0x11:
		return turin, "Turin", nil
	}
	return "", "", attest.Errorf(checkProduct, attest.ReasonUnsupported,
		"CPUID family %#x model %#x stepping %#x is no known product", r.family, r.model, r.stepping)
}
