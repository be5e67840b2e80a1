package tpmquote

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/eventlog"
)

// entry is an event of a log: what was hashed, and what the sender writes beside it.
type entry struct {
	pcr              int
	typ              uint32
	measured, logged string
}

// bootLog is a log of the entries, and the PCRs that they lead to; those of also are quoted too.
func bootLog(entries []entry, also ...int) (log []byte, pcrs []attest.PCR) {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0)
	log = append([]byte{0, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	log = append(le.AppendUint32(log, uint32(len(spec))), spec...)
	values := map[int][]byte{}
	for _, n := range also {
		values[n] = make([]byte, 32)
	}
	for _, e := range entries {
		d := sha256.Sum256([]byte(e.measured))
		log = le.AppendUint32(le.AppendUint32(le.AppendUint32(log, uint32(e.pcr)), e.typ), 1)
		log = append(le.AppendUint16(log, 0x0b), d[:]...)
		log = append(le.AppendUint32(log, uint32(len(e.logged))), e.logged...)
		if values[e.pcr] == nil {
			values[e.pcr] = make([]byte, 32)
		}
		values[e.pcr] = sum(slices.Concat(values[e.pcr], d[:]))
	}
	for _, n := range slices.Sorted(maps.Keys(values)) {
		pcrs = append(pcrs, attest.PCR{Index: n, Digest: values[n]})
	}
	return log, pcrs
}

func explained(t *testing.T, log []byte, pcrs []attest.PCR, h Hints) *Claims {
	t.Helper()
	c := &Claims{PCRs: map[string]string{}}
	if err := c.Explain(dcap.NewTrail("tpm"), log, pcrs, h); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestGRUBLabels: under GRUB a label decides what is the kernel's command line, so that none is claimed. What PCR 8 holds
// is the same whatever the labels are.
func TestGRUBLabels(t *testing.T) {
	const good, evil = "/vmlinuz root=/dev/mapper/root ro", "/vmlinuz root=/dev/sdb1 init=/bin/sh"
	label := func(labels ...string) []entry {
		var out []entry
		for i, text := range []string{"linux " + good, good, "linux " + evil, evil, "boot"} {
			out = append(out, entry{8, eventlog.EVIPL, text, labels[i] + text})
		}
		return out
	}
	const cmd, line = "grub_cmd: ", "kernel_cmdline: "
	for name, tc := range map[string]struct {
		entries []entry
		says    string
	}{
		"as it was":     {label(cmd, cmd, cmd, line, cmd), evil},
		"two exchanged": {label(cmd, line, cmd, cmd, cmd), good},
		"both":          {label(cmd, line, cmd, line, cmd), evil},
	} {
		log, pcrs := bootLog(tc.entries, 9)
		c := explained(t, log, pcrs, Hints{Cmdline: good})
		if c.Boot.Cmdline != "" || c.Boot.CmdlineDigest != "" || c.Measurements()["cmdline"] != "" {
			t.Errorf("%s: claims the command line %q", name, c.Boot.Cmdline)
		}
		if c.LogSays == nil || c.LogSays.Cmdline != tc.says || len(c.LogSays.Commands) != 5 {
			t.Errorf("%s: the log says %+v, want %q", name, c.LogSays, tc.says)
		}
	}
}

// TestStub: load options and initrd are claimed only if no GRUB can have read them as files, and a command line only if
// no initrd but the measured one can have been loaded.
func TestStub(t *testing.T) {
	options := func(s string) entry { return entry{9, evEventTag, string(utf16z(s)), "\xed\x22\x3b\x8f"} }
	initrd := entry{9, evEventTag, "initrd", "\xec\x22\x3b\x8f"}
	for name, tc := range map[string]struct {
		entries         []entry
		also            []int
		hint            string
		cmdline, initrd bool
	}{
		"as it was":                         {[]entry{options("quiet"), initrd}, []int{8}, "quiet", true, true},
		"firmware hands over the initrd":    {[]entry{options("quiet initrd=initrd"), initrd}, []int{8}, "", true, true},
		"no initrd":                         {[]entry{options("quiet")}, []int{8}, "quiet", true, false},
		"no initrd, options not known":      {[]entry{options("quiet")}, []int{8}, "", false, false},
		"an initrd that nobody measured":    {[]entry{options("quiet initrd=evil.img")}, []int{8}, "quiet initrd=evil.img", false, false},
		"the same within a word":            {[]entry{options("xinitrd=evil.img")}, []int{8}, "xinitrd=evil.img", false, false},
		"PCR 8 not quoted":                  {[]entry{options("quiet"), initrd}, nil, "quiet", false, false},
		"two files of GRUB":                 {[]entry{{8, eventlog.EVIPL, "boot", "grub_cmd: boot"}, options("quiet"), initrd}, nil, "quiet", false, false},
		"two files, PCR 8 not in the log":   {[]entry{{8, eventlog.EVNoAction, "", ""}, options("quiet"), initrd}, nil, "quiet", false, false},
		"three events":                      {[]entry{options("quiet"), initrd, initrd}, []int{8}, "quiet", false, false},
		"another order":                     {[]entry{initrd, options("quiet")}, []int{8}, "quiet", false, false},
		"other options than the guest says": {[]entry{options("quiet"), initrd}, []int{8}, "loud", true, true},
	} {
		log, pcrs := bootLog(tc.entries, tc.also...)
		if name == "two files, PCR 8 not in the log" {
			i := slices.IndexFunc(pcrs, func(p attest.PCR) bool { return p.Index == 8 })
			pcrs[i].Digest = sum([]byte("what GRUB did"))
		}
		c := explained(t, log, pcrs, Hints{Cmdline: tc.hint})
		if (c.Boot.CmdlineDigest != "") != tc.cmdline || (c.Boot.Initrd != "") != tc.initrd {
			t.Errorf("%s: %+v", name, c.Boot)
		}
		if c.Boot.Cmdline != "" && c.Boot.Cmdline != tc.hint || name == "other options than the guest says" && c.Boot.Cmdline != "" {
			t.Errorf("%s: command line %q", name, c.Boot.Cmdline)
		}
	}
}

func section(name, content string) []entry {
	return []entry{{11, eventlog.EVIPL, name + "\x00", name}, {11, eventlog.EVIPL, content, content}}
}

// TestUKISections: the booted system gives an image no section that it has not, nor hides that its command line was another.
func TestUKISections(t *testing.T) {
	linux, initrd, cmdline := section(".linux", "kernel"), section(".initrd", "initrd"), section(".cmdline", "good")
	for name, tc := range map[string]struct {
		entries []entry
		also    []int
		want    []string // sections claimed; nil: none
	}{
		"in order":                     {slices.Concat(linux, cmdline, initrd), []int{12}, []string{".cmdline", ".initrd", ".linux"}},
		"added later":                  {slices.Concat(linux, initrd, cmdline), []int{12}, nil},
		"PCR 12 not quoted":            {slices.Concat(linux, cmdline, initrd), nil, []string{".initrd", ".linux"}},
		"another command line":         {slices.Concat(linux, cmdline, initrd, []entry{{12, eventlog.EVIPL, "evil", "evil"}}), nil, []string{".initrd", ".linux"}},
		"an initrd that none measured": {slices.Concat(linux, cmdline), []int{12}, []string{".linux"}},
		"twice":                        {slices.Concat(linux, cmdline, cmdline), []int{12}, nil},
		"no kernel":                    {slices.Concat(cmdline, initrd), []int{12}, nil},
		"the kernel last":              {slices.Concat(cmdline, initrd, linux), []int{12}, nil},
	} {
		log, pcrs := bootLog(tc.entries, tc.also...)
		c := explained(t, log, pcrs, Hints{})
		if got := slices.Sorted(maps.Keys(c.Boot.UKI)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: claims %q, want %q", name, got, tc.want)
		}
	}
}

// TestWordsInTheLog: a phase, or os-separator, was measured whether it follows the log or stands in it.
func TestWordsInTheLog(t *testing.T) {
	phase := func(p string) entry { return entry{11, eventlog.EVIPL, p, "no phase"} }
	uki := slices.Concat(section(".linux", "kernel"), section(".initrd", "initrd"))
	ran := slices.Concat(uki, []entry{phase("enter-initrd"), phase("leave-initrd"), phase("sysinit"), phase("ready")})
	firmware, booting := bootLog(uki)
	forged, up := bootLog(ran)
	_, again := bootLog(append(slices.Clone(ran), phase("enter-initrd")))
	for name, tc := range map[string]struct {
		log  []byte
		pcrs []attest.PCR
		want string
	}{
		"none yet":            {firmware, booting, PhaseNone},
		"after the log":       {firmware, up, "ready"},
		"in the log":          {forged, up, "ready"},
		"once more by root":   {forged, again, "ready"},
		"PCR 11 is not there": {firmware, nil, ""},
	} {
		if c := explained(t, tc.log, tc.pcrs, Hints{}); c.SystemdPhase != tc.want {
			t.Errorf("%s: phase %q, want %q", name, c.SystemdPhase, tc.want)
		}
	}
	log, pcrs := bootLog([]entry{{4, 0x80000003, "kernel", "x"}, {4, 0x80000003, "os-separator", "x"}}, 12)
	if c := explained(t, log, pcrs, Hints{}); !slices.Equal(c.OSSeparator, []string{"pcr4"}) {
		t.Errorf("os_separator %q", c.OSSeparator)
	}
}

// TestBootPrograms: each program of the chain is a measurement, which can be revoked. More than a machine starts are refused.
func TestBootPrograms(t *testing.T) {
	programs := func(n int) (out []entry) {
		for i := range n {
			out = append(out, entry{4, 0x80000003, fmt.Sprint("program ", i), "x"})
		}
		return out
	}
	log, pcrs := bootLog(programs(3))
	m := explained(t, log, pcrs, Hints{}).Measurements()
	for i := range 3 {
		if want := hex.EncodeToString(sum([]byte(fmt.Sprint("program ", i)))); m[fmt.Sprint("boot_program_", i)] != want {
			t.Errorf("program %d: %v", i, m)
		}
	}
	log, pcrs = bootLog(programs(maxPrograms + 1))
	if err := (&Claims{}).Explain(dcap.NewTrail("tpm"), log, pcrs, Hints{}); attest.ReasonOf(err) != attest.ReasonMalformed {
		t.Errorf("%d programs: %v", maxPrograms+1, err)
	}
}

// TestAddTo: every event of an explained PCR is a component, and what a guest leaves out is known.
func TestAddTo(t *testing.T) {
	all := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14}
	entries := []entry{{4, 0x80000003, "kernel", "x"}, {9, eventlog.EVIPL, "grub.cfg", "y"}, {9, eventlog.EVIPL, "initrd", "z"}, {9, eventlog.EVIPL, "initrd", "z"}}
	log, pcrs := bootLog(entries, all...)
	of := func(log []byte, pcrs []attest.PCR) (out attest.Claims) {
		c := &Claims{PCRs: map[string]string{}, EventLog: EventLogAbsent}
		for _, p := range pcrs {
			c.PCRs[fmt.Sprint(p.Index)] = hex.EncodeToString(p.Digest)
		}
		if err := c.Explain(dcap.NewTrail("tpm"), log, pcrs, Hints{}); err != nil {
			t.Fatal(err)
		}
		c.AddTo(&out, "")
		return out
	}
	got := of(log, pcrs)
	want := []string{hex.EncodeToString(sum([]byte("kernel"))), hex.EncodeToString(sum([]byte("grub.cfg"))), hex.EncodeToString(sum([]byte("initrd")))}
	if !slices.Equal(got.Components, want) || got.Omits != nil || got.TPM == nil {
		t.Errorf("components %v, omits %v", got.Components, got.Omits)
	}
	if got := of(nil, pcrs); !slices.Equal(got.Omits, []string{"event_log"}) || got.Components != nil {
		t.Errorf("no log: components %v, omits %v", got.Components, got.Omits)
	}
	if got := of(log, pcrs[:3]); len(got.Omits) != len(all)-3 {
		t.Errorf("three PCRs: omits %v", got.Omits)
	}
	// PCR 9 that the log does not explain.
	short, _ := bootLog(entries[:2], all...)
	if got := of(short, pcrs); !slices.Equal(got.Omits, []string{"pcr9"}) || !slices.Equal(got.Components, want[:1]) {
		t.Errorf("PCR 9 not explained: components %v, omits %v", got.Components, got.Omits)
	}
	var many []entry
	for i := range maxComponents + 1 {
		many = append(many, entry{9, eventlog.EVIPL, fmt.Sprint(i), "x"})
	}
	if got := of(bootLog(many, all...)); !slices.Equal(got.Omits, []string{"event_log"}) || len(got.Components) != maxComponents {
		t.Errorf("many: %d components, omits %v", len(got.Components), got.Omits)
	}
}
