package tpmquote

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
)

func shared(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../../shared/evidence/tpm/" + path)
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSharedTrustee: the quote of a software TPM verifies, over all 24 PCRs.
// Its qualifying data is 48 bytes and zeros; what of it would be expected is
// not this package's to say.
func TestSharedTrustee(t *testing.T) {
	var doc struct {
		AK    []byte `json:"ak_public"`
		Quote struct {
			Message   []byte   `json:"message"`
			Signature []byte   `json:"signature"`
			PCRs      []string `json:"pcrs"`
		} `json:"tpm_quote"`
	}
	if err := json.Unmarshal(shared(t, "trustee/tpm/tpm_evidence.json"), &doc); err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(doc.AK)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(public)
	if err != nil {
		t.Fatal(err)
	}
	q, err := Parse(doc.Quote.Message, doc.Quote.Signature)
	if err != nil {
		t.Fatal(err)
	}
	var pcrs []attest.PCR
	for i, s := range doc.Quote.PCRs {
		v, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		pcrs = append(pcrs, attest.PCR{Index: i, Digest: v})
	}
	if err := q.Verify(dcap.NewTrail("test"), key, pcrs); err != nil || len(pcrs) != 24 {
		t.Errorf("%d PCRs: %v", len(pcrs), err)
	}
	if d := q.ExtraData(); len(d) != 64 || !bytes.HasPrefix(d, []byte{0xa0, 0x41, 0x82, 0xb5}) || !bytes.Equal(d[48:], make([]byte, 16)) {
		t.Errorf("qualifying data %x", d)
	}
	pcrs[7].Digest = bytes.Repeat([]byte{1}, 32)
	if err := q.Verify(dcap.NewTrail("test"), key, pcrs); attest.ReasonOf(err) != attest.ReasonMismatch {
		t.Errorf("with another PCR 7: %v", err)
	}
}

// TestSharedKeylime: a quote in Keylime's notation decodes. It is over the SHA-1
// bank and signed over SHA-1, which no key of ours would verify.
func TestSharedKeylime(t *testing.T) {
	parts := strings.Split(strings.TrimPrefix(strings.TrimSpace(string(shared(t, "rust-keylime/test-quote.txt"))), "r"), ":")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	var raw [][]byte
	for _, p := range parts[:2] {
		b, err := base64.StdEncoding.DecodeString(p)
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, b)
	}
	q, err := Parse(raw[0], raw[1])
	if err != nil {
		t.Fatal(err)
	}
	if string(q.ExtraData()) != "TEST" {
		t.Errorf("qualifying data %q", q.ExtraData())
	}
	block := shared(t, "trustee/tpm/tpm_evidence.json")
	var doc struct {
		AK []byte `json:"ak_public"`
	}
	if err := json.Unmarshal(block, &doc); err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(doc.AK)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Verify(dcap.NewTrail("test"), key, nil); attest.ReasonOf(err) != attest.ReasonSignature {
		t.Errorf("%v", err)
	}
	if err := q.checkPCRs([]attest.PCR{{Index: 16, Digest: make([]byte, 20)}}, key.hash); err == nil || !strings.Contains(err.Error(), "SHA-256 bank") {
		t.Errorf("PCRs of the SHA-1 bank: %v", err)
	}
}

// TestSharedTPM2Tools: a quote that tpm2-tools wrote, with the key's name, the
// nonce, and the PCRs as it dumps them: a TPML_PCR_SELECTION and a list of
// TPML_DIGEST as they lie in memory.
func TestSharedTPM2Tools(t *testing.T) {
	public := shared(t, "keylime/ak.pub")
	key, err := ParseKey(public[2:]) // a TPM2B_PUBLIC
	if err != nil {
		t.Fatal(err)
	}
	if name := shared(t, "keylime/ak.name"); !bytes.Equal(key.Name, name) {
		t.Errorf("name %x, want %x", key.Name, name)
	}
	block, _ := pem.Decode(shared(t, "keylime/akpub.pem"))
	if k, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil || !key.Public.(*rsa.PublicKey).Equal(k) {
		t.Errorf("akpub.pem is another key (%v)", err)
	}
	q, err := Parse(shared(t, "keylime/quote.out"), shared(t, "keylime/quotesig.out"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(q.ExtraData(), shared(t, "keylime/rand.out")) {
		t.Errorf("qualifying data %x", q.ExtraData())
	}
	dump := shared(t, "keylime/quotepcr.out")[4+16*8+4+4:]
	var pcrs []attest.PCR
	for i, index := range []int{15, 16, 22} {
		d := dump[i*66:][:66]
		pcrs = append(pcrs, attest.PCR{Index: index, Digest: d[2:][:binary.LittleEndian.Uint16(d)]})
	}
	if err := q.Verify(dcap.NewTrail("test"), key, pcrs); err != nil {
		t.Error(err)
	}
	// An endorsement key decrypts, and signs no quotes.
	if _, err := ParseKey(shared(t, "keylime/ek.pub")[2:]); err == nil {
		t.Error("ek.pub is taken for an attestation key")
	}
}
