package tpmquote

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/eventlog"
)

// States of Claims.EventLog.
const (
	EventLogAbsent   = "absent"   // no log came with the quote
	EventLogVerified = "verified" // the log replays to every quoted PCR
	EventLogPartial  = "partial"  // there are quoted PCRs that it does not touch: see PCRsUnexplained
)

// Values of Boot.SecureBoot.
const (
	SecureBootOn      = "on"
	SecureBootOff     = "off"
	SecureBootUnknown = "unknown"
)

// Limits on what of an event log becomes claims.
const (
	maxEvents     = 256
	maxEventText  = 4 << 10
	maxComponents = 1024
	maxPrograms   = 64 // in PCR 4; firmware, boot loaders and kernel are a handful
)

// Claims are the claims of a TPM quote. Digests are lower-case hex.
type Claims struct {
	AK AK  `json:"ak"`
	EK *EK `json:"ek,omitempty"` // absent where the AK has a certificate of its own

	// Clock is TPMS_CLOCK_INFO. safe is false after the TPM lost power unexpectedly.
	Clock string `json:"clock_ms"`
	Safe  bool   `json:"safe"`
	// FirmwareVersion, as 16 hex digits, and the counts of resets (boots) and restarts. A TPM obfuscates them for keys outside of the
	// endorsement and platform hierarchy (TPM 2.0 Library, Part 1, "Obfuscation"), and the guest chooses the key: they are there only for
	// an activated AK that is a primary key of one of these.
	FirmwareVersion string  `json:"firmware_version,omitempty"`
	ResetCount      *uint32 `json:"reset_count,omitempty"`
	RestartCount    *uint32 `json:"restart_count,omitempty"`

	PCRs            map[string]string `json:"pcrs"` // the quoted ones of the SHA-256 bank, by number
	EventLog        string            `json:"event_log"`
	PCRsUnexplained []string          `json:"pcrs_unexplained,omitempty"` // quoted, not zero, and not in the log (IMA's 10, for one)
	// SystemdPhase is the furthest phase that was measured into PCR 11, whoever measured it ("enter-initrd", …), or PhaseNone;
	// empty where the PCR is not explained.
	SystemdPhase string `json:"systemd_phase,omitempty"`
	// OSSeparator are the quoted PCRs that end with systemd's word "os-separator" (systemd 259 and later):
	// the operating system runs, and what precedes it there was measured by firmware and boot loader.
	OSSeparator []string `json:"os_separator,omitempty"`
	// SystemdWords is what systemd measured into PCR 9 after the firmware's log, in order.
	SystemdWords []string `json:"systemd_words,omitempty"`

	Boot Boot `json:"boot"`
	// LogSays is what only the labels of the log say. Nobody vouches for it: whoever sends the log can write others.
	LogSays *LogSays `json:"log_says,omitempty"`

	Events        []Event `json:"events,omitempty"`
	EventsOmitted int     `json:"events_omitted,omitempty"`

	components []string // digests of all events in PCRs that came out right
	tooMany    bool     // there are more
}

// AK is the attestation key.
type AK struct {
	Name      string `json:"name"` // TPM name: algorithm and digest of its public area; where a certificate vouches for the key, and nobody for the rest of that, the key's SHA-256 (SubjectPublicKeyInfo)
	Algorithm string `json:"algorithm"`
	Trust     string `json:"trust"` // one of Trust…
	Issuer    string `json:"issuer,omitempty"`
}

// EK are the claims of an endorsement key's certificate.
type EK struct {
	Digest       string `json:"digest"` // SHA-256 of its SubjectPublicKeyInfo, hex; the chip id
	Certificate  string `json:"certificate_sha256"`
	Issuer       string `json:"issuer"`
	Serial       string `json:"serial"`       // hex
	Manufacturer string `json:"manufacturer"` // TCG vendor id, for example "id:494E5443"
	Model        string `json:"model"`
	Version      string `json:"version"` // of the firmware
}

// How an attestation key came to be believed.
const (
	TrustActivation  = "ek_activation"
	TrustCertificate = "ak_certificate"
	TrustHardware    = "hardware_report" // a CPU TEE's report covers it (Azure)
	TrustNone        = "none"            // only where evidence is looked at from a file
)

// Boot is what the log shows of the boot, each part only if the log leaves no
// second reading: types and labels of events are not measured, so that the digests
// alone must say what a thing is. Boot means nothing by itself: what wrote
// PCR 8 to 15 is what BootChain says, so pin that (or PCR 4) first.
type Boot struct {
	SecureBoot string `json:"secure_boot"`
	// BootChain are the Authenticode SHA-256 digests of the EFI programs started, in order: boot loaders, then the kernel.
	BootChain []string `json:"boot_chain,omitempty"`
	// CmdlineDigest is what the EFI stub measured: SHA-256 of the UTF-16LE text with a final NUL. It is claimed only where
	// no GRUB ran (PCR 8 is quoted, and empty), and where it decides the initrd: that was measured, or the text is known and
	// names none. (The stub does not measure one that "initrd=" names.)
	CmdlineDigest string `json:"cmdline_digest,omitempty"`
	Cmdline       string `json:"cmdline,omitempty"`
	Initrd        string `json:"initrd,omitempty"` // SHA-256 of the file, by the EFI stub
	// UKI are SHA-256 digests of a unified kernel image's sections, by systemd-stub. Its .cmdline is among them only if the
	// boot loader gave no other one (PCR 12 is quoted, and holds nothing but systemd's os-separator).
	UKI map[string]string `json:"uki,omitempty"`
}

// LogSays are contents of PCR 8 and 9 under GRUB. The contents are measured, and
// pcr8 and pcr9 pin them; what they mean is not. GRUB measures "linux F ARGS" as a command and "F ARGS" as a command
// line: a command "F ARGS", which fails, or a function that is called linux, leaves the same digests.
type LogSays struct {
	Cmdline  string   `json:"cmdline,omitempty"` // the last that the log labels as the kernel's
	Commands []string `json:"grub_commands,omitempty"`
	Files    []string `json:"grub_files,omitempty"` // digests, in the order of reading
}

// Event is one measured event. PCR and Digest are proven by the replay, Text and
// Variable shown only if the digest covers them. Type is the log's word.
type Event struct {
	PCR      int       `json:"pcr"`
	Type     string    `json:"type"`
	Digest   string    `json:"digest"`
	Verified bool      `json:"verified"` // the digest is that of the event's data
	Text     string    `json:"text,omitempty"`
	Variable *Variable `json:"variable,omitempty"`
}

// Variable is a UEFI variable, for example SecureBoot.
type Variable struct {
	GUID  string `json:"guid"`
	Name  string `json:"name"`
	Value string `json:"value"` // hex, at most 64 bytes
}

// NewClaims makes the claims of a verified quote: ak and ek are what the
// caller found out about the key.
func NewClaims(q Quote, pcrs []attest.PCR, ak AK, ek *EK) *Claims {
	c := &Claims{
		AK: ak, EK: ek,
		Clock: strconv.FormatUint(q.attest.ClockInfo.Clock, 10),
		Safe:  bool(q.attest.ClockInfo.Safe),
		PCRs:  map[string]string{}, EventLog: EventLogAbsent, Boot: Boot{SecureBoot: SecureBootUnknown},
	}
	for _, p := range pcrs {
		c.PCRs[strconv.Itoa(p.Index)] = hex.EncodeToString(p.Digest)
	}
	if name, err := hex.DecodeString(ak.Name); err == nil && ak.Trust == TrustActivation && q.inClearHierarchy(name) {
		c.FirmwareVersion = fmt.Sprintf("%016x", q.attest.FirmwareVersion)
		c.ResetCount, c.RestartCount = new(q.attest.ClockInfo.ResetCount), new(q.attest.ClockInfo.RestartCount)
	}
	return c
}

// measuredPCRs are those into which firmware, boot loaders and systemd measure. The kernel fills 10 (IMA), and anybody those from 15 on.
var measuredPCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14}

// AddTo adds to the normalised claims what they take from a quote: measurements, components, and what was left out.
// prefix is put before the names of measurements, where nothing ties the TPM to the machine that the other claims are about.
func (c *Claims) AddTo(claims *attest.Claims, prefix string) {
	if claims.Measurements == nil {
		claims.Measurements = map[string]string{}
	}
	for name, d := range c.Measurements() {
		claims.Measurements[prefix+name] = d
	}
	seen := map[string]bool{}
	for _, d := range c.components {
		if !seen[d] {
			seen[d] = true
			claims.Components = append(claims.Components, d)
		}
	}
	if c.EventLog == EventLogAbsent || c.tooMany {
		claims.Omits = append(claims.Omits, "event_log")
	}
	for _, n := range measuredPCRs {
		name := pcrName(n)
		if _, quoted := c.PCRs[strconv.Itoa(n)]; !quoted || slices.Contains(c.PCRsUnexplained, name) {
			claims.Omits = append(claims.Omits, name)
		}
	}
	claims.TPM = c
}

// Measurements are the claims that reference values can list.
func (c *Claims) Measurements() map[string]string {
	m := map[string]string{}
	for n, d := range c.PCRs {
		m["pcr"+n] = d
	}
	for n, program := range c.Boot.BootChain {
		m[fmt.Sprintf("boot_program_%d", n)] = program // so that each can be revoked
	}
	for name, v := range map[string]string{
		"boot_chain": strings.Join(c.Boot.BootChain, ","), "cmdline": c.Boot.CmdlineDigest, "initrd": c.Boot.Initrd,
	} {
		if v != "" {
			m[name] = v
		}
	}
	for name, d := range c.Boot.UKI {
		m["uki"+strings.ReplaceAll(name, ".", "_")] = d
	}
	return m
}

// Hints are the guest's own words about its boot. They become claims only where quoted PCRs bear them out.
type Hints struct {
	Cmdline    string // of the kernel
	SystemdLog []byte // its records about PCR 9
}

// Explain makes the check event_log: it replays the log against the quoted PCRs
// and takes claims from it. A PCR that the log touches has to come out right, or
// every entry may be a lie: with the log alone, or with what systemd is known to
// measure after it. Only PCR 9, into which systemd measures words of each
// machine's own, may stay unexplained; then nothing is claimed about it.
func (c *Claims) Explain(t *dcap.Trail, raw []byte, pcrs []attest.PCR, hints Hints) error {
	if len(raw) == 0 {
		t.Skip("event_log", "no event log")
		return nil
	}
	log, err := eventlog.ParseTPM(raw)
	if err != nil {
		return t.Fail("event_log", attest.ReasonMalformed, "%w", err)
	}
	replayed, touched := log.ReplayPCRs()
	proven, words := map[int][]*eventlog.Event{}, map[int][]string{}
	c.EventLog = EventLogVerified
	for _, p := range pcrs {
		said, explained := explainedBySystemd(p, replayed[p.Index], hints.SystemdLog)
		switch {
		case bytes.Equal(replayed[p.Index], p.Digest) || explained:
			words[p.Index] = said
			proven[p.Index] = []*eventlog.Event{}
		case p.Index < 8 || touched[p.Index] && p.Index != 9: // firmware logs all that it measures, into 0 to 7
			return t.Fail("event_log", attest.ReasonMismatch, "PCR %d is %x, but the log replays to %x", p.Index, p.Digest, replayed[p.Index])
		default:
			c.EventLog = EventLogPartial
			c.PCRsUnexplained = append(c.PCRsUnexplained, pcrName(p.Index))
		}
	}
	for i := range log.Events {
		e := &log.Events[i]
		if e.Type == eventlog.EVNoAction {
			continue // in no register: anybody could have written it
		}
		if events, ok := proven[e.Register]; ok {
			proven[e.Register] = append(events, e)
			if len(c.components) < maxComponents {
				c.components = append(c.components, hex.EncodeToString(e.Digest))
			} else {
				c.tooMany = true
			}
			c.addEvent(e)
		}
	}
	c.addWords(proven, words)
	c.Boot = boot(proven, hints.Cmdline)
	c.LogSays = readGRUB(proven)
	if n := len(c.Boot.BootChain); n > maxPrograms {
		return t.Fail("event_log", attest.ReasonMalformed, "%d programs in PCR 4, more than %d", n, maxPrograms)
	}
	t.Pass("event_log", "%d events, %s", len(log.Events), c.EventLog)
	return nil
}

func (c *Claims) addEvent(e *eventlog.Event) {
	if len(c.Events) == maxEvents {
		c.EventsOmitted++
		return
	}
	out := Event{PCR: e.Register, Type: eventlog.TypeName(e.Type), Digest: hex.EncodeToString(e.Digest)}
	_, out.Verified = e.Content()
	if s, ok := e.Text(); ok && len(s) <= maxEventText {
		out.Text = s
	}
	if v, ok := e.Variable(); ok && len(v.Value) <= 64 {
		out.Variable = &Variable{v.GUID, v.Name, hex.EncodeToString(v.Value)}
	}
	c.Events = append(c.Events, out)
}

// efiGlobal is EFI_GLOBAL_VARIABLE.
const efiGlobal = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// boot reads the events of the PCRs whose replay came out right.
func boot(pcr map[int][]*eventlog.Event, cmdline string) Boot {
	b := Boot{SecureBoot: SecureBootUnknown}
	// PFP 3.3.4.8: the first thing measured into PCR 7 is the variable SecureBoot.
	if e := pcr[7]; len(e) > 0 {
		if v, ok := e[0].Variable(); ok && v.GUID == efiGlobal && v.Name == "SecureBoot" {
			b.SecureBoot = SecureBootOff
			if len(v.Value) == 1 && v.Value[0] == 1 {
				b.SecureBoot = SecureBootOn
			}
		}
	}
	for _, e := range pcr[4] {
		if !firmwareMark(e) {
			b.BootChain = append(b.BootChain, hex.EncodeToString(e.Digest))
		}
	}
	// GRUB reads files into the same PCR 9, and measures what it does into PCR 8.
	if grub, ok := pcr[8]; ok && len(grub) == 0 {
		b.stub(pcr[9], cmdline)
	}
	overriding, ok := pcr[12]
	b.uki(pcr[11], ok && len(overriding) == 0)
	return b
}

// firmwareMark says whether e is one of the marks that firmware sets in PCR 4:
// a separator or an action, by their content. All else counts as a program, whatever its type says.
func firmwareMark(e *eventlog.Event) bool {
	content, ok := e.Content()
	if !ok {
		return false
	}
	switch string(content) {
	case "\x00\x00\x00\x00", "\xff\xff\xff\xff",
		"Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option":
		return true
	}
	return false
}

// Tags of the Linux EFI stub (drivers/firmware/efi/libstub/efi-stub-helper.c), as TCG_PCClientTaggedEvent.
const (
	tagInitrd      = 0x8F3B22EC
	tagLoadOptions = 0x8F3B22ED
	evEventTag     = 0x06
)

// stub reads PCR 9 as the EFI stub leaves it: the load options, then the initrd, and nothing else.
func (b *Boot) stub(events []*eventlog.Event, cmdline string) {
	var tags []uint32
	for _, e := range events {
		if e.Type != evEventTag || len(e.Data) < 4 {
			return
		}
		tags = append(tags, binary.LittleEndian.Uint32(e.Data))
	}
	switch {
	case slices.Equal(tags, []uint32{tagLoadOptions, tagInitrd}):
		b.Initrd = hex.EncodeToString(events[1].Digest)
	case slices.Equal(tags, []uint32{tagLoadOptions}):
	default:
		return
	}
	known := bytes.Equal(sum(utf16z(cmdline)), events[0].Digest) && printable(cmdline)
	if b.Initrd == "" && !(known && !strings.Contains(cmdline, "initrd=")) {
		return // it may name one, which the stub reads and does not measure
	}
	b.CmdlineDigest = hex.EncodeToString(events[0].Digest)
	if known {
		b.Cmdline = cmdline
	}
}

// utf16z is s as UEFI load options: UTF-16LE with a final NUL.
func utf16z(s string) []byte {
	var out []byte
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r > 0x7e })
}

// readGRUB reads what the log calls GRUB's commands (PCR 8) and files (PCR 9).
func readGRUB(pcr map[int][]*eventlog.Event) *LogSays {
	s := &LogSays{}
	for _, e := range pcr[8] {
		text, ok := e.Text()
		if !ok || e.Type != eventlog.EVIPL {
			return nil
		}
		s.Commands = append(s.Commands, text)
		if bytes.HasPrefix(e.Data, []byte("kernel_cmdline: ")) {
			s.Cmdline = text
		}
	}
	for _, e := range pcr[9] {
		if e.Type != eventlog.EVIPL {
			return nil
		}
		s.Files = append(s.Files, hex.EncodeToString(e.Digest))
	}
	if s.Commands == nil && s.Files == nil {
		return nil
	}
	return s
}

// ukiSections is systemd-stub's order of measurement (UKI specification, "PCR 11").
var ukiSections = []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto", ".hwids"}

// uki reads PCR 11 as systemd-stub leaves it: for each section the digest of its
// name with a NUL, then that of its content, in its order, the kernel first. Names are recognised by
// digest, not by label. ownCmdline: no other command line was used.
func (b *Boot) uki(events []*eventlog.Event, ownCmdline bool) {
	order := map[string]int{}
	for i, n := range ukiSections {
		order[string(sum([]byte(n+"\x00")))] = i
	}
	if len(events) == 0 || len(events)%2 != 0 {
		return
	}
	sections, last := map[string]string{}, -1
	for pair := range slices.Chunk(events, 2) {
		i, ok := order[string(pair[0].Digest)]
		if !ok || i <= last || last < 0 && i != 0 {
			return // a later program's, or nobody's
		}
		sections[ukiSections[i]], last = hex.EncodeToString(pair[1].Digest), i
	}
	// As for the stub: without an initrd of the image's, the command line may name another.
	if sections[".initrd"] == "" && b.CmdlineDigest == "" {
		ownCmdline = false
	}
	if !ownCmdline {
		delete(sections, ".cmdline")
	}
	b.UKI = sections
}
