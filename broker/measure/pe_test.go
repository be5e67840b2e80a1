package measure

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// cachedKernel is Debian's linux-image-6.1.0-56-cloud-amd64, 6.1.192-2, if somebody has fetched it.
const cachedKernel = "../../.cache/kernel/vmlinuz"

func kernel(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(cachedKernel)
	if err != nil {
		t.Skipf("no kernel to measure: %v", err)
	}
	return b
}

// TestAuthenticodeOfDebian: Debian signed the same digest, and a TPM recorded it (evidence/tpm/boot/uki, grub-sb).
func TestAuthenticodeOfDebian(t *testing.T) {
	b := kernel(t)
	if got := hex.EncodeToString(sum256(b)); got != "51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275" {
		t.Skipf("the kernel is another one: %s", got)
	}
	got, err := Authenticode(b, sha256.New)
	if err != nil {
		t.Fatal(err)
	}
	if want := "5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31"; hex.EncodeToString(got) != want {
		t.Errorf("%x, want %s", got, want)
	}
	inSignature(t, b, got)
}

// inSignature looks for the digest in the file's own signature, whose SpcIndirectDataContent has it.
func inSignature(t *testing.T, file, digest []byte) {
	t.Helper()
	m, err := parsePE(file)
	if err != nil || m.certLen == 0 {
		t.Fatalf("no signature: %v", err)
	}
	if !bytes.Contains(file[len(file)-m.certLen:], digest) {
		t.Errorf("the signature is not over %x", digest)
	}
}

// TestAuthenticodeOfSigner: what another program signs is what we compute.
func TestAuthenticodeOfSigner(t *testing.T) {
	if _, err := exec.LookPath("sbsign"); err != nil {
		t.Skip("sbsign is not installed")
	}
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signer"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if kind != "" {
			b = pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keyFile := write("key.pem", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	certFile := write("cert.pem", "CERTIFICATE", cert)
	plain := testPE(testSection{".text", "code"}, testSection{".data", "more"})
	in, out := write("plain.efi", "", plain), filepath.Join(dir, "signed.efi")
	if b, err := exec.Command("sbsign", "--key", keyFile, "--cert", certFile, "--output", out, in).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	signed, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Authenticode(signed, sha256.New)
	if err != nil {
		t.Fatal(err)
	}
	inSignature(t, signed, got)
	if unsigned, err := Authenticode(plain, sha256.New); err != nil || !bytes.Equal(unsigned, got) {
		t.Errorf("%x before it was signed, %v", unsigned, err)
	}
}

// TestAuthenticodeCovers: every byte counts, but those of the checksum and of the certificate table's place.
func TestAuthenticodeCovers(t *testing.T) {
	file := testPE(testSection{".text", "code"}, testSection{".data", "more"})
	m, err := parsePE(file)
	if err != nil {
		t.Fatal(err)
	}
	base, err := m.authenticode(sha256.New)
	if err != nil {
		t.Fatal(err)
	}
	for i := range file {
		changed := bytes.Clone(file)
		changed[i] ^= 0x10
		got, err := Authenticode(changed, sha256.New)
		if err != nil {
			continue // headers that no longer fit
		}
		free := i >= m.checksum && i < m.checksum+4 || i >= m.certs && i < m.certs+8
		if bytes.Equal(got, base) != free {
			t.Errorf("byte %#x: the digest changed: %v", i, !bytes.Equal(got, base))
		}
	}
}

func TestAuthenticodeRefuses(t *testing.T) {
	good := testPE(testSection{".text", "code"}, testSection{".data", "more"})
	edit := func(at int, with ...byte) []byte {
		return append(append(bytes.Clone(good[:at]), with...), good[at+len(with):]...)
	}
	const opt, table = 0x58, 0x58 + 240
	for name, file := range map[string][]byte{
		"empty": nil, "no MZ": edit(0, 'Z'), "PE header far away": edit(0x3c, 0xff, 0xff, 0xff, 0xff), "no PE": edit(0x40, 0),
		"many sections": edit(0x46, 0xff, 0xff), "short optional header": edit(0x54, 4, 0), "unknown magic": edit(opt, 7),
		"headers beyond the file": edit(opt+60, 0, 0, 0, 1), "headers that leave out the table": edit(opt+60, 1, 0, 0, 0),
		"section beyond the file": edit(table+16, 0, 0, 0, 1), "sections overlap": edit(table+16, 0, 5),
		"certificates in the middle": edit(opt+112+32, 0, 4, 0, 0, 8), "certificates over the headers": edit(opt+112+32, 0, 0, 0, 0, byte(len(good)), byte(len(good)>>8)),
		"cut": good[:700], "ELF": []byte("\x7fELF" + string(make([]byte, 100))),
	} {
		if d, err := Authenticode(file, sha256.New); err == nil {
			t.Errorf("%s: measured as %x", name, d)
		}
	}
}

func FuzzAuthenticode(f *testing.F) {
	f.Add(testPE(testSection{".text", "code"}))
	f.Add(testPE(testSection{".linux", string(testPE())}, testSection{".sdmagic", "#### LoaderInfo: systemd-stub 252 ####"}, testSection{".cmdline", "quiet"}))
	f.Fuzz(func(t *testing.T, file []byte) {
		_, _ = Authenticode(file, sha256.New)
		_, _ = UKI(file, false)
		_, _ = DirectBoot{Kernel: file, Initrd: file, Memory: 512 << 20}.TPM()
	})
}

func FuzzFirmware(f *testing.F) {
	f.Add(testFirmware())
	f.Fuzz(func(t *testing.T, file []byte) {
		_, _ = MRTD(file)
		_, _ = SNP{Firmware: file, VCPUs: 2, VCPUType: "EPYC", VMM: QEMU, GuestFeatures: 1, Kernel: []byte{}}.Digest()
	})
}
