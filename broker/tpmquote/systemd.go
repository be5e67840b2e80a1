package tpmquote

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/eventlog"
	"github.com/claviger/claviger/broker/strictjson"
)

// What systemd measures once the kernel runs, where the firmware's log cannot
// see it ("TPM2 PCR Measurements Made by systemd"; systemd-pcrphase.service(8)).
// All of it is SHA-256 of a word. Nobody can take a word back out of a PCR, and
// each is reported, so that a policy can ask for it or refuse it.
const (
	osSeparator    = "os-separator"    // once, by systemd-pcrosseparator.service
	nvpcrSeparator = "nvpcr-separator" // once, by systemd-pcrnvdone.service
	nvpcrInit      = "nvpcr-init:"     // then name, NV index and state of a register in NV memory, for each of them
)

// Limits on systemd's log.
const (
	maxWords = 64
	maxWord  = 512
)

// explainedBySystemd says whether systemd's words lead from what the log replays to to the quoted value, and which.
func explainedBySystemd(p attest.PCR, from, systemdLog []byte) (words []string, ok bool) {
	var candidates [][]string
	switch {
	case p.Index == 9:
		candidates = [][]string{wordsOfPCR9(systemdLog), {osSeparator, nvpcrSeparator}, {nvpcrSeparator}}
	case p.Index == 11:
		candidates = [][]string{phaseNames, phaseNames[2:]} // an initrd without systemd leaves out the first two
	case p.Index < 8 || p.Index >= 12 && p.Index <= 14:
		candidates = [][]string{{osSeparator}}
	}
	for _, words := range candidates {
		if n := wordsTo(from, p.Digest, words); n > 0 {
			return words[:n], true
		}
	}
	return nil, false
}

// PhaseNone is Claims.SystemdPhase where none of systemd's phases was measured.
const PhaseNone = "none"

// addWords claims what systemd measured into PCRs that came out right, whether the
// log has it as events or it follows the log: what a sender puts into the log is his choice.
func (c *Claims) addWords(proven map[int][]*eventlog.Event, words map[int][]string) {
	c.SystemdWords = words[9]
	for _, n := range slices.Sorted(maps.Keys(proven)) {
		measured := map[string]bool{}
		for _, e := range proven[n] {
			measured[string(e.Digest)] = true
		}
		for _, w := range words[n] {
			measured[string(sum([]byte(w)))] = true
		}
		if n != 11 && measured[string(sum([]byte(osSeparator)))] {
			c.OSSeparator = append(c.OSSeparator, pcrName(n))
		}
		if n == 11 {
			c.SystemdPhase = PhaseNone
			for _, phase := range phaseNames {
				if measured[string(sum([]byte(phase)))] {
					c.SystemdPhase = phase // the furthest: a word can be added, and none taken back
				}
			}
		}
	}
}

// phaseNames are the words for PCR 11, in order.
var phaseNames = []string{"enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final"}

// wordsTo says after how many words from becomes want; 0: after none.
func wordsTo(from, want []byte, words []string) int {
	for i, w := range words {
		if from = sum(slices.Concat(from, sum([]byte(w)))); bytes.Equal(from, want) {
			return i + 1
		}
	}
	return 0
}

// wordsOfPCR9 reads systemd's log, a sequence of JSON texts (RFC 7464), as far
// as it is about PCR 9 and has only the words above: the log is the guest's, and
// anything else in that PCR is not explained by calling it systemd's.
func wordsOfPCR9(log []byte) []string {
	var words []string
	for _, text := range bytes.Split(log, []byte{0x1e}) {
		var r struct {
			PCR     *int `json:"pcr"`
			Content struct {
				String string `json:"string"`
			} `json:"content"`
		}
		if text = bytes.TrimSpace(text); len(text) == 0 {
			continue
		}
		if err := strictjson.Unmarshal(text, &r); err != nil {
			return words
		}
		if r.PCR == nil || *r.PCR != 9 {
			continue
		}
		if len(words) == maxWords || !wordOfPCR9(r.Content.String, words) {
			return words
		}
		words = append(words, r.Content.String)
	}
	return words
}

func wordOfPCR9(word string, before []string) bool {
	switch word {
	case osSeparator, nvpcrSeparator:
		return !slices.Contains(before, word)
	}
	return strings.HasPrefix(word, nvpcrInit) && len(word) <= maxWord && printable(word)
}
