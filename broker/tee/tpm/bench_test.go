package tpm

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tpmquote"
	"github.com/claviger/claviger/broker/tpmquote/tpmquotetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

// BenchmarkVerify is a quote by an activated key in software, with a short event log.
func BenchmarkVerify(b *testing.B) {
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
	transcript := attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}
	extra := transcript.Digest32()
	if r.Quote, r.Signature, err = key.Quote(extra[:], pcrs); err != nil {
		b.Fatal(err)
	}
	ak, err := tpmquote.ParseKey(r.AKPublic)
	if err != nil {
		b.Fatal(err)
	}
	// The ticket is as Activate makes it; its secret reached the key's TPM.
	v := verifier(b, Config{})
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
	ev := attest.Evidence{Type: attest.TypeTPM, Report: report, EventLog: log}
	benchtest.Loop(b, func() error {
		_, err := v.Verify(b.Context(), ev, attest.BindTo(transcript), nil, now)
		return err
	})
}

// BenchmarkFloor: the quote's signature. Nothing is remembered, so cold is warm.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.RSA2048) }
