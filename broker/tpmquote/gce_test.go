package tpmquote

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
)

// recorded are quotes of real VMs on Google Compute Engine (Container-Optimized
// OS 85), as go-tpm-tools keeps them.
const recorded = "../../../shared/evidence/tpm/go-tpm-tools/attestations/"

// fields reads a protobuf message: the byte strings and numbers by field.
func fields(t testing.TB, b []byte) (bytes map[protowire.Number][][]byte, numbers map[protowire.Number]uint64) {
	t.Helper()
	bytes, numbers = map[protowire.Number][][]byte{}, map[protowire.Number]uint64{}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			bytes[num], b = append(bytes[num], v), b[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			numbers[num], b = v, b[n:]
		default:
			t.Fatalf("wire type %d", typ)
		}
	}
	return bytes, numbers
}

// recordedQuote is the quote over the SHA-256 bank of one recording.
func recordedQuote(t testing.TB, file string) (ak []byte, q Quote, pcrs []attest.PCR, log []byte) {
	t.Helper()
	raw, err := os.ReadFile(recorded + file)
	if err != nil {
		t.Skipf("no recorded quotes: %v", err)
	}
	top, _ := fields(t, raw)
	for _, msg := range top[2] {
		quote, _ := fields(t, msg)
		bank, numbers := fields(t, quote[3][0])
		if numbers[1] != 0x0b {
			continue
		}
		for _, entry := range bank[2] {
			v, k := fields(t, entry)
			pcrs = append(pcrs, attest.PCR{Index: int(k[1]), Digest: v[2][0]})
		}
		slices.SortFunc(pcrs, func(a, b attest.PCR) int { return a.Index - b.Index })
		if q, err = Parse(quote[1][0], quote[2][0]); err != nil {
			t.Fatal(err)
		}
		return top[1][0], q, pcrs, top[3][0]
	}
	t.Fatal("no quote over the SHA-256 bank")
	return
}

// TestRecordedGCE: quotes of GCE verify, and their logs replay.
func TestRecordedGCE(t *testing.T) {
	for file, nonce := range map[string]string{"gce-cos-85-no-nonce.pb": "", "gce-cos-85-nonce9009.pb": "9009"} {
		t.Run(file, func(t *testing.T) {
			area, q, pcrs, log := recordedQuote(t, file)
			ak, err := ParseKey(area)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(q.ExtraData()); got != nonce {
				t.Errorf("qualifying data %q, want %q", got, nonce)
			}
			if err := q.Verify(dcap.NewTrail("test"), ak, pcrs); err != nil {
				t.Fatal(err)
			}
			// The key alone, as a certificate has it, gives the same.
			bare, err := NewKey(ak.Public)
			if err != nil {
				t.Fatal(err)
			}
			if err := q.Verify(dcap.NewTrail("test"), bare, pcrs); err != nil {
				t.Error(err)
			}
			c := NewClaims(q, pcrs, AK{}, nil)
			if err := c.Explain(dcap.NewTrail("test"), log, pcrs, Hints{}); err != nil {
				t.Fatal(err)
			}
			if c.EventLog == EventLogAbsent || len(c.Events) == 0 || c.Boot.SecureBoot == SecureBootUnknown || len(c.Boot.BootChain) == 0 {
				t.Errorf("claims %+v", c)
			}
			t.Logf("%s %v, secure boot %s, boot chain %v, command line %q", c.EventLog, c.PCRsUnexplained, c.Boot.SecureBoot, c.Boot.BootChain, c.Boot.Cmdline)

			// What go-tpm-tools' own tests change: a PCR, or the log left out for another.
			pcrs[0].Digest[0] ^= 1
			if err := q.Verify(dcap.NewTrail("test"), ak, pcrs); attest.ReasonOf(err) != attest.ReasonMismatch {
				t.Errorf("a PCR changed: %v", err)
			}
			pcrs[0].Digest[0] ^= 1
			if err := q.Verify(dcap.NewTrail("test"), ak, pcrs[1:]); attest.ReasonOf(err) != attest.ReasonMismatch {
				t.Errorf("a PCR left out: %v", err)
			}
			empty := log[:32+binary.LittleEndian.Uint32(log[28:])]
			if err := c.Explain(dcap.NewTrail("test"), empty, pcrs, Hints{}); attest.ReasonOf(err) != attest.ReasonMismatch {
				t.Errorf("an empty log: %v", err)
			}
		})
	}
}
