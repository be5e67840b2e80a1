package eventlog

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func shared(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(evidenceDir(t), "..", path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSharedTPMLogs replays logs of workstations and clouds. The values are the
// beginnings of every PCR that a log extends, and were not made with this
// package: those of the first nine are in the tests of their source, and a
// replay in twenty lines of Python finds the same and found the rest.
func TestSharedTPMLogs(t *testing.T) {
	both := func(name string) []string {
		return []string{"tpm/go-tpm-tools/eventlogs/" + name, "tpm/go-eventlog/eventlog/" + name}
	}
	attest := func(name string) []string {
		return []string{"tpm/go-attestation/attest/" + name, "tpm/go-eventlog/eventlog/" + name}
	}
	const separator = "3d458cfe" // of a PCR with nothing but EV_SEPARATOR
	for _, tc := range []struct {
		files []string
		pcrs  string
	}{
		{both("arch-linux-workstation.bin"), "0:758b773d 1:bfda688a 2:65dee4a4 3:" + separator + " 4:925d453d 5:202522f0 6:" + separator + " 7:3b4a4db4 8:47591b43"},
		{both("cos-85-amd-sev.bin"), "0:0f35c214 1:6eb40f5b 2:" + separator + " 3:" + separator + " 4:d690bdac 5:e9e0b325 6:" + separator + " 7:3365d7fa 8:9e9b6511 9:f4f2d92d"},
		{both("cos-93-amd-sev.bin"), "0:0f35c214 1:6eb40f5b 2:" + separator + " 3:" + separator + " 4:871e8343 5:74be59dc 6:" + separator + " 7:3365d7fa 8:ba18b702 9:0b1e4f9c"},
		{both("cos-101-amd-sev.bin"), "0:0f35c214 1:6eb40f5b 2:" + separator + " 3:" + separator + " 4:6d9f1a1d 5:d1a1ab23 6:" + separator + " 7:2bc6edaa 8:ebb7c847 9:b5ad662e 14:d0d95459"},
		{both("glinux-alex.bin"), "0:0e5ea849 1:97504008 2:970096d4 3:" + separator + " 4:ddb124ca 5:fb586036 6:" + separator + " 7:9d1be463"},
		{both("rhel8-uefi.bin"), "0:24af52a4 1:454220af 2:" + separator + " 3:" + separator + " 4:758a3d35 5:53d0ee36 6:" + separator + " 7:5fd54361 8:25c38740 9:d43b2f61 14:d8f57ebc"},
		{both("ubuntu-1804-amd-sev.bin"), "0:0f35c214 1:add81cbc 2:" + separator + " 3:" + separator + " 4:b4b94e84 5:0b751680 6:" + separator + " 7:61af3f49 8:c324da9d 9:2d334f1e"},
		{both("ubuntu-2104-no-dbx.bin"), "0:24af52a4 1:f7dab5fd 2:" + separator + " 3:" + separator + " 4:295aeaea 5:e4f1359a 6:" + separator + " 7:ca37324e 8:2f2559ca 9:9f278833 14:8351c654"},
		{both("ubuntu-2104-no-secure-boot.bin"), "0:24af52a4 1:45ed8540 2:" + separator + " 3:" + separator + " 4:ebc7ae25 5:47715f9f 6:" + separator + " 7:0d8847bc 8:b9a32494 9:adb87be3 14:8351c654"},
		{attest("ubuntu_2104_shielded_vm_no_secure_boot_eventlog"), "0:24af52a4 1:45ed8540 2:" + separator + " 3:" + separator + " 4:ebc7ae25 5:47715f9f 6:" + separator + " 7:0d8847bc 8:b9a32494 9:adb87be3 14:8351c654"},
		{attest("coreos_36_shielded_vm_no_secure_boot_eventlog"), "0:0f35c214 1:11a6087d 2:" + separator + " 3:" + separator + " 4:b4652543 5:1143424d 6:" + separator + " 7:93405514 8:f326bb45 9:f8bd4e93 14:d7c4cc7f"},
		{[]string{"tpm/go-tpm-tools/eventlogs/confidential-gke-debug-251000_eventlog.bin"}, "0:d0c70a93 1:f28e7dc5 2:" + separator + " 3:" + separator + " 4:18314f0c 5:7da8fcc5 6:" + separator + " 7:8c5dc451 8:98effeca 9:4df46042 14:6eb05e8a"},
		{[]string{"tpm/go-tpm-tools/eventlogs/eventlogwithsp800155.bin"}, "0:d0c70a93 1:f28e7dc5 2:" + separator + " 3:" + separator + " 4:18314f0c 5:7da8fcc5 6:" + separator + " 7:8c5dc451 8:98effeca 9:06f41037 14:6eb05e8a"},
		{[]string{"tpm/go-tpm-tools/eventlogs/gdc-host.bin"}, "0:dab77c45 1:e9c70653 2:7fde5728 3:" + separator + " 4:ded8b5d9 5:163ee251 6:" + separator + " 7:2c925260 8:8edecd4d 9:731d336f 14:306f9d8b"},
		{[]string{"tpm/go-tpm-tools/eventlogs/ubuntu-2404-amd-sevsnp.bin"}, "0:50597a27 1:57344e1c 2:" + separator + " 3:" + separator + " 4:abe8b3fa 5:0b0e1903 6:" + separator + " 7:33ad6985 8:6932a3f7 9:ce08798b 14:306f9d8b"},
		{attest("crypto_agile_eventlog"), "0:1536de22 1:f883c25e 2:" + separator + " 3:" + separator + " 4:b0af298e 5:3f2855fc 6:" + separator + " 7:3d6207f9"},
		{attest("sb_cert_eventlog"), "0:fcecb56a 4:a9296880 5:cc8618b7 7:51b30488"},
		{[]string{"tpm/rust-keylime/uefi_log.bin"}, "0:5c4103d6 1:36c21ff7 2:120249b9 3:" + separator + " 4:204e4073 5:6c603280 6:" + separator + " 7:7ab310d8 8:245709f0 9:5775cc79 14:17cdefd9"},
		{[]string{"tpm/keylime/mb_log.b64"}, "0:9d244214 1:9fd04d43 2:72001a25 3:" + separator + " 4:8a2eb1c3 5:2a22aa7c 6:" + separator + " 7:b4d80467 8:3af46c43 9:cf5d36fa 14:43f0f391"},
		{[]string{"tdx/dstack/tpm_eventlog.bin"}, "0:0cca9ec1 1:0c56546d 2:1f74355f 3:" + separator + " 4:7a94ffe8 5:a5ceb755 6:" + separator + " 7:02836eb5 9:b6f84aea 11:16c654f4"},
		{[]string{"tpm/trustauthority-client-for-go/binary_bios_measurements20"}, "0:079a2a9d 1:6b52cd17 2:af3544b4 3:" + separator + " 4:e400522f 5:386c84f8 6:9701e437 7:292aa56f 8:5ad4920b 9:53fbbb31 14:306f9d8b"},
	} {
		for _, file := range tc.files {
			t.Run(file, func(t *testing.T) {
				b := shared(t, file)
				if strings.HasSuffix(file, ".b64") {
					b = unbase64(t, string(b))
				}
				log, err := ParseTPM(b)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				pcr, touched := log.ReplayPCRs()
				for i, v := range pcr {
					if touched[i] {
						got = append(got, fmt.Sprintf("%d:%x", i, v[:4]))
					}
				}
				if s := strings.Join(got, " "); s != tc.pcrs {
					t.Errorf("PCRs %s\nwant %s", s, tc.pcrs)
				}
			})
		}
	}
}

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSharedLogsRefused: logs in the format of TPM 1.2 have SHA-1 digests only.
// Nothing of theirs is believed, whatever else is right or wrong with them
// (ebs_event_missing lacks an event, short_no_action is cut).
func TestSharedLogsRefused(t *testing.T) {
	const sha1 = "not a crypto-agile log"
	for file, want := range map[string]string{
		"tpm/go-tpm-tools/eventlogs/debian-10.bin":                    sha1,
		"tpm/go-eventlog/eventlog/debian-10.bin":                      sha1,
		"tpm/go-eventlog/eventlog/ebs_event_missing_eventlog":         sha1,
		"tpm/go-attestation/attest/ebs_event_missing_eventlog":        sha1,
		"tpm/go-eventlog/eventlog/option_rom_eventlog":                sha1,
		"tpm/go-attestation/attest/option_rom_eventlog":               sha1,
		"tpm/go-eventlog/eventlog/short_no_action_eventlog":           sha1,
		"tpm/go-attestation/attest/short_no_action_eventlog":          sha1,
		"tpm/go-eventlog/eventlog/windows_gcp_shielded_vm.json":       sha1,
		"tpm/go-attestation/attest/windows_gcp_shielded_vm.json":      sha1,
		"tpm/go-eventlog/eventlog/linux_tpm12.json":                   sha1,
		"tpm/trustauthority-client-for-go/binary_bios_measurements12": sha1,
		"tpm/go-tpm-tools/cel/cel.b64":                                "cut short", // a canonical log (CEL), which is another format
	} {
		t.Run(file, func(t *testing.T) {
			b := shared(t, file)
			switch filepath.Ext(file) {
			case ".b64":
				b = unbase64(t, string(b))
			case ".json":
				var v struct{ Log struct{ Raw []byte } }
				if err := json.Unmarshal(b, &v); err != nil || len(v.Log.Raw) == 0 {
					t.Fatalf("no log in the dump: %v", err)
				}
				b = v.Log.Raw
			}
			if _, err := ParseTPM(b); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// TestSharedDuplicateSeparator: a log with events moved behind a second
// separator replays, for the package does not know what events mean, but to
// other registers than those of the quote that it was made to go with.
func TestSharedDuplicateSeparator(t *testing.T) {
	quote := shared(t, "tdx/go-tdx-guest/cos-113-tdx-quote.dat")
	quoted := quote[48+328:][:Registers*48] // header, and the TD report up to RTMR0
	for file, want := range map[string]bool{
		"tdx/go-tdx-guest/ccel_data.dat":                                     true,
		"tdx/go-eventlog/ccel/cos-113-intel-tdx.bin":                         true,
		"tdx/go-eventlog/ccel/cos-113-intel-tdx-dupe-separator.bin":          false,
		"tdx/go-eventlog/ccel/cos-113-intel-tdx-dupe-separator-unpadded.bin": false,
	} {
		log, err := ParseCC(shared(t, file))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		rtmr, _ := log.ReplayRTMRs()
		if got := bytes.Equal(bytes.Join([][]byte{rtmr[0][:], rtmr[1][:], rtmr[2][:], rtmr[3][:]}, nil), quoted); got != want {
			t.Errorf("%s replays to the registers of the quote: %v, want %v", file, got, want)
		}
	}
	// The ACPI tables beside the logs are no logs.
	for _, file := range []string{"tdx/go-tdx-guest/ccel_table.dat", "tdx/go-eventlog/ccel/cos-113-intel-tdx.table.bin", "tdx/go-eventlog/ccel/CCEL.bin"} {
		if _, err := ParseCC(shared(t, file)); err == nil {
			t.Errorf("%s is read as a log", file)
		}
	}
}

// TestSharedPeerParse: every event of these logs has the register and the
// digest that Trustee's parser finds.
func TestSharedPeerParse(t *testing.T) {
	for _, name := range []string{"CCEL_data", "CCEL_data_ovmf", "CCEL_data_grub", "CCEL_data_grub_gke", "CCEL_AAEL_alibabacloud"} {
		var peer struct {
			Events []struct {
				Index   int `json:"index"`
				Digests []struct {
					Digest string `json:"digest"`
				} `json:"digests"`
			} `json:"uefi_event_logs"`
		}
		if err := json.Unmarshal(shared(t, "tdx/trustee/ccel/"+name+"_out.json"), &peer); err != nil {
			t.Fatal(err)
		}
		log, err := ParseCC(shared(t, "tdx/trustee/ccel/"+name))
		if err != nil {
			t.Fatal(err)
		}
		if len(log.Events) != len(peer.Events) {
			t.Errorf("%s: %d events, want %d", name, len(log.Events), len(peer.Events))
			continue
		}
		for i, e := range log.Events {
			want := peer.Events[i]
			if e.Register != want.Index || e.Type != EVNoAction && hex.EncodeToString(e.Digest) != want.Digests[0].Digest {
				t.Errorf("%s: event %d: register %d, digest %x; want %+v", name, i, e.Register, e.Digest, want)
			}
		}
	}
}
