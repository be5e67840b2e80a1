package measure

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/eventlog"
)

// TestRTMRsOfHardware: a TD's quote, with the digests of its kernel, command line and initrd beside it.
func TestRTMRsOfHardware(t *testing.T) {
	var doc struct {
		Quote    string
		EventLog string `json:"event_log"`
	}
	if err := json.Unmarshal(evidence(t, "tdx/dstack/tdx-lite-getquote.json"), &doc); err != nil {
		t.Fatal(err)
	}
	var events []struct {
		IMR    int
		Type   uint32 `json:"event_type"`
		Digest string
	}
	if err := json.Unmarshal([]byte(doc.EventLog), &events); err != nil {
		t.Fatal(err)
	}
	quote := decode(t, doc.Quote)
	digests := map[int][][]byte{}
	for _, e := range events {
		digests[e.IMR] = append(digests[e.IMR], decode(t, e.Digest))
	}
	const body = 48 + 328 // header; offset of RTMR0 in TDREPORT
	if got := rtmr1(digests[1][0])[0]; !bytes.Equal(got, quote[body+48:][:48]) {
		t.Errorf("RTMR1 is %x", got)
	}
	if got := extend(sum384, digests[2]...); len(digests[2]) != 2 || !bytes.Equal(got, quote[body+96:][:48]) {
		t.Errorf("RTMR2 is %x of %d digests", got, len(digests[2]))
	}
}

// TestRTMRsOfLog: the log of a TD of OVMF that booted a kernel directly.
func TestRTMRsOfLog(t *testing.T) {
	raw := evidence(t, "tdx/trustee/ccel/CCEL_data_ovmf")
	log, err := eventlog.ParseCC(raw)
	if err != nil {
		t.Fatal(err)
	}
	rtmr, _ := log.ReplayRTMRs()
	var digests [3][][]byte
	for _, e := range log.Events {
		if e.Type != eventlog.EVNoAction {
			digests[e.Register-1] = append(digests[e.Register-1], e.Digest)
		}
	}
	if got := rtmr1(digests[1][0])[1]; !bytes.Equal(got, rtmr[1][:]) {
		t.Errorf("RTMR1 is %x, the log replays to %x", got, rtmr[1])
	}
	if got := extend(sum384, digests[2]...); len(digests[2]) != 2 || !bytes.Equal(got, rtmr[2][:]) {
		t.Errorf("RTMR2 is %x, the log replays to %x", got, rtmr[2])
	}
	v, err := ObservedTDX(raw)
	if err != nil {
		t.Fatal(err)
	}
	v.want(t, "rtmr0", hex.EncodeToString(rtmr[0][:]))
}

func decode(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMRTD writes out by hand what the TDX module hashes for testFirmware. No
// recorded MRTD comes with its firmware, so hardware has not been asked.
func TestMRTD(t *testing.T) {
	fw := testFirmware()
	entry := func(op string, gpa uint64) []byte {
		b := make([]byte, 128)
		copy(b, op)
		binary.LittleEndian.PutUint64(b[16:], gpa)
		return b
	}
	want := func(passes bool) string {
		h := sha512.New384()
		for page := range uint64(2) {
			h.Write(entry("MEM.PAGE.ADD", 0xffffe000+page*4096))
			for i := uint64(0); !passes && i < 4096; i += 256 {
				h.Write(entry("MR.EXTEND", 0xffffe000+page*4096+i))
				h.Write(fw[page*4096+i:][:256])
			}
		}
		for i := uint64(0); passes && i < 8192; i += 256 {
			h.Write(entry("MR.EXTEND", 0xffffe000+i))
			h.Write(fw[i:][:256])
		}
		h.Write(entry("MEM.PAGE.ADD", 0x810000))
		h.Write(entry("MEM.PAGE.ADD", 0x811000))
		return hex.EncodeToString(h.Sum(nil))
	}
	v, err := MRTD(fw)
	if err != nil {
		t.Fatal(err)
	}
	if m := v["mrtd"]; len(m) != 2 || m[0] != want(false) || m[1] != want(true) {
		t.Errorf("%v", m)
	}
}

func TestMRTDRefuses(t *testing.T) {
	good := testFirmware()
	at := bytes.Index(good, []byte("TDVF"))
	edit := func(offset int, with uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at+offset:], with)
		return b
	}
	for _, c := range []struct {
		name, want string
		firmware   []byte
	}{
		{"signature", "no signature", edit(0, 7)}, {"version", "version 2", edit(8, 2)}, {"count", "regions", edit(12, 1000)},
		{"offset", "of the image", edit(16, 4096)}, {"raw size", "of the image", edit(20, 4096)}, {"address", "whole pages", edit(24, 4097)},
		{"address above 4 GiB", "below 4 GiB", edit(28, 1)}, {"size", "whole pages", edit(32, 100)}, {"huge", "whole pages", edit(36, 1)},
		{"type", "type 2", edit(40, 2)}, {"both attributes", "not there", edit(44, 3)}, {"nothing measured", "no section", edit(44, 0)},
	} {
		if _, err := MRTD(c.firmware); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
