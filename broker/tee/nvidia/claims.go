package nvidia

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// What RIMs say of a device.
const (
	rimMatched    = "matched"    // all that is known of its driver and VBIOS matches
	rimMismatched = "mismatched" // Claims.RIMMismatches lists what does not
	rimAbsent     = "absent"     // a manifest that the device needs is not configured
	rimExpired    = "expired"    // a manifest that it needs is of a signer whose certificates are not valid now
)

// What the stapled OCSP answers say.
const (
	revocationGood    = "good"
	revocationUnknown = "unknown" // some answer is missing, and the configuration allows that
)

// Claims are what report and certificates say, under NVIDIA's names. Byte
// strings are lower-case hex in the report's order, empty where absent.
type Claims struct {
	Device        string `json:"device"` // "gpu" or "nvswitch"
	Chip          string `json:"chip"`   // "GH100", "GB100", "LS_10": from the certificates
	PDI           string `json:"pdi"`    // Per-Device Identifier
	DriverVersion string `json:"driver_version"`
	VBIOSVersion  string `json:"vbios_version"`
	BoardID       string `json:"board_id"`
	ChipSKU       string `json:"chip_sku"`
	Project       string `json:"project"`
	ProjectSKU    string `json:"project_sku"`
	// FWID is the digest of the firmware that holds the leaf's key (SHA-384).
	FWID string `json:"fwid"`
	// CCMode is "spt" (one GPU passed through), "mpt" (several, with encrypted
	// NVLink), "ppcie" (several, Protected PCIe: NVLink in the clear), or "unknown".
	CCMode string `json:"cc_mode"`
	// SwitchPDIs are those of the switches that a GPU is linked to, GPUPDIs those
	// of a switch's GPUs: sorted, and in the byte order of their own certificates.
	SwitchPDIs []string `json:"switch_pdis"`
	GPUPDIs    []string `json:"gpu_pdis"`
	LockStatus string   `json:"lock_status"` // of a switch
	// DICEFlags are the OperationalFlags of the leaf; empty on Hopper, which has none.
	DICEFlags string `json:"dice_flags"`
	// RIM is "matched", "mismatched", "absent" or "expired"; RIMs are the names of the manifests that are needed.
	RIM           string   `json:"rim"`
	RIMs          []string `json:"rims"`
	RIMMismatches []string `json:"rim_mismatches"` // "measurement_08"
	Revocation    string   `json:"revocation"`     // "good" or "unknown"
	// RevocationMissing names the certificates without a current answer.
	RevocationMissing  []string `json:"revocation_missing"`
	CertificateSubject string   `json:"certificate_subject"` // of the leaf, for display
}

// read makes the claims of a report that has verified.
func (r *report) read(d *device) (*Claims, error) {
	c := &Claims{
		Device: "gpu", Chip: d.chip, PDI: d.pdi, BoardID: r.hexField(fieldBoardID), FWID: hex.EncodeToString(d.fwid[:]),
		SwitchPDIs: []string{}, GPUPDIs: []string{}, RIMs: []string{}, RIMMismatches: []string{}, RevocationMissing: []string{},
		CertificateSubject: d.leaf().Subject.String(),
	}
	if d.flags != nil {
		c.DICEFlags = hex.EncodeToString(d.flags.Bytes)
	}
	var err error
	if c.VBIOSVersion, err = r.vbiosVersion(d.kind); err != nil {
		return nil, err
	}
	if d.kind == nvSwitch {
		c.Device, c.CCMode, c.LockStatus = "nvswitch", "unknown", r.hexField(fieldLockStatus)
		c.GPUPDIs, err = r.gpuPDIs()
		return c, err
	}
	c.CCMode = r.ccMode()
	for _, f := range []struct {
		into  *string
		field uint16
	}{{&c.DriverVersion, fieldDriverVersion}, {&c.ChipSKU, fieldChipSKU}, {&c.Project, fieldProject}, {&c.ProjectSKU, fieldProjectSKU}} {
		if *f.into, err = r.text(f.field); err != nil {
			return nil, err
		}
	}
	c.SwitchPDIs, err = r.switchPDIs()
	return c, err
}

// ccMode reads the feature flag (u16), or, where an older driver has none, the status of Protected PCIe.
func (r *report) ccMode() string {
	flag, ok := r.fields[fieldFeatureFlag]
	if !ok {
		flag = map[string][]byte{"\x55": {0, 0}, "\xaa": {2, 0}}[string(r.fields[fieldProtectedPCIe])]
	}
	mode, ok := map[string]string{"\x00\x00": "spt", "\x01\x00": "mpt", "\x02\x00": "ppcie"}[string(flag)]
	if !ok {
		return "unknown"
	}
	return mode
}

// rimNames are the names under which NVIDIA's service keeps the manifests of a device.
func (c *Claims) rimNames(d *device) []string {
	vbios := strings.ReplaceAll(c.VBIOSVersion, ".", "")
	switch {
	case d.kind == nvSwitch: // there is one model
		return []string{"NV_SWITCH_BIOS_5612_0002_890_" + vbios}
	case d.model == "Hopper":
		return []string{"NV_GPU_DRIVER_" + c.Chip + "_" + c.DriverVersion, c.vbiosRIM(vbios)}
	default:
		return []string{"NV_GPU_CC_DRIVER_" + c.Chip + "_" + c.DriverVersion, c.vbiosRIM(vbios)}
	}
}

func (c *Claims) vbiosRIM(version string) string {
	return strings.ToUpper(strings.Join([]string{"NV_GPU_VBIOS", c.Project, c.ProjectSKU, c.ChipSKU, version}, "_"))
}

// compare holds the measurements to the configured manifests, and notes the
// outcome. It returns the manifests that count, and what is wrong with an expired one.
func (v *Verifier) compare(r *report, d *device, c *Claims, now time.Time) (used []*manifest, notCurrent error) {
	c.RIM, c.RIMs = rimAbsent, c.rimNames(d)
	for _, name := range c.RIMs {
		m, ok := v.rims[name]
		version := c.VBIOSVersion
		if strings.Contains(name, "DRIVER") {
			version = c.DriverVersion
		}
		// A manifest under the wrong name is none.
		if !ok || m.product != strings.ReplaceAll(d.chip, "_", "") || !strings.EqualFold(m.version, version) {
			return nil, nil
		}
		if err := m.current(now); err != nil {
			notCurrent = fmt.Errorf("%s is %w", name, err)
		}
		used = append(used, m)
	}
	if notCurrent != nil {
		c.RIM = rimExpired
		return nil, notCurrent
	}
	golden := map[int][]string{}
	var bad []int
	for _, m := range used {
		for i, hashes := range m.golden {
			if _, ok := golden[i]; ok { // both speak of it: which is right?
				bad = append(bad, i)
			}
			golden[i] = hashes
		}
	}
	for i, hashes := range golden {
		if i == indexNVDEC && d.kind == gpu && len(r.fields[fieldNVDEC0Status]) == 1 && r.fields[fieldNVDEC0Status][0] == nvdecDisabled {
			continue
		}
		if i >= len(r.blocks) || !slices.Contains(hashes, hex.EncodeToString(r.blocks[i])) {
			bad = append(bad, i)
		}
	}
	slices.Sort(bad)
	for _, i := range slices.Compact(bad) {
		c.RIMMismatches = append(c.RIMMismatches, measurementName(i))
	}
	c.RIM = rimMatched
	if len(bad) > 0 {
		c.RIM = rimMismatched
	}
	return used, nil
}

// measurementName is that of block i+1.
func measurementName(i int) string { return fmt.Sprintf("measurement_%02d", i+1) }

func (r *report) claims(d *device, c *Claims, bound, simulated bool, state attest.CollateralState) attest.Claims {
	measurements := map[string]string{}
	for i, b := range r.blocks {
		measurements[measurementName(i)] = hex.EncodeToString(b)
	}
	return attest.Claims{
		Type: attest.TypeNVIDIA, HardwareModel: d.model, Bound: bound, Simulated: simulated,
		// No report of Hopper says that its debug ports are closed. NVIDIA's own
		// verifier takes that from the measurements being those that it knows.
		Debuggable: d.unsafeFlags() || c.RIM != rimMatched,
		// BoundToCPUTEE stays false: a report does not say which machine the device is in.
		ChipID:       d.pdi,
		TCB:          attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}},
		Measurements: measurements,
		ReportData:   hex.EncodeToString(r.nonce),
		Collateral:   state,
		NVIDIA:       c,
	}
}
