package measure

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// evidenceDir is reference material beside the repository, which is not copied into it.
const evidenceDir = "../../../shared/evidence/"

func evidence(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(evidenceDir + name)
	if err != nil {
		t.Skipf("no reference material: %v", err)
	}
	return b
}

// TestSNPDigest compares with what sev-snp-measure's tests expect (tests/test_guest.py): all of its
// cases of QEMU and EC2 whose firmware is at hand. Empty files stand for kernel and initrd there.
func TestSNPDigest(t *testing.T) {
	amdSEV, x64 := evidence(t, "measure/sev-snp-measure/ovmf_AmdSev_suffix.bin"), evidence(t, "measure/sev-snp-measure/ovmf_OvmfX64_suffix.bin")
	if got, want := v384(launchPages(make([]byte, 48), pageNormal, fourGiB-uint64(len(amdSEV)), amdSEV)), "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"; got != want {
		t.Errorf("the firmware's digest is %s, want %s", got, want)
	}
	for _, c := range []struct {
		name     string
		firmware []byte
		vcpus    int
		vmm      string
		kernel   bool
		cmdline  string
		features uint64
		want     string
	}{
		{"kernel", amdSEV, 1, QEMU, true, "console=ttyS0 loglevel=7", 0x1, "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"},
		{"kernel, debug swap", amdSEV, 1, QEMU, true, "console=ttyS0 loglevel=7", 0x21, "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"},
		{"no command line", amdSEV, 1, QEMU, true, "", 0x1, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"},
		{"no command line, debug swap", amdSEV, 1, QEMU, true, "", 0x21, "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"},
		{"EC2", amdSEV, 1, EC2, true, "", 0x1, "7d3756157c805bf6adf617064c8552e8c1688fa1c8756f11cbf56ba5d25c9270fb69c0505c1cbe1c5c66c0e34c6ed3be"},
		{"EC2, debug swap", amdSEV, 1, EC2, true, "", 0x21, "6ae80856486b1396af8c82a40351d6ed76a20c785e9c7fa4ffa27c22d5d6313b4b3b458cd3c9968e6f89fb5d8450d7a6"},
		{"no kernel", amdSEV, 1, QEMU, false, "", 0x1, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"},
		{"no kernel, debug swap", amdSEV, 1, QEMU, false, "", 0x21, "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"},
		{"four processors", amdSEV, 4, QEMU, true, "", 0x1, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"},
		{"four processors, debug swap", amdSEV, 4, QEMU, true, "", 0x21, "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942"},
		{"OvmfX64", x64, 1, QEMU, false, "", 0x1, "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005"},
		{"OvmfX64, debug swap", x64, 1, QEMU, false, "", 0x21, "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := SNP{Firmware: c.firmware, VCPUs: c.vcpus, VCPUType: "EPYC", VMM: c.vmm, GuestFeatures: c.features, Cmdline: c.cmdline}
			if c.kernel {
				s.Kernel, s.Initrd = []byte{}, []byte{}
			}
			v, err := s.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if got := v["measurement"]; len(got) != 1 || got[0] != c.want {
				t.Errorf("%v, want %s", got, c.want)
			}
		})
	}
}

// TestSNPRefuses: what would come out wrong is an error that names the field.
func TestSNPRefuses(t *testing.T) {
	fw := testFirmware()
	good := SNP{Firmware: fw, VCPUs: 2, VCPUType: "EPYC-Milan", VMM: QEMU, GuestFeatures: 1}
	base, err := good.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*SNP)
		want   string
	}{
		{func(s *SNP) { s.VCPUType = "EPYC-Naples" }, "vcpu-type"},
		{func(s *SNP) { s.VCPUs = 0 }, "vcpus"},
		{func(s *SNP) { s.VCPUs = 5000 }, "vcpus"},
		{func(s *SNP) { s.VMM = "krun" }, "vmm"},
		{func(s *SNP) { s.GuestFeatures = 0x20 }, "guest-features"},
		{func(s *SNP) { s.Cmdline = "quiet" }, "kernel: none"},
		{func(s *SNP) { s.Kernel = []byte("k") }, "kernel hashes"},
		{func(s *SNP) { s.Firmware = fw[1:] }, "firmware"},
		{func(s *SNP) { s.Firmware = make([]byte, pageSize) }, "no OVMF table"},
	} {
		s := good
		c.change(&s)
		if _, err := s.Digest(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	for _, change := range []func(*SNP){
		func(s *SNP) { s.VCPUs = 3 }, func(s *SNP) { s.VCPUType = "EPYC-Genoa" }, func(s *SNP) { s.VMM = EC2 }, func(s *SNP) { s.GuestFeatures = 0x21 },
		func(s *SNP) { s.Firmware = bytes.Clone(fw); s.Firmware[0] ^= 1 },
	} {
		s := good
		change(&s)
		if v, err := s.Digest(); err != nil || v["measurement"][0] == base["measurement"][0] {
			t.Errorf("%v %v: the change does not count", v, err)
		}
	}
}

// TestSNPDirectBootNeedsAmdSEV: OVMF's other build has no place for hashes of a kernel.
func TestSNPDirectBootNeedsAmdSEV(t *testing.T) {
	s := SNP{Firmware: evidence(t, "measure/sev-snp-measure/ovmf_OvmfX64_suffix.bin"), VCPUs: 1, VCPUType: "EPYC", VMM: QEMU, GuestFeatures: 1, Kernel: []byte{}}
	if _, err := s.Digest(); err == nil || !strings.Contains(err.Error(), "AmdSev") {
		t.Error(err)
	}
}

func TestSignature(t *testing.T) {
	for name, want := range map[string]uint32{"EPYC": 0x800f12, "EPYC-Rome": 0x830f10, "EPYC-Milan": 0xa00f11, "EPYC-Genoa": 0xa10f10, "EPYC-Turin": 0xb00f00,
		"EPYC-v4": 0x800f12, "EPYC-IBPB": 0x800f12, "EPYC-Rome-v2": 0x830f10, "EPYC-Milan-v2": 0xa00f11, "EPYC-Genoa-v1": 0xa10f10, "EPYC-v": 0, "EPYC-v42": 0, "-v1": 0, "EPYC-Milan-IBPB": 0} {
		if got, ok := vcpuSignature(name); got != want || ok != (want != 0) {
			t.Errorf("%s is %#x, want %#x", name, got, want)
		}
	}
}

func v384(b []byte) string { v := Values{}; v.set("x", b); return v["x"][0] }
