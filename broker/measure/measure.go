// Package measure predicts what a machine will measure when it boots, from the
// files that it boots: the PCRs of a TPM, the launch digest of AMD SEV-SNP, MRTD
// and RTMRs of Intel TDX. The values stand under the names that the verifiers
// give their claims, ready to be reference values. What cannot be computed from
// files (the firmware's PCR 0, Secure Boot's PCR 7, RTMR0) is taken from an
// event log that somebody has to vouch for.
//
// The package decides nothing and knows no broker: it hashes.
package measure

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/claviger/claviger/broker/eventlog"
)

// Values are the accepted values per claim, digests in lower-case hex.
type Values map[string][]string

func (v Values) set(claim string, digests ...[]byte) {
	for _, d := range digests {
		v[claim] = append(v[claim], hex.EncodeToString(d))
	}
}

// osSeparated are the PCRs into which systemd 259 and later measures a last word early in the boot.
var osSeparated = []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14}

// setPCR sets a PCR of the SHA-256 bank to what firmware and boot loader leave
// there, and to what it is once systemd has separated the operating system from
// them: which of the two is quoted depends on the version in the initrd.
func (v Values) setPCR(i int, digest []byte) {
	name := "pcr" + strconv.Itoa(i)
	v.set(name, digest)
	if slices.Contains(osSeparated, i) {
		v.set(name, sum256(append(slices.Clone(digest), sum256([]byte("os-separator"))...)))
	}
}

// Error is an input of which nothing can be predicted.
type Error struct {
	Field string // as the flags of `claviger reference compute`: "kernel", "memory", …
	Err   error
}

func (e *Error) Error() string { return e.Field + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

func bad(field, format string, args ...any) error { return &Error{field, fmt.Errorf(format, args...)} }

// ObservedTPM takes PCRs from the event log of a machine's boot, as Linux shows
// it in binary_bios_measurements: PCR 0 (firmware), PCR 2 (option ROMs and drivers of
// devices), PCR 7 (Secure Boot) and more, as wanted.
func ObservedTPM(log []byte, more ...int) (Values, error) {
	l, err := eventlog.ParseTPM(log)
	if err != nil {
		return nil, bad("from-log", "%w", err)
	}
	pcr, touched := l.ReplayPCRs()
	v := Values{}
	for _, i := range append([]int{0, 2, 7}, more...) {
		if i < 0 || i >= len(touched) {
			return nil, bad("observe", "there is no PCR %d", i)
		}
		if !touched[i] {
			return nil, bad("from-log", "nothing is measured into PCR %d", i)
		}
		v.setPCR(i, pcr[i])
	}
	return v, nil
}

// ObservedTDX takes RTMR0 (firmware's configuration, ACPI tables, Secure Boot)
// from the Confidential Computing event log of a TD's boot.
func ObservedTDX(log []byte) (Values, error) {
	l, err := eventlog.ParseCC(log)
	if err != nil {
		return nil, bad("from-log", "%w", err)
	}
	rtmr, touched := l.ReplayRTMRs()
	if !touched[0] {
		return nil, bad("from-log", "nothing is measured into RTMR0")
	}
	v := Values{}
	v.set("rtmr0", rtmr[0][:])
	return v, nil
}

// What firmware measures beside programs (TCG PC Client Platform Firmware
// Profile, 3.3.4.5; the last two are in PCR 5 of a TPM, but in RTMR1 of a TD).
var (
	separator   = []byte{0, 0, 0, 0}
	callingApp  = []byte("Calling EFI Application from Boot Option")
	exitStarted = []byte("Exit Boot Services Invocation")
	exitDone    = []byte("Exit Boot Services Returned with Success")
)

func sum256(b []byte) []byte { d := sha256.Sum256(b); return d[:] }
func sum384(b []byte) []byte { d := sha512.Sum384(b); return d[:] }

// extend is what a register that starts at zero holds after the digests.
func extend(sum func([]byte) []byte, digests ...[]byte) []byte {
	reg := make([]byte, len(sum(nil)))
	for _, d := range digests {
		reg = sum(append(reg, d...))
	}
	return reg
}

// utf16z is s as UEFI load options: UTF-16LE with a final NUL.
func utf16z(s string) []byte {
	var out []byte
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// ParseMemory reads a size as QEMU's -m takes it: "512M", "4G", "2048" (MiB).
func ParseMemory(s string) (uint64, error) {
	shift := 20
	digits := s
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGT", s[n-1]&^0x20); i >= 0 {
			shift, digits = 10*(i+1), s[:n-1]
		}
	}
	n, err := strconv.ParseUint(digits, 10, 24)
	if err != nil || n == 0 {
		return 0, bad("memory", "%q is not a size such as 512M or 4G", s)
	}
	return n << shift, nil
}
