package testservers

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"unicode/utf16"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Boot is what a machine measures when it boots a kernel with EFI stub from
// firmware, in the order and form of OVMF and Linux 6.1. Tests extend it into a
// software TPM in place of firmware.
type Boot struct {
	Firmware string // stands for the firmware volume
	Kernel   [32]byte
	Cmdline  string
	Initrd   [32]byte
}

// NewBoot is a boot of made-up parts.
func NewBoot() Boot {
	return Boot{Firmware: "firmware 1", Kernel: sha256.Sum256([]byte("kernel 1")), Cmdline: "console=ttyS0 quiet", Initrd: sha256.Sum256([]byte("initrd 1"))}
}

type measured struct {
	pcr    uint32
	typ    uint32
	digest [32]byte
	data   []byte
}

func (b Boot) events() []measured {
	whole := func(pcr, typ uint32, data []byte) measured { return measured{pcr, typ, sha256.Sum256(data), data} }
	secureBoot := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	secureBoot = binary.LittleEndian.AppendUint64(secureBoot, 10)
	secureBoot = binary.LittleEndian.AppendUint64(secureBoot, 1)
	secureBoot = append(append(secureBoot, wide("SecureBoot")...), 1)
	tagged := func(tag uint32, label string, digest [32]byte) measured {
		d := binary.LittleEndian.AppendUint32(nil, tag)
		d = binary.LittleEndian.AppendUint32(d, uint32(len(label)+1))
		return measured{9, 6, digest, append(append(d, label...), 0)}
	}
	list := []measured{
		whole(0, 8, []byte("\x00\x00")),
		{0, 0x80000008, sha256.Sum256([]byte(b.Firmware)), make([]byte, 16)},
		whole(7, 0x80000001, secureBoot),
		whole(4, 0x80000007, []byte("Calling EFI Application from Boot Option")),
	}
	for pcr := range uint32(8) {
		list = append(list, whole(pcr, 4, make([]byte, 4)))
	}
	return append(list,
		measured{4, 0x80000003, b.Kernel, make([]byte, 32)},
		tagged(0x8F3B22ED, "LOADED_IMAGE::LoadOptions", sha256.Sum256(append(wide(b.Cmdline), 0, 0))),
		tagged(0x8F3B22EC, "Linux initrd", b.Initrd),
	)
}

func wide(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// Log writes the event log to a file and returns its path.
func (b Boot) Log(t testing.TB) string {
	t.Helper()
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, 1)
	spec = le.AppendUint16(spec, 0x000b)
	spec = append(le.AppendUint16(spec, 32), 0)
	var out bytes.Buffer
	out.Write(le.AppendUint32(nil, 0))
	out.Write(le.AppendUint32(nil, 3))
	out.Write(make([]byte, 20))
	out.Write(le.AppendUint32(nil, uint32(len(spec))))
	out.Write(spec)
	for _, e := range b.events() {
		h := le.AppendUint32(nil, e.pcr)
		h = le.AppendUint32(h, e.typ)
		h = le.AppendUint32(h, 1)
		h = le.AppendUint16(h, 0x000b)
		h = append(h, e.digest[:]...)
		h = le.AppendUint32(h, uint32(len(e.data)))
		out.Write(append(h, e.data...))
	}
	path := filepath.Join(t.TempDir(), "eventlog")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Extend measures the boot into the TPM behind the socket.
func (b Boot) Extend(t testing.TB, socket string) {
	t.Helper()
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	for _, e := range b.events() {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(e.pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: e.digest[:]}}},
		}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Values are the reference values of the boot.
func (b Boot) Values() map[string]string {
	var pcrs [24][32]byte
	for _, e := range b.events() {
		pcrs[e.pcr] = sha256.Sum256(append(pcrs[e.pcr][:], e.digest[:]...))
	}
	cmdline := sha256.Sum256(append(wide(b.Cmdline), 0, 0))
	out := map[string]string{"cmdline": hex.EncodeToString(cmdline[:]), "initrd": hex.EncodeToString(b.Initrd[:])}
	for _, i := range []int{0, 2, 4, 7} {
		out["pcr"+strconv.Itoa(i)] = hex.EncodeToString(pcrs[i][:])
	}
	return out
}
