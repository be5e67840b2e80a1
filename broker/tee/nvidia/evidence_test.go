package nvidia_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/nvidia"
)

// shared reads a file under ../shared/evidence/nvidia-gpu, or skips the test.
func shared(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "shared", "evidence", "nvidia-gpu", path))
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	return b
}

func sharedReport(t testing.TB, path string) []byte {
	t.Helper()
	b := shared(t, path)
	if strings.HasSuffix(path, ".dat") {
		return b
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

func newVerifier(t testing.TB, cfg nvidia.Config) *nvidia.Verifier {
	t.Helper()
	v, err := nvidia.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var lenient = nvidia.Config{OCSPOptional: true}

// TestSharedEvidence: each report with its chain that INDEX.md names.
func TestSharedEvidence(t *testing.T) {
	const base, samples, tools = "attestation-sdk/base/", "attestation-sdk/samples/", "go-nvattest-tools/"
	const coco = "trustee/nvidia/"
	for _, tc := range []struct {
		report, chain string
		// Either what it says,
		model, pdi, nonce, driver, vbios string
		// or why it is refused.
		check  string
		reason attest.Reason
	}{
		{report: coco + "hopperAttestationReport.txt", chain: coco + "hopper_cert_chain_case1.txt", model: "Hopper", pdi: "431d480fe5e87274", nonce: "931d8dd0", driver: "550.90.07", vbios: "96.00.9F.00.01"},
		{report: coco + "hopperAttestationReport.txt", chain: coco + "hopper_cert_chain_case2.txt", check: "nvidia.chain", reason: attest.ReasonMalformed},
		{report: coco + "hopperAttestationReport.txt", chain: coco + "hopper_cert_chain_case3.txt", check: "nvidia.chain", reason: attest.ReasonChain},
		{report: coco + "hopperAttestationReport.txt", chain: coco + "hopper_cert_chain_case4.txt", check: "nvidia.chain", reason: attest.ReasonChain},
		{report: coco + "hopperAttestationReport.txt", chain: coco + "hopper_signing_cert.pem", check: "nvidia.chain", reason: attest.ReasonMalformed},
		// One byte behind its signature.
		{report: coco + "hopper_coco_report1.txt", chain: coco + "hopper_coco_certs1.txt", model: "Hopper", pdi: "d1a9a24f202cb2b5", nonce: "87d8e24a", driver: "580.95.05", vbios: "96.00.74.00.1A"},
		{report: base + "hopperAttestationReport.txt", chain: base + "hopperCertChain.txt", model: "Hopper", pdi: "e23d711e1c4fbfac", nonce: "5bb22e37", driver: "580.159.03", vbios: "96.00.74.00.20"},
		{report: base + "switchAttestationReport.txt", chain: base + "switchCertChain.txt", model: "LS10", pdi: "203eb31ad9ed0008", nonce: "931d8dd0", vbios: "96.10.55.00.01"},
		{report: samples + "blackwellAttestationReport.txt", chain: samples + "blackwellCertChain.txt", model: "Blackwell", pdi: "e6de55c3bdc14277", nonce: "931d8dd0", driver: "575.32", vbios: "97.00.88.00.0F"},
		{report: samples + "hopperAttestationReport.txt", chain: samples + "hopperCertChain.txt", model: "Hopper", pdi: "6a5fafcbd9fa5ca3", nonce: "27a32824", driver: "535.86.09", vbios: "96.00.5E.00.01"},
		// What has expired of it are its RIM's certificates. It is of the same GPU as the one of base, with other firmware: the PDI stays.
		{report: samples + "hopperAttestationReportExpired.txt", chain: samples + "hopperCertChainExpired.txt", model: "Hopper", pdi: "e23d711e1c4fbfac", nonce: "931d8dd0", driver: "570.124.03", vbios: "96.00.5E.00.04"},
		{report: samples + "hopperAttestationReportInvalidSignature.txt", chain: samples + "hopperCertChain.txt", check: "nvidia.signature", reason: attest.ReasonSignature},
		{report: samples + "switchAttestationReport.txt", chain: samples + "switchCertChain.txt", model: "LS10", pdi: "203eb31ad9ed0008", nonce: "931d8dd0", vbios: "96.10.55.00.01"},
		{report: samples + "switchAttestationReportInvalidSignature.txt", chain: samples + "switchCertChain.txt", check: "nvidia.signature", reason: attest.ReasonSignature},
		{report: tools + "test_raw_gpu_attestation_report.dat", chain: tools + "test_gpu_attestation_certificate_chain.dat", model: "Hopper", pdi: "431d480fe5e87274", nonce: "931d8dd0", driver: "550.90.07", vbios: "96.00.9F.00.01"},
		// Report and chain are of two switches.
		{report: tools + "test_raw_switch_attestation_report.dat", chain: tools + "test_switch_attestation_certificate_chain.dat", check: "nvidia.signature", reason: attest.ReasonSignature},
		{report: coco + "hopperAttestationReport.txt", chain: coco + "hopper_coco_certs1.txt", check: "nvidia.signature", reason: attest.ReasonSignature},
		{report: coco + "hopperAttestationReport.txt", chain: base + "switchCertChain.txt", check: "nvidia.signature", reason: attest.ReasonSignature},
	} {
		t.Run(tc.report+" "+filepath.Base(tc.chain), func(t *testing.T) {
			ev := attest.Evidence{Type: attest.TypeNVIDIA, Report: sharedReport(t, tc.report), Endorsements: shared(t, tc.chain)}
			now := at("2025-08-21T12:00:00Z")
			cl, err := newVerifier(t, lenient).Verify(t.Context(), ev, attest.Unbound(), nil, now)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := cl.NVIDIA.(*nvidia.Claims)
			if cl.HardwareModel != tc.model || cl.ChipID != tc.pdi || !strings.HasPrefix(cl.ReportData, tc.nonce) || c.DriverVersion != tc.driver || c.VBIOSVersion != tc.vbios {
				t.Errorf("claims %+v, %+v", cl, c)
			}
			if cl.Simulated || cl.Bound || cl.BoundToCPUTEE || !cl.Debuggable || c.RIM != "absent" || c.Revocation != "unknown" || cl.Collateral.State != attest.CollateralExpired {
				t.Errorf("claims %+v, %+v", cl, c)
			}
			nonce, err := hex.DecodeString(cl.ReportData)
			if err != nil {
				t.Fatal(err)
			}
			if cl, err := newVerifier(t, lenient).Verify(t.Context(), ev, attest.BindExact(nonce), nil, now); err != nil || !cl.Bound {
				t.Errorf("bound: %v", err)
			}
			// A broker wants answers, and the present.
			_, err = newVerifier(t, nvidia.Config{}).Verify(t.Context(), ev, attest.Unbound(), nil, now)
			wantError(t, err, "nvidia.revocation", attest.ReasonCollateralMissing)
			_, err = newVerifier(t, lenient).Verify(t.Context(), ev, attest.Unbound(), nil, at("2019-01-01T00:00:00Z"))
			wantError(t, err, "nvidia.validity", attest.ReasonValidity)
		})
	}
}

// TestSharedClaims: the root that others pin, and measurements and configuration
// as they print them, of reports that TestSharedEvidence verifies.
func TestSharedClaims(t *testing.T) {
	verify := func(report, chain string) (attest.Claims, *nvidia.Claims) {
		ev := attest.Evidence{Type: attest.TypeNVIDIA, Report: sharedReport(t, report), Endorsements: shared(t, chain)}
		cl, err := newVerifier(t, lenient).Verify(t.Context(), ev, attest.Unbound(), nil, at("2025-08-21T12:00:00Z"))
		if err != nil {
			t.Fatal(err)
		}
		return cl, cl.NVIDIA.(*nvidia.Claims)
	}
	same := func(name string, cl attest.Claims, want map[string]string) {
		if len(cl.Measurements) != len(want) {
			t.Errorf("%s: %d measurements, want %d", name, len(cl.Measurements), len(want))
		}
		for i, v := range want {
			if len(i) == 1 {
				i = "0" + i
			}
			if got := cl.Measurements["measurement_"+i]; got != strings.TrimPrefix(v, "0x") {
				t.Errorf("%s: measurement %s is %s, want %s", name, i, got, v)
			}
		}
	}

	peer, _ := pem.Decode(shared(t, "trustee/nvidia/nvidia_device_root.pem"))
	ours, err := os.ReadFile("NVIDIA_Device_Identity_CA.pem")
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(ours); !bytes.Equal(block.Bytes, peer.Bytes) {
		t.Error("trustee pins another device root")
	}

	var coco struct {
		Arch         string
		Config       map[string]any
		Measurements map[string]string
	}
	if err := json.Unmarshal(shared(t, "trustee/nvidia/hopperAttestationReport-claims.txt"), &coco); err != nil {
		t.Fatal(err)
	}
	cl, c := verify("trustee/nvidia/hopperAttestationReport.txt", "trustee/nvidia/hopper_cert_chain_case1.txt")
	same("trustee", cl, coco.Measurements)
	for name, got := range map[string]string{"board_id": c.BoardID, "chip_sku": c.ChipSKU, "driver_version": c.DriverVersion, "fwid": c.FWID, "project": c.Project, "project_sku": c.ProjectSKU, "vbios_version": strings.ToLower(c.VBIOSVersion)} {
		if got != coco.Config[name] {
			t.Errorf("trustee: %s is %q, want %q", name, got, coco.Config[name])
		}
	}
	if cl.HardwareModel != coco.Arch {
		t.Errorf("trustee: model %q, want %q", cl.HardwareModel, coco.Arch)
	}

	for _, prefix := range []string{"", "switch_"} {
		var response struct {
			Record struct {
				Blocks map[string]struct {
					Value string `json:"DMTFSpecMeasurementValue"`
				} `json:"MeasurementBlocks"`
			} `json:"MeasurementRecord"`
		}
		var request struct{ Nonce string }
		if err := json.Unmarshal(shared(t, "attestation-sdk/base/"+prefix+"spdm_parsed_output.json"), &response); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(shared(t, "attestation-sdk/base/"+prefix+"spdm_req_parsed_output.json"), &request); err != nil {
			t.Fatal(err)
		}
		device := map[string]string{"": "hopper", "switch_": "switch"}[prefix]
		cl, _ := verify("attestation-sdk/base/"+device+"AttestationReport.txt", "attestation-sdk/base/"+device+"CertChain.txt")
		want := map[string]string{}
		for i, b := range response.Record.Blocks {
			want[i] = b.Value
		}
		same(device, cl, want)
		if "0x"+cl.ReportData != request.Nonce {
			t.Errorf("%s: nonce %s, want %s", device, cl.ReportData, request.Nonce)
		}
	}
}

// pickled is how the Python of NVIDIA/nvtrust writes bytes.
type pickled struct {
	B64 []byte `json:"py/b64"`
	PEM []byte `json:"pem"`
}

// TestSharedSets: lists of devices, as several SDKs write them.
func TestSharedSets(t *testing.T) {
	for _, tc := range []struct {
		file   string
		read   func(*testing.T, []byte) []sample
		n      int
		models []string
		nonce  string
		mode   string // of its GPUs
	}{
		{"attestation-sdk/base/evidence_hopper_590_12.json", flat, 1, []string{"Hopper"}, "e97b23a1", "ppcie"},
		{"nvtrust/gpu_evidence.json", flat, 8, []string{"Hopper"}, "4760e305", "ppcie"},
		{"nvtrust/switch_evidence.json", flat, 4, []string{"LS10"}, "4760e305", ""},
		{"services/blackwell-evidence.json", flat, 1, []string{"Blackwell"}, "cb86922a", "mpt"},
		{"go-nvattest-tools/test_mpt_data.json", python, 8, []string{"Blackwell"}, "cdb72201", "mpt"},
		{"go-nvattest-tools/test_ppcie_data.json", python, 12, []string{"Hopper", "LS10"}, "12345678", "ppcie"},
	} {
		t.Run(tc.file, func(t *testing.T) {
			v, seen := newVerifier(t, lenient), map[string]bool{}
			devices := tc.read(t, shared(t, tc.file))
			if len(devices) != tc.n {
				t.Fatalf("%d devices, want %d", len(devices), tc.n)
			}
			for i, d := range devices {
				cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeNVIDIA, Report: d.report, Endorsements: d.chain}, attest.Unbound(), nil, at("2026-06-01T00:00:00Z"))
				if err != nil {
					t.Errorf("device %d: %v", i, err)
					continue
				}
				c := cl.NVIDIA.(*nvidia.Claims)
				if !slices.Contains(tc.models, cl.HardwareModel) || !strings.HasPrefix(cl.ReportData, tc.nonce) || seen[cl.ChipID] || c.Device == "gpu" && c.CCMode != tc.mode {
					t.Errorf("device %d: claims %+v, %+v", i, cl, c)
				}
				seen[cl.ChipID] = true
				// Its neighbour's report.
				if len(devices) > 1 {
					_, err = v.Verify(t.Context(), attest.Evidence{Type: attest.TypeNVIDIA, Report: devices[(i+1)%tc.n].report, Endorsements: d.chain}, attest.Unbound(), nil, at("2026-06-01T00:00:00Z"))
					wantError(t, err, "nvidia.signature", attest.ReasonSignature)
				}
			}
		})
	}
}

// sample is a device's evidence in a shared file.
type sample struct{ report, chain []byte }

// flat reads the list of NVIDIA's SDK.
func flat(t *testing.T, b []byte) (out []sample) {
	var list []struct{ Certificate, Evidence []byte }
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		out = append(out, sample{e.Evidence, e.Certificate})
	}
	return out
}

// python reads the sets of Google's tools.
func python(t *testing.T, b []byte) (out []sample) {
	var set struct {
		GPUs []struct {
			AttestationReport pickled
			CertificateChains struct{ GpuAttestationCertificateChain []pickled }
		}
		NVSwitches []struct {
			Report pickled   `json:"attestation_report"`
			Chain  []pickled `json:"attestation_cert_chain"`
		}
	}
	if err := json.Unmarshal(b, &set); err != nil {
		t.Fatal(err)
	}
	chain := func(certs []pickled) (b []byte) {
		for _, c := range certs {
			b = slices.Concat(b, c.PEM, c.B64)
		}
		return b
	}
	for _, g := range set.GPUs {
		out = append(out, sample{g.AttestationReport.B64, chain(g.CertificateChains.GpuAttestationCertificateChain)})
	}
	for _, s := range set.NVSwitches {
		out = append(out, sample{s.Report.B64, chain(s.Chain)})
	}
	return out
}

// TestSharedTopology: GPUs and switches of one chassis name each other.
func TestSharedTopology(t *testing.T) {
	for name, read := range map[string]func(*testing.T) []sample{
		"nvtrust": func(t *testing.T) []sample {
			return append(flat(t, shared(t, "nvtrust/gpu_evidence.json")), flat(t, shared(t, "nvtrust/switch_evidence.json"))...)
		},
		"go-nvattest-tools": func(t *testing.T) []sample { return python(t, shared(t, "go-nvattest-tools/test_ppcie_data.json")) },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVerifier(t, lenient)
			ids, linked := map[string][]string{}, map[string][][]string{}
			for i, d := range read(t) {
				cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeNVIDIA, Report: d.report, Endorsements: d.chain}, attest.Unbound(), nil, at("2026-06-01T00:00:00Z"))
				if err != nil {
					t.Fatalf("device %d: %v", i, err)
				}
				c := cl.NVIDIA.(*nvidia.Claims)
				ids[c.Device] = append(ids[c.Device], cl.ChipID)
				if c.Device == "gpu" {
					linked["nvswitch"] = append(linked["nvswitch"], c.SwitchPDIs)
				} else {
					linked["gpu"] = append(linked["gpu"], c.GPUPDIs)
				}
			}
			if len(ids["gpu"]) != 8 || len(ids["nvswitch"]) != 4 {
				t.Fatalf("devices %v", ids)
			}
			for kind, lists := range linked {
				slices.Sort(ids[kind])
				for _, l := range lists {
					if !slices.Equal(l, ids[kind]) {
						t.Errorf("linked to %v, and there are %v", l, ids[kind])
					}
				}
			}
		})
	}
}

func ocspPEM(t testing.TB, file string) []byte {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(shared(t, "go-nvattest-tools/ocsp/"+file+"_base64encoded_ocsp_response.dat"))))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "OCSP RESPONSE", Bytes: der})
}

// TestSharedOCSP: NVIDIA's own answers, on the day they were given.
func TestSharedOCSP(t *testing.T) {
	report, chain := sharedReport(t, "go-nvattest-tools/test_raw_gpu_attestation_report.dat"), shared(t, "go-nvattest-tools/test_gpu_attestation_certificate_chain.dat")
	l2, l3, l4 := ocspPEM(t, "test_gpu_certificate_l2"), ocspPEM(t, "test_gpu_certificate_l3"), ocspPEM(t, "test_gpu_certificate_l4")
	chain = append(chain, '\n')
	all := slices.Concat(chain, l2, l3, l4)
	for name, tc := range map[string]struct {
		endorsements []byte
		now          time.Time
		reason       attest.Reason // of nvidia.revocation
	}{
		"current":           {all, at("2025-08-21T12:00:00Z"), ""},
		"before them":       {all, at("2025-08-21T06:00:00Z"), attest.ReasonCollateralMissing},
		"a day later":       {all, at("2025-08-22T07:00:00Z"), attest.ReasonCollateralMissing},
		"INDEX.md's time":   {all, at("2025-09-21T00:00:00Z"), attest.ReasonCollateralMissing},
		"one left out":      {slices.Concat(chain, l2, l4), at("2025-08-21T12:00:00Z"), attest.ReasonCollateralMissing},
		"of another chain":  {slices.Concat(all, ocspPEM(t, "test_gpu_driver_rim_l3")), at("2025-08-21T12:00:00Z"), attest.ReasonCollateralInvalid},
		"one for all":       {slices.Concat(chain, l2, l2, l2), at("2025-08-21T12:00:00Z"), attest.ReasonCollateralMissing},
		"of another device": {slices.Concat(shared(t, "attestation-sdk/base/hopperCertChain.txt"), []byte("\n"), l4), at("2025-08-21T12:00:00Z"), attest.ReasonCollateralInvalid},
	} {
		ev := attest.Evidence{Type: attest.TypeNVIDIA, Report: report, Endorsements: tc.endorsements}
		if name == "of another device" {
			ev.Report = sharedReport(t, "attestation-sdk/base/hopperAttestationReport.txt")
		}
		cl, err := newVerifier(t, nvidia.Config{}).Verify(t.Context(), ev, attest.Unbound(), nil, tc.now)
		if tc.reason != "" {
			wantError(t, err, "nvidia.revocation", tc.reason)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if c := cl.NVIDIA.(*nvidia.Claims); c.Revocation != "good" || cl.Collateral.State != attest.CollateralFresh || cl.Collateral.AgeSeconds < 5*3600 {
			t.Errorf("%s: claims %+v, %+v", name, cl, c)
		}
	}
}

// TestSharedRIMs: NVIDIA's manifests against NVIDIA's reports. Altered ones are refused, see TestSharedSignatures.
func TestSharedRIMs(t *testing.T) {
	const tools, base, samples = "go-nvattest-tools/", "attestation-sdk/base/", "attestation-sdk/samples/"
	driver, vbios := "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"
	for name, tc := range map[string]struct {
		report, chain string
		rims          map[string]string
		now           string
		want          string
		mismatches    string
	}{
		"H100": {
			tools + "test_raw_gpu_attestation_report.dat", tools + "test_gpu_attestation_certificate_chain.dat",
			map[string]string{driver: tools + "rim/" + driver + ".xml", vbios: tools + "rim/" + vbios + ".xml"},
			"2025-08-21T12:00:00Z", "matched", "[]",
		},
		"H100, later": { // its signers' certificates were for two years
			tools + "test_raw_gpu_attestation_report.dat", tools + "test_gpu_attestation_certificate_chain.dat",
			map[string]string{driver: tools + "rim/" + driver + ".xml", vbios: tools + "rim/" + vbios + ".xml"},
			"2026-04-01T00:00:00Z", "expired", "[]",
		},
		"no VBIOS": {
			tools + "test_raw_gpu_attestation_report.dat", tools + "test_gpu_attestation_certificate_chain.dat",
			map[string]string{driver: tools + "rim/" + driver + ".xml"},
			"2025-08-21T12:00:00Z", "absent", "[]",
		},
		"of another version": {
			tools + "test_raw_gpu_attestation_report.dat", tools + "test_gpu_attestation_certificate_chain.dat",
			map[string]string{driver: base + "NV_GPU_DRIVER_GH100_550.144.03.xml", vbios: tools + "rim/" + vbios + ".xml"},
			"2025-08-21T12:00:00Z", "absent", "[]",
		},
		"switch": {
			base + "switchAttestationReport.txt", base + "switchCertChain.txt",
			map[string]string{"NV_SWITCH_BIOS_5612_0002_890_9610550001": base + "switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"},
			"2026-06-01T00:00:00Z", "matched", "[]",
		},
	} {
		cfg := nvidia.Config{OCSPOptional: true, RIMs: map[string][]byte{}}
		for id, file := range tc.rims {
			cfg.RIMs[id] = shared(t, file)
		}
		cl, err := newVerifier(t, cfg).Verify(t.Context(), attest.Evidence{Type: attest.TypeNVIDIA, Report: sharedReport(t, tc.report), Endorsements: shared(t, tc.chain)}, attest.Unbound(), nil, at(tc.now))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c := cl.NVIDIA.(*nvidia.Claims); c.RIM != tc.want || fmt.Sprint(c.RIMMismatches) != tc.mismatches || cl.Debuggable != (tc.want != "matched") {
			t.Errorf("%s: %s, mismatches %s, debuggable %t", name, c.RIM, c.RIMMismatches, cl.Debuggable)
		}
	}
}

// TestSharedMalformedRIMs: fragments of manifests, with the Meta element that they lack.
func TestSharedMalformedRIMs(t *testing.T) {
	files, err := filepath.Glob("../../../../shared/evidence/nvidia-gpu/go-nvattest-tools/rim/*.xml")
	if err != nil || len(files) == 0 {
		t.Skip("no shared evidence")
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, []byte("Meta")) {
			b = bytes.Replace(b, []byte("<ns0:Payload"), []byte(`<ns0:Meta product="GH100" colloquialVersion="1"/><ns0:Payload`), 1)
		}
		name := filepath.Base(f)
		_, _, _, err = nvidia.ParseManifest(b)
		// valid_signed_xml is no manifest.
		good := !strings.HasPrefix(name, "failure_") && name != "valid_signed_xml.xml"
		// Digests of 10 bytes: a form without sense for reports of SHA-384.
		good = good && name != "success_payload_multiple_measurements.xml"
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
