package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/tpmquote"
	"github.com/claviger/claviger/broker/tpmquote/tpmquotetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var request = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// believed is the evidence of a key that was activated, and a verifier that believes it.
func believed(b testing.TB) (*Verifier, attest.Evidence) {
	b.Helper()
	key, err := tpmquotetest.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	log, pcrs := tpmquotetest.Log(
		tpmquotetest.Event{PCR: 4, Type: 0x80000003, Data: "a boot loader"},
		tpmquotetest.Event{PCR: 8, Type: 0x0d, Data: "kernel_cmdline: /vmlinuz quiet\x00"},
	)
	r := attest.TPMReport{PCRs: pcrs, AKPublic: tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme:  tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
			KeyBits: 2048,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	})}
	extra := request.Digest32()
	if r.Quote, r.Signature, err = key.Quote(extra[:], pcrs); err != nil {
		b.Fatal(err)
	}
	ak, err := tpmquote.ParseKey(r.AKPublic)
	if err != nil {
		b.Fatal(err)
	}
	// The ticket is as Activate makes it; its secret reached the key's TPM.
	v := verifier(b, Config{Unvouched: true})
	r.Secret = make([]byte, 32)
	hash := sha256.Sum256(r.Secret)
	body, err := json.Marshal(ticket{Expires: now.Unix() + 60, AKName: ak.Name, Secret: hash[:], EK: tpmquote.EK{Digest: hex.EncodeToString(hash[:]), Issuer: "CN=TEST SIMULATED"}})
	if err != nil {
		b.Fatal(err)
	}
	r.Ticket = append(body, v.mac(body)...)
	report, err := r.Encode()
	if err != nil {
		b.Fatal(err)
	}
	return v, attest.Evidence{Type: attest.TypeTPM, Report: report, EventLog: log}
}

// BenchmarkVerify has the key parsed.
func BenchmarkVerify(b *testing.B) {
	v, ev := believed(b)
	benchtest.Loop(b, func() error {
		_, err := v.Verify(b.Context(), ev, attest.BindTo(request), nil, now)
		return err
	})
}

// BenchmarkVerifyCold is the first evidence of a key.
func BenchmarkVerifyCold(b *testing.B) {
	v, ev := believed(b)
	benchtest.Loop(b, func() error {
		v.keys = memo.Memo[tpmquote.Key]{}
		_, err := v.Verify(b.Context(), ev, attest.BindTo(request), nil, now)
		return err
	})
}

// TestKeysKept: the key of believed evidence is kept, and no other.
func TestKeysKept(t *testing.T) {
	v, ev := believed(t)
	for _, bad := range []attest.Evidence{
		{Type: ev.Type, Report: bytes.Replace(ev.Report, []byte(`"secret":"`), []byte(`"secret":"AAAA`), 1), EventLog: ev.EventLog},
		{Type: ev.Type, Report: ev.Report, EventLog: append([]byte{1}, ev.EventLog...)},
	} {
		if _, err := v.Verify(t.Context(), bad, attest.BindTo(request), nil, now); err == nil || v.keys.Len() != 0 {
			t.Errorf("error %v, %d keys kept", err, v.keys.Len())
		}
	}
	for range 2 {
		if _, err := v.Verify(t.Context(), ev, attest.BindTo(request), nil, now); err != nil || v.keys.Len() != 1 {
			t.Errorf("error %v, %d keys kept", err, v.keys.Len())
		}
	}
}

// BenchmarkFloor: the quote's signature.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.RSA2048) }
