package brokertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func openTPM(t *testing.T, socket, log string) *tpmdev.Device {
	t.Helper()
	d, err := tpmdev.Open(tpmdev.Config{Path: socket, EventLog: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestTPM is the job with a real (software) TPM: its attestation key is
// activated by its certified endorsement key, quotes a boot, and gets the key of
// its own disk, once per boot.
func TestTPM(t *testing.T) {
	maker, other := testservers.NewTPMMaker(t), testservers.NewTPMMaker(t)
	state := filepath.Join(t.TempDir(), "tpm")
	socket := maker.StartTPM(t, state, "guest1")
	boot := testservers.NewBoot()
	boot.Extend(t, socket)
	b := Start(t, func(c *server.Config) {
		c.Evidence.TPM = server.TPM{EKRoots: maker.Root, EKIntermediates: maker.Intermediate}
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "boot/{chip}", Source: "local", Key: "boot/{chip}", Policy: "measured_boot", CreateBytes: 32})
	})
	values := map[string]*pb.ReferenceValues{}
	for name, v := range boot.Values() {
		values[name] = &pb.ReferenceValues{Values: []string{v}}
	}
	b.putReferences(t, &pb.ReferenceSet{Name: "release-1", Type: "tpm", State: "active", Values: values})
	d := openTPM(t, socket, boot.Log(t))
	chip, err := d.ChipID()
	if err != nil {
		t.Fatal(err)
	}
	c := b.clientOf(t, d)
	first, _ := get(t, c, "boot/"+chip)
	if len(first[0].Value) != 32 {
		t.Fatalf("key of %d bytes", len(first[0].Value))
	}
	again, _ := get(t, c, "boot/"+chip)
	if string(again[0].Value) != string(first[0].Value) {
		t.Error("two keys for one disk")
	}

	refused := func(name string, c *agent.Client, resource string, want ...string) {
		t.Helper()
		denied(t, c, resource)
		got := b.newest(t)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: the operator is told %s, want %q", name, got, w)
			}
		}
	}
	t.Run("a replayed quote", func(t *testing.T) {
		ch, err := b.Workload.Challenge(t.Context(), &pb.ChallengeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		key, err := seal.GenerateKey(seal.Hybrid)
		if err != nil {
			t.Fatal(err)
		}
		suites, resources := []string{string(seal.Hybrid)}, []string{"boot/" + chip}
		ev, err := d.Evidence(t.Context(), attest.Transcript{
			Nonce: ch.GetNonce(), BrokerID: sha256.Sum256(b.Server.Identity()), KeyAlgorithm: suites[0], PublicKey: key.Public(), OfferedSuites: suites, Resources: resources,
		})
		if err != nil {
			t.Fatal(err)
		}
		req := &pb.ReleaseRequest{
			Nonce: ch.GetNonce(), KeyAlgorithm: suites[0], PublicKey: key.Public(), OfferedSuites: suites, Resources: resources,
			Evidence: []*pb.Evidence{{Type: string(ev.Type), Report: ev.Report, EventLog: ev.EventLog}},
		}
		if _, err := b.Workload.Release(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if r, err := b.Workload.Release(t.Context(), req); err == nil || len(r.GetSecrets()) > 0 {
			t.Errorf("the very request again: %v", err)
		}
		fresh, err := b.Workload.Challenge(t.Context(), &pb.ChallengeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		req.Nonce = fresh.GetNonce()
		if _, err := b.Workload.Release(t.Context(), req); status.Code(err) != codes.PermissionDenied {
			t.Errorf("the quote under a fresh nonce: %v", err)
		}
		if got := b.newest(t); !strings.Contains(got, "tpm.binding") {
			t.Errorf("the operator is told %s", got)
		}
	})
	refused("another machine's disk", c, "boot/"+strings.Repeat("0", 64), "not_own_resource")
	if err := d.CloseDoor(15); err != nil {
		t.Fatal(err)
	}
	refused("a second time in one boot", c, "boot/"+chip, "door_closed")

	// The same TPM after a reboot, with another initrd: one digest more or less in PCR 9.
	t.Run("another initrd", func(t *testing.T) {
		socket := maker.StartTPM(t, filepath.Join(t.TempDir(), "tpm2"), "guest2")
		evil := testservers.NewBoot()
		evil.Initrd = [32]byte{1}
		evil.Extend(t, socket)
		d := openTPM(t, socket, evil.Log(t))
		chip, err := d.ChipID()
		if err != nil {
			t.Fatal(err)
		}
		refused("another initrd", b.clientOf(t, d), "boot/"+chip, "initrd_unknown")
	})
	t.Run("a log that lies", func(t *testing.T) {
		socket := maker.StartTPM(t, filepath.Join(t.TempDir(), "tpm3"), "guest3")
		evil := testservers.NewBoot()
		evil.Initrd = [32]byte{1}
		evil.Extend(t, socket)
		d := openTPM(t, socket, boot.Log(t))
		chip, err := d.ChipID()
		if err != nil {
			t.Fatal(err)
		}
		refused("a log that lies", b.clientOf(t, d), "boot/"+chip, "pcr_unexplained", "tpm.pcrs.9", "initrd_unknown")
	})
	t.Run("another manufacturer", func(t *testing.T) {
		socket := other.StartTPM(t, filepath.Join(t.TempDir(), "tpm4"), "guest4")
		boot.Extend(t, socket)
		d := openTPM(t, socket, boot.Log(t))
		chip, err := d.ChipID()
		if err != nil {
			t.Fatal(err)
		}
		refused("another manufacturer", b.clientOf(t, d), "boot/"+chip, "tpm.ek_certificate", "unproven")
	})
}

// TestTPMCertified: an attestation key that a CA certified needs no activation,
// and a certificate of another TPM's key is of no use.
func TestTPMCertified(t *testing.T) {
	maker := testservers.NewTPMMaker(t)
	socket := maker.StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "guest1")
	boot := testservers.NewBoot()
	boot.Extend(t, socket)
	log := boot.Log(t)
	plain := openTPM(t, socket, log)
	spki, err := plain.AKPublic()
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Close(); err != nil {
		t.Fatal(err)
	}
	root, leaf := certifyAK(t, spki)
	file := filepath.Join(t.TempDir(), "ak-root.pem")
	if err := os.WriteFile(file, root, 0o600); err != nil {
		t.Fatal(err)
	}
	b := Start(t, func(c *server.Config) {
		c.Evidence.TPM = server.TPM{AKRoots: file}
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "boot/{chip}", Source: "local", Key: "boot/{chip}", Policy: "measured_boot", CreateBytes: 32})
	})
	values := map[string]*pb.ReferenceValues{}
	for name, v := range boot.Values() {
		values[name] = &pb.ReferenceValues{Values: []string{v}}
	}
	b.putReferences(t, &pb.ReferenceSet{Name: "release-1", Type: "tpm", State: "active", Values: values})
	certified := func(socket string) *tpmdev.Device {
		d, err := tpmdev.Open(tpmdev.Config{Path: socket, EventLog: log, AKCertificate: leaf})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	d := certified(socket)
	chip, err := d.ChipID()
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := get(t, b.clientOf(t, d), "boot/"+chip); len(s[0].Value) != 32 {
		t.Errorf("key of %d bytes", len(s[0].Value))
	}
	other := maker.StartTPM(t, filepath.Join(t.TempDir(), "tpm2"), "guest2")
	boot.Extend(t, other)
	denied(t, b.clientOf(t, certified(other)), "boot/"+chip)
	if got := b.newest(t); !strings.Contains(got, "another key than the one that signed") {
		t.Errorf("the operator is told %s", got)
	}
}

// certifyAK is a CA, and its certificate of an attestation key (its purpose says so), in PEM.
func certifyAK(t *testing.T, spki []byte) (root, leaf []byte) {
	t.Helper()
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "AK CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	aik := asn1.ObjectIdentifier{2, 23, 133, 8, 3} // tcg-kp-AIKCertificate
	ak := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "AK"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{aik},
	}
	var out [2][]byte
	for i, c := range []struct {
		template *x509.Certificate
		pub      any
	}{{ca, key.Public()}, {ak, pub}} {
		der, err := x509.CreateCertificate(rand.Reader, c.template, ca, c.pub, key)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return out[0], out[1]
}

// TestTPMRebooted: the attestation key is the same after a reboot, without anything stored.
func TestTPMRebooted(t *testing.T) {
	maker := testservers.NewTPMMaker(t)
	state := filepath.Join(t.TempDir(), "tpm")
	var names [2]string
	for i := range names {
		t.Run("boot", func(t *testing.T) {
			d := openTPM(t, maker.StartTPM(t, state, "guest"), "")
			var err error
			if names[i], err = d.AKName(); err != nil {
				t.Fatal(err)
			}
		})
	}
	if names[0] == "" || names[0] != names[1] {
		t.Errorf("attestation keys %q", names)
	}
	if _, err := tpmdev.Open(tpmdev.Config{Path: filepath.Join(state, "none")}); err == nil || errors.Is(err, agent.ErrDenied) {
		t.Errorf("a TPM that is not there: %v", err)
	}
}

const rawPCRPolicy = `package claviger.release.raw

import data.claviger.lib.reference
import data.claviger.lib.tpm

default allow := false

allow if reference.match("tpm", ["pcr0", "pcr4"])

deny contains r if some r in tpm.alone_denials

deny contains r if some r in tpm.ak_denials

deny contains r if some r in reference.denials("tpm", ["pcr0", "pcr4"])
`

// TestRevokedMeasurementLeftOut: an initrd's digest is revoked, and a guest that runs it leaves out what would show that.
// What the policy does not ask for, the revocation does.
func TestRevokedMeasurementLeftOut(t *testing.T) {
	maker := testservers.NewTPMMaker(t)
	socket := maker.StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "guest1")
	boot := testservers.NewBoot()
	boot.Extend(t, socket)
	b := Start(t, func(c *server.Config) {
		addPolicy(t, c, "raw", rawPCRPolicy)
		c.Evidence.TPM = server.TPM{EKRoots: maker.Root, EKIntermediates: maker.Intermediate}
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "raw/{vm}", Source: "local", Key: "raw/{vm}", Policy: "raw", CreateBytes: 32})
	})
	values := map[string]*pb.ReferenceValues{}
	for name, v := range boot.Values() {
		values[name] = &pb.ReferenceValues{Values: []string{v}}
	}
	b.putReferences(t, &pb.ReferenceSet{Name: "release-1", Type: "tpm", State: "active", Values: values})
	var last *tpmdev.Device
	with := func(log string, pcrs ...int) *agent.Client {
		if last != nil {
			last.Close() // it holds keys, for which a TPM has little room
		}
		var err error
		if last, err = tpmdev.Open(tpmdev.Config{Path: socket, EventLog: log, PCRs: pcrs}); err != nil {
			t.Fatal(err)
		}
		return b.clientOf(t, last)
	}
	t.Cleanup(func() { last.Close() })
	log, none := boot.Log(t), filepath.Join(t.TempDir(), "none")
	revoke := func(value string) {
		t.Helper()
		if _, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "measurement", Value: value, Reason: "hole"}}); err != nil {
			t.Fatal(err)
		}
	}
	get(t, with(none, 0, 4), "raw/vm")
	// SHA-384 is of no PCR here: it stops nobody.
	revoke(strings.Repeat("ab", 48))
	get(t, with(none, 0, 4), "raw/vm")
	// Another initrd's: whoever shows everything is not concerned.
	other := strings.Repeat("cd", 32)
	revoke(other)
	get(t, with(log), "raw/vm")
	denied(t, with(none), "raw/vm")
	b.told(t, "omits tpm.event_log")
	denied(t, with(log, 0, 4), "raw/vm")
	b.told(t, "omits tpm.pcr1")
	if _, err := b.Admin.Unrevoke(t.Context(), &pb.UnrevokeRequest{Kind: "measurement", Value: other}); err != nil {
		t.Fatal(err)
	}
	get(t, with(none), "raw/vm")
	revoke(hex.EncodeToString(boot.Initrd[:]))
	denied(t, with(log), "raw/vm")
	denied(t, with(none), "raw/vm")
	denied(t, with(log, 0, 4), "raw/vm")
}
