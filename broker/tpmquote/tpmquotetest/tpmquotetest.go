// Package tpmquotetest makes quotes over any PCRs with an attestation key in
// software, and event logs that replay to them. It is for tests.
package tpmquotetest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/attest"
)

// Key is an attestation key: RSA-2048, RSASSA with SHA-256.
type Key struct{ *rsa.PrivateKey }

// NewKey makes a key.
func NewKey() (Key, error) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	return Key{k}, err
}

// Quote makes a TPMS_ATTEST and a TPMT_SIGNATURE over pcrs, which ascend.
func (k Key) Quote(extraData []byte, pcrs []attest.PCR) (quote, signature []byte, err error) {
	bitmap, h := make([]byte, 3), sha256.New()
	for _, p := range pcrs {
		bitmap[p.Index/8] |= 1 << (p.Index % 8)
		h.Write(p.Digest)
	}
	quote = tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote,
		QualifiedSigner: tpm2.TPM2BName{Buffer: []byte("simulated")},
		ExtraData:       tpm2.TPM2BData{Buffer: extraData},
		ClockInfo:       tpm2.TPMSClockInfo{Clock: 1000, ResetCount: 2, Safe: true},
		FirmwareVersion: 0x20200312,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bitmap}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		}),
	})
	digest := sha256.Sum256(quote)
	raw, err := rsa.SignPKCS1v15(rand.Reader, k.PrivateKey, crypto.SHA256, digest[:])
	if err != nil {
		return nil, nil, fmt.Errorf("sign the quote: %w", err)
	}
	signature = tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg:    tpm2.TPMAlgRSASSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: raw}}),
	})
	return quote, signature, nil
}

// Event is an entry of a log; its digest is that of Data.
type Event struct {
	PCR  int
	Type uint32
	Data string
}

// Log makes a TCG log of the SHA-256 bank and the PCRs that it replays to,
// those that it touches, ascending.
func Log(events ...Event) (log []byte, pcrs []attest.PCR) {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0)
	log = append([]byte{0, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	log = append(le.AppendUint32(log, uint32(len(spec))), spec...)
	values := map[int][32]byte{}
	for _, e := range events {
		d := sha256.Sum256([]byte(e.Data))
		log = le.AppendUint32(log, uint32(e.PCR))
		log = le.AppendUint32(log, e.Type)
		log = le.AppendUint32(log, 1)
		log = append(le.AppendUint16(log, 0x0b), d[:]...)
		log = append(le.AppendUint32(log, uint32(len(e.Data))), e.Data...)
		old := values[e.PCR]
		values[e.PCR] = sha256.Sum256(append(old[:], d[:]...))
	}
	for i := range 24 {
		if v, ok := values[i]; ok {
			pcrs = append(pcrs, attest.PCR{Index: i, Digest: slices.Clone(v[:])})
		}
	}
	return log, pcrs
}
