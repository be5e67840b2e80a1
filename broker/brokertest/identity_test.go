package brokertest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/tpm"
	"github.com/claviger/claviger/broker/tpmquote"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// rawTPM is a software TPM of which a test uses keys that the agent never would.
type rawTPM struct {
	t   *testing.T
	tpm transport.TPMCloser
}

func startRawTPM(t *testing.T) rawTPM {
	t.Helper()
	maker := testservers.NewTPMMaker(t)
	dev, err := linuxudstpm.Open(maker.StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "guest"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return rawTPM{t, dev}
}

func (s rawTPM) primary(hierarchy tpm2.TPMHandle, tmpl tpm2.TPMTPublic) (tpm2.TPMHandle, tpm2.TPM2BName, []byte) {
	s.t.Helper()
	r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(tmpl)}.Execute(s.tpm)
	if err != nil {
		s.t.Fatal(err)
	}
	pub, err := r.OutPublic.Contents()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _, _ = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(s.tpm) })
	return r.ObjectHandle, r.Name, tpm2.Marshal(pub)
}

func restrictedKey(tweak byte) tpm2.TPMTPublic {
	x := make([]byte, 32)
	x[31] = tweak
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}}),
	}
}

func (s rawTPM) evidence(ak tpm2.TPMHandle, name tpm2.TPM2BName, pub, data, ticket, secret []byte) attest.Evidence {
	s.t.Helper()
	sel := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(0, 7)}}}
	pr, err := tpm2.PCRRead{PCRSelectionIn: sel}.Execute(s.tpm)
	if err != nil {
		s.t.Fatal(err)
	}
	q, err := tpm2.Quote{SignHandle: tpm2.AuthHandle{Handle: ak, Name: name, Auth: tpm2.PasswordAuth(nil)}, QualifyingData: tpm2.TPM2BData{Buffer: data}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: sel}.Execute(s.tpm)
	if err != nil {
		s.t.Fatal(err)
	}
	r := attest.TPMReport{AKPublic: pub, Ticket: ticket, Secret: secret, Quote: q.Quoted.Bytes(), Signature: tpm2.Marshal(q.Signature)}
	for i, n := range []int{0, 7} {
		r.PCRs = append(r.PCRs, attest.PCR{Index: n, Digest: bytes.Clone(pr.PCRValues.Digests[i].Buffer)})
	}
	b, err := r.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	return attest.Evidence{Type: attest.TypeTPM, Report: b}
}

// vendor is a manufacturer's CA, which certifies whatever endorsement key it is shown.
type vendor struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newVendor(t *testing.T) vendor {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Vendor"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return vendor{t, key, cert}
}

// certify returns a certificate for an endorsement key, and its chip id.
func (v vendor) certify(ek []byte, serial int64) (der []byte, chip string) {
	v.t.Helper()
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		v.t.Fatal(err)
	}
	var key crypto.PublicKey
	if p.Type == tpm2.TPMAlgRSA {
		d, _ := p.Parameters.RSADetail()
		n, _ := p.Unique.RSA()
		key, err = tpm2.RSAPub(d, n)
	} else {
		d, _ := p.Parameters.ECCDetail()
		pt, _ := p.Unique.ECC()
		key, err = tpmquote.ECCKey(d.CurveID, pt)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "EK"}, NotBefore: v.cert.NotBefore, NotAfter: v.cert.NotAfter, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}}
	if der, err = x509.CreateCertificate(rand.Reader, c, v.cert, key, v.key); err != nil {
		v.t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		v.t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	return der, hex.EncodeToString(sum[:])
}

// activate opens a credential for the attestation key with the endorsement key.
func (s rawTPM) activate(ak tpm2.TPMHandle, akName tpm2.TPM2BName, ek tpm2.TPMHandle, ekName tpm2.TPM2BName, blob, secret []byte) []byte {
	s.t.Helper()
	policy := func(t transport.TPM, h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: h, NonceTPM: nonce}.Execute(t)
		return err
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak, Name: akName, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ek, Name: ekName, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, policy)},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: secret},
	}.Execute(s.tpm)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.CertInfo.Buffer
}

// TestOneTPMOneChip: a TPM has an RSA and an ECC endorsement key, each certified. One attestation key, activated by
// either, is of one chip.
func TestOneTPMOneChip(t *testing.T) {
	s, maker := startRawTPM(t), newVendor(t)
	v, err := tpm.New(tpm.Config{EKRoots: []*x509.Certificate{maker.cert}, TicketKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	ak, akName, akPub := s.primary(tpm2.TPMRHEndorsement, restrictedKey(0))
	now := time.Now()
	var first string
	for i, tmpl := range []tpm2.TPMTPublic{tpm2.RSAEKTemplate, tpm2.ECCEKTemplate, tpm2.RSAEKTemplate} {
		ek, ekName, ekPub := s.primary(tpm2.TPMRHEndorsement, tmpl)
		cert, chip := maker.certify(ekPub, int64(10+i))
		ch, err := v.Activate(attest.TPMActivation{EKCertificates: [][]byte{cert}, EKPublic: ekPub, AKPublic: akPub}, now)
		if err != nil {
			t.Fatal(err)
		}
		secret := s.activate(ak, akName, ek, ekName, ch.CredentialBlob, ch.EncryptedSecret)
		_, _ = tpm2.FlushContext{FlushHandle: ek}.Execute(s.tpm)
		digest := sha256.Sum256([]byte("transcript"))
		c, err := v.Verify(t.Context(), s.evidence(ak, akName, akPub, digest[:], ch.Ticket, secret), attest.BindExact(digest[:]), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = chip
		}
		other := chip != first
		if c.ChipID != first || c.TPM.(*tpmquote.Claims).EK.Digest != chip || len(c.Identities) != map[bool]int{false: 1, true: 2}[other] {
			t.Errorf("endorsement key %d: chip %.8s, identities %.8q, endorsement key %.8s", i, c.ChipID, c.Identities, chip)
		}
	}
}

// TestObfuscated: a TPM obfuscates its firmware's version and its counts for keys outside of the endorsement and platform
// hierarchy. The guest chooses the key, so that nothing is claimed with one of the owner's, nor with one that nobody vouches for.
func TestObfuscated(t *testing.T) {
	s, maker := startRawTPM(t), newVendor(t)
	v, err := tpm.New(tpm.Config{EKRoots: []*x509.Certificate{maker.cert}, TicketKey: make([]byte, 32), Unvouched: true})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, tc := range map[string]struct {
		hierarchy tpm2.TPMHandle
		activated bool
		want      bool
	}{
		"endorsement":                   {tpm2.TPMRHEndorsement, true, true},
		"platform":                      {tpm2.TPMRHPlatform, true, true},
		"owner":                         {tpm2.TPMRHOwner, true, false},
		"endorsement, nobody's word":    {tpm2.TPMRHEndorsement, false, false},
		"null, which goes with a reset": {tpm2.TPMRHNull, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := rawTPM{t, s.tpm}
			ak, akName, akPub := s.primary(tc.hierarchy, restrictedKey(7))
			digest := sha256.Sum256([]byte("transcript"))
			bind := attest.Unbound()
			var ticket, secret []byte
			if tc.activated {
				ek, ekName, ekPub := s.primary(tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
				cert, _ := maker.certify(ekPub, 20)
				ch, err := v.Activate(attest.TPMActivation{EKCertificates: [][]byte{cert}, EKPublic: ekPub, AKPublic: akPub}, now)
				if err != nil {
					t.Fatal(err)
				}
				ticket, secret, bind = ch.Ticket, s.activate(ak, akName, ek, ekName, ch.CredentialBlob, ch.EncryptedSecret), attest.BindExact(digest[:])
			}
			c, err := v.Verify(t.Context(), s.evidence(ak, akName, akPub, digest[:], ticket, secret), bind, nil, now)
			if err != nil {
				t.Fatal(err)
			}
			got := c.TPM.(*tpmquote.Claims)
			if said := got.FirmwareVersion != ""; said != tc.want || said != (got.ResetCount != nil) || said != (got.RestartCount != nil) {
				t.Errorf("firmware %q, resets %v, restarts %v; want them: %t", got.FirmwareVersion, got.ResetCount, got.RestartCount, tc.want)
			}
		})
	}
}

// TestRevokedTPM: of a TPM that is revoked by one of its endorsement keys, neither that nor the other gets anything, nor
// the attestation key that the two have in common.
func TestRevokedTPM(t *testing.T) {
	s, maker := startRawTPM(t), newVendor(t)
	root := filepath.Join(t.TempDir(), "vendor.pem")
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: maker.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	b := Start(t, func(c *server.Config) {
		addPolicy(t, c, "anytpm", `package claviger.release.anytpm

import data.claviger.lib.tpm

default allow := false

allow if input.attestation.tpm.ak.trust == "ek_activation"

deny contains r if some r in tpm.alone_denials
`)
		c.Evidence.TPM = server.TPM{EKRoots: root}
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "any/{vm}", Source: "local", Key: "any/{vm}", Policy: "anytpm", CreateBytes: 32})
	})
	ak, akName, akPub := s.primary(tpm2.TPMRHEndorsement, restrictedKey(0))
	release := func(tmpl tpm2.TPMTPublic, serial int64) (chip string, err error) {
		ek, ekName, ekPub := s.primary(tpm2.TPMRHEndorsement, tmpl)
		cert, chip := maker.certify(ekPub, serial)
		ch, err := b.Workload.ActivateTPM(t.Context(), &pb.ActivateTPMRequest{EkCertificates: [][]byte{cert}, EkPublic: ekPub, AkPublic: akPub})
		if err != nil {
			t.Fatal(err)
		}
		secret := s.activate(ak, akName, ek, ekName, ch.GetCredentialBlob(), ch.GetEncryptedSecret())
		_, _ = tpm2.FlushContext{FlushHandle: ek}.Execute(s.tpm)
		n, err := b.Workload.Challenge(t.Context(), &pb.ChallengeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		k, err := seal.GenerateKey(seal.Hybrid)
		if err != nil {
			t.Fatal(err)
		}
		suites, resources := []string{string(seal.Hybrid)}, []string{"any/vm"}
		d := attest.Transcript{Nonce: n.GetNonce(), BrokerID: sha256.Sum256(b.Server.Identity()), KeyAlgorithm: suites[0], PublicKey: k.Public(), OfferedSuites: suites, Resources: resources}.Digest32()
		ev := s.evidence(ak, akName, akPub, d[:], ch.GetTicket(), secret)
		_, err = b.Workload.Release(t.Context(), &pb.ReleaseRequest{
			Nonce: n.GetNonce(), KeyAlgorithm: suites[0], PublicKey: k.Public(), OfferedSuites: suites, Resources: resources,
			Evidence: []*pb.Evidence{{Type: string(ev.Type), Report: ev.Report}},
		})
		return chip, err
	}
	rsa, err := release(tpm2.RSAEKTemplate, 10)
	if err != nil {
		t.Fatal(err)
	}
	ecc, err := release(tpm2.ECCEKTemplate, 11)
	if err != nil || ecc == rsa {
		t.Fatalf("by the other key: %v", err)
	}
	for _, chip := range []string{rsa, ecc} {
		if _, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: chip, Reason: "stolen"}}); err != nil {
			t.Fatal(err)
		}
		for name, tmpl := range map[string]tpm2.TPMTPublic{"RSA": tpm2.RSAEKTemplate, "ECC": tpm2.ECCEKTemplate} {
			if _, err := release(tmpl, 12); err == nil {
				t.Errorf("%.8s is revoked, and the machine gets its secret by its %s key", chip, name)
			}
		}
		if _, err := b.Admin.Unrevoke(t.Context(), &pb.UnrevokeRequest{Kind: "chip", Value: chip}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := release(tpm2.RSAEKTemplate, 13); err != nil {
		t.Errorf("nothing is revoked any more: %v", err)
	}
}
