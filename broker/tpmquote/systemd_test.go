package tpmquote

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/tpmquote/tpmquotetest"
)

var separated = []string{"pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr5", "pcr6", "pcr7", "pcr9", "pcr12", "pcr13", "pcr14"}

// TestSystemd261 explains the boot of a real machine (Arch Linux, systemd-boot, systemd 261) that measured os-separator.
func TestSystemd261(t *testing.T) {
	log, err := os.ReadFile("testdata/systemd261.log")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("testdata/systemd261.json")
	if err != nil {
		t.Fatal(err)
	}
	r, err := attest.DecodeTPMReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	c := &Claims{}
	if err := c.Explain(dcap.NewTrail("tpm"), log, r.PCRs, Hints{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(separated, c.OSSeparator); diff != "" || c.EventLog != EventLogVerified || len(c.Boot.BootChain) != 2 {
		t.Errorf("event log %s, boot chain %v, os_separator (-want +got):\n%s", c.EventLog, c.Boot.BootChain, diff)
	}
}

// machine is a boot by the EFI stub and what systemd measures afterwards.
func machine() (log []byte, pcrs []attest.PCR) {
	log, touched := tpmquotetest.Log(
		tpmquotetest.Event{PCR: 0, Type: 8, Data: "firmware"}, tpmquotetest.Event{PCR: 4, Type: 0x80000003, Data: "kernel"},
		tpmquotetest.Event{PCR: 9, Type: evEventTag, Data: "\xed\x22\x3b\x8foptions"}, tpmquotetest.Event{PCR: 9, Type: evEventTag, Data: "\xec\x22\x3b\x8finitrd"},
		tpmquotetest.Event{PCR: 11, Type: 0x0d, Data: "section"})
	for _, i := range []int{0, 4, 8, 9, 11, 12} {
		p := attest.PCR{Index: i, Digest: make([]byte, 32)}
		if n := slices.IndexFunc(touched, func(q attest.PCR) bool { return q.Index == i }); n >= 0 {
			p = touched[n]
		}
		pcrs = append(pcrs, p)
	}
	return log, pcrs
}

func extend(pcrs []attest.PCR, index int, words ...string) {
	p := &pcrs[slices.IndexFunc(pcrs, func(p attest.PCR) bool { return p.Index == index })]
	for _, w := range words {
		p.Digest = sum(slices.Concat(p.Digest, sum([]byte(w))))
	}
}

func record(t testing.TB, pcr int, word string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"pcr": pcr, "content_type": "systemd", "content": map[string]any{"eventType": "nvpcr-init", "string": word}})
	if err != nil {
		t.Fatal(err)
	}
	return "\x1e" + string(b) + "\n"
}

// TestSystemdWords: what systemd measured after the firmware's log is explained by its own words, in its order, or by nothing.
func TestSystemdWords(t *testing.T) {
	const hardware, verity = "nvpcr-init:hardware:0x1d10200:sha256:de38", "nvpcr-init:verity:0x1d10201:000baa"
	journal := record(t, 11, "enter-initrd") + record(t, 9, "os-separator") + record(t, 9, hardware) + record(t, 9, verity) + record(t, 9, "nvpcr-separator")
	for name, c := range map[string]struct {
		pcr9        []string // measured
		log         string
		words       []string // explained
		unexplained bool
	}{
		"nothing":                        {},
		"the separator needs no log":     {pcr9: []string{"os-separator"}, words: []string{"os-separator"}},
		"both need none":                 {pcr9: []string{"os-separator", "nvpcr-separator"}, words: []string{"os-separator", "nvpcr-separator"}},
		"all of the log":                 {[]string{"os-separator", hardware, verity, "nvpcr-separator"}, journal, []string{"os-separator", hardware, verity, "nvpcr-separator"}, false},
		"a log written on since":         {[]string{"os-separator", hardware}, journal, []string{"os-separator", hardware}, false},
		"no log":                         {pcr9: []string{"os-separator", hardware}, unexplained: true},
		"another order":                  {pcr9: []string{hardware, "os-separator"}, log: journal, unexplained: true},
		"a record left out":              {pcr9: []string{"os-separator", hardware, verity}, log: strings.Replace(journal, record(t, 9, hardware), "", 1), unexplained: true},
		"not a word of systemd's":        {pcr9: []string{"nvpcr-ini"}, log: record(t, 9, "nvpcr-ini"), unexplained: true},
		"an initrd that calls itself so": {pcr9: []string{"\xec\x22\x3b\x8finitrd"}, log: record(t, 9, "\xec\x22\x3b\x8finitrd"), unexplained: true},
		"the separator twice":            {pcr9: []string{"os-separator", "os-separator"}, log: record(t, 9, "os-separator") + record(t, 9, "os-separator"), unexplained: true},
		"a record in two readings":       {pcr9: []string{hardware}, log: "\x1e" + `{"pcr":9,"pcr":8,"content":{"string":"` + hardware + `"}}`, unexplained: true},
		"more words than are read":       {pcr9: slices.Repeat([]string{hardware}, maxWords+1), log: strings.Repeat(record(t, 9, hardware), maxWords+1), unexplained: true},
	} {
		t.Run(name, func(t *testing.T) {
			log, pcrs := machine()
			extend(pcrs, 9, c.pcr9...)
			claims := &Claims{}
			if err := claims.Explain(dcap.NewTrail("tpm"), log, pcrs, Hints{SystemdLog: []byte(c.log)}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.words, claims.SystemdWords); diff != "" {
				t.Errorf("words (-want +got):\n%s", diff)
			}
			if slices.Contains(claims.PCRsUnexplained, "pcr9") != c.unexplained {
				t.Errorf("unexplained: %v", claims.PCRsUnexplained)
			}
			// Of a PCR that is not explained nothing is believed.
			if (claims.Boot.Initrd == "") != c.unexplained || (claims.Boot.CmdlineDigest == "") != c.unexplained {
				t.Errorf("boot %+v", claims.Boot)
			}
		})
	}
}

// TestSystemdElsewhere: in other PCRs only the fixed words count.
func TestSystemdElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		pcr     int
		words   []string
		phase   string
		refused bool
	}{
		"separator":               {pcr: 4, words: []string{"os-separator"}},
		"in a PCR without events": {pcr: 12, words: []string{"os-separator"}},
		"twice":                   {pcr: 4, words: []string{"os-separator", "os-separator"}, refused: true},
		"NvPCR word":              {pcr: 0, words: []string{"nvpcr-separator"}, refused: true},
		"separator in PCR 11":     {pcr: 11, words: []string{"os-separator"}, refused: true},
		"in the initrd":           {pcr: 11, words: []string{"enter-initrd"}, phase: "enter-initrd"},
		"initrd without systemd":  {pcr: 11, words: []string{"sysinit", "ready"}, phase: "ready"},
		"a phase left out":        {pcr: 11, words: []string{"enter-initrd", "ready"}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			log, pcrs := machine()
			extend(pcrs, c.pcr, c.words...)
			claims := &Claims{}
			err := claims.Explain(dcap.NewTrail("tpm"), log, pcrs, Hints{SystemdLog: []byte(record(t, c.pcr, c.words[0]))})
			if (err != nil) != c.refused || err != nil && attest.ReasonOf(err) != attest.ReasonMismatch {
				t.Fatalf("error %v", err)
			}
			if c.phase == "" && !c.refused {
				c.phase = PhaseNone
			}
			if err == nil && (claims.SystemdPhase != c.phase || c.pcr != 11 && !slices.Contains(claims.OSSeparator, pcrName(c.pcr))) {
				t.Errorf("phase %q, separator %v", claims.SystemdPhase, claims.OSSeparator)
			}
		})
	}
}
