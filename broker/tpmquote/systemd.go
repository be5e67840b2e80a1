package tpmquote

import (
	"bytes"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker/attest"
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

// explainedBySystemd says whether systemd's words lead from what the log replays to to the quoted value, and keeps them.
func (c *Claims) explainedBySystemd(p attest.PCR, from, systemdLog []byte) bool {
	switch {
	case p.Index == 9:
		for _, words := range [][]string{wordsOfPCR9(systemdLog), {osSeparator, nvpcrSeparator}, {nvpcrSeparator}} {
			if n := wordsTo(from, p.Digest, words); n > 0 {
				c.SystemdWords = words[:n]
				if slices.Contains(c.SystemdWords, osSeparator) {
					c.OSSeparator = append(c.OSSeparator, pcrName(9))
				}
				return true
			}
		}
	case p.Index == 11:
		// An initrd without systemd leaves out the first two.
		for _, phases := range [][]string{phaseNames, phaseNames[2:]} {
			if n := wordsTo(from, p.Digest, phases); n > 0 {
				c.SystemdPhase = phases[n-1]
				return true
			}
		}
	case p.Index < 8 || p.Index >= 12 && p.Index <= 14:
		if wordsTo(from, p.Digest, []string{osSeparator}) > 0 {
			c.OSSeparator = append(c.OSSeparator, pcrName(p.Index))
			return true
		}
	}
	return false
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
