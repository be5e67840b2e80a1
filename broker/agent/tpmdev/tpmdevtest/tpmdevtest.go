// Package tpmdevtest puts into a software TPM what a cloud puts into its vTPMs. For tests.
package tpmdevtest

import (
	"crypto/rsa"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Template is a restricted RSA signing key, as clouds certify.
func Template() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme:  tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
			KeyBits: 2048,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)}),
	}
}

// TPM is a connection to the emulator, closed before others open one.
func with(t testing.TB, socket string, do func(transport.TPM) error) {
	t.Helper()
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	if err := do(tpm); err != nil {
		t.Fatal(err)
	}
}

// Key makes the key of Template in the endorsement hierarchy, keeps it under a
// persistent handle if that is not 0, and returns its public half.
func Key(t testing.TB, socket string, handle uint32) *rsa.PublicKey {
	t.Helper()
	var public *rsa.PublicKey
	with(t, socket, func(tpm transport.TPM) error {
		r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(Template())}.Execute(tpm)
		if err != nil {
			return err
		}
		pub, err := r.OutPublic.Contents()
		if err != nil {
			return err
		}
		key, err := tpm2.Pub(*pub)
		if err != nil {
			return err
		}
		public = key.(*rsa.PublicKey)
		if handle != 0 {
			_, err = tpm2.EvictControl{
				Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, PersistentHandle: tpm2.TPMHandle(handle),
			}.Execute(tpm)
			if err != nil {
				return err
			}
		}
		_, err = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(tpm)
		return err
	})
	return public
}

// NV defines an index that only the owner reads, and fills it.
func NV(t testing.TB, socket string, index uint32, data []byte) {
	t.Helper()
	with(t, socket, func(tpm transport.TPM) error {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.TPMRHOwner,
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
				Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary},
			}),
		}.Execute(tpm)
		if err != nil {
			return err
		}
		for offset := 0; offset < len(data); offset += 512 {
			p, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(tpm) // its name changes with the first write
			if err != nil {
				return err
			}
			_, err = tpm2.NVWrite{
				AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: p.NVName},
				Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+512, len(data))]}, Offset: uint16(offset),
			}.Execute(tpm)
			if err != nil {
				return err
			}
		}
		return nil
	})
}
