package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tpmquote"
	"github.com/claviger/claviger/broker/tpmquote/tpmquotetest"
)

// TestCertifiedAKName: where a certificate vouches for the AK, only its RSA or EC key is compared. The rest of the
// TPMT_PUBLIC is the guest's word: attributes, policy, name. The key here is in no TPM at all, and what names it is its own digest.
func TestCertifiedAKName(t *testing.T) {
	k, err := tpmquotetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	ca, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	caT := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "AK CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, _ := x509.CreateCertificate(rand.Reader, caT, caT, &ca.PublicKey, ca)
	root, _ := x509.ParseCertificate(der)
	leafT := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "AK"}, NotBefore: caT.NotBefore, NotAfter: caT.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidAIK}}
	leaf, _ := x509.CreateCertificate(rand.Reader, leafT, root, &k.PublicKey, ca)
	v, err := New(Config{AKRoots: []*x509.Certificate{root}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range byte(3) {
		pub := tpm2.Marshal(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte{i}},
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
				Scheme:  tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
				KeyBits: 2048,
			}),
			Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()}),
		})
		digest := make([]byte, 32)
		_, pcrs := tpmquotetest.Log(tpmquotetest.Event{PCR: 4, Type: 0x80000003, Data: "x"})
		quote, sig, err := k.Quote(digest, pcrs)
		if err != nil {
			t.Fatal(err)
		}
		report, _ := attest.TPMReport{Quote: quote, Signature: sig, AKPublic: pub, PCRs: pcrs}.Encode()
		c, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeTPM, Report: report, Endorsements: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})}, attest.BindExact(digest), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.TPM.(*tpmquote.Claims); got.AK.Name != c.ChipID || len(c.ChipID) != 64 || got.FirmwareVersion != "" || got.ResetCount != nil {
			t.Errorf("claims %+v, firmware %q", got.AK, got.FirmwareVersion)
		}
	}
}
