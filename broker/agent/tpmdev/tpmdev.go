// Package tpmdev makes evidence with a TPM 2.0: a quote over PCRs by an
// attestation key (AK) in the endorsement hierarchy, which is the same after
// every reboot, so that nothing is stored; the proof that the AK is in the TPM
// of a certified endorsement key (EK); and the firmware's event log.
package tpmdev

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/strictjson"
)

// Where Linux shows the TPM, its event log, and the command line.
const (
	DefaultPath     = "/dev/tpmrm0"
	DefaultEventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"
	cmdlinePath     = "/proc/cmdline"

	defaultSystemdLog = "/run/log/systemd/tpm2-measure.log"
)

// DefaultPCRs are all that firmware, boot loaders and systemd use; IMA's 10, which changes all the time, is left out.
func DefaultPCRs() []int { return []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15} }

// Config of a Device. The zero value is this machine's TPM.
type Config struct {
	Path     string // a TPM device, or the Unix socket of an emulator; default DefaultPath
	EventLog string // default DefaultEventLog; a missing file is no log
	// SystemdLog is where systemd keeps what it measured itself; default /run/log/systemd/tpm2-measure.log.
	SystemdLog string
	PCRs       []int // of the SHA-256 bank; default DefaultPCRs
	// AKCertificate is the certificate of the attestation key and its issuers
	// (PEM), for a broker that trusts that CA: no activation is asked for then.
	AKCertificate []byte
	// EKCertificates are the endorsement key's certificate and its issuers (DER), for
	// a TPM that holds none, as firmware TPMs do, or holds an old one.
	EKCertificates [][]byte
}

// Device is a TPM. It is safe for concurrent use, one command at a time. Close it.
type Device struct {
	cfg Config
	now func() time.Time

	mu      sync.Mutex
	tpm     transport.TPMCloser // guarded by mu, as is all below
	ak      *loaded
	ticket  []byte
	secret  []byte
	expires time.Time
}

type loaded struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public []byte // TPMT_PUBLIC
}

// Open connects to the TPM.
func Open(cfg Config) (*Device, error) {
	if cfg.Path == "" {
		cfg.Path = DefaultPath
	}
	if cfg.EventLog == "" {
		cfg.EventLog = DefaultEventLog
	}
	if cfg.SystemdLog == "" {
		cfg.SystemdLog = defaultSystemdLog
	}
	if len(cfg.PCRs) == 0 {
		cfg.PCRs = DefaultPCRs()
	}
	cfg.PCRs = slices.Compact(slices.Sorted(slices.Values(cfg.PCRs)))
	if cfg.PCRs[0] < 0 || cfg.PCRs[len(cfg.PCRs)-1] > 23 {
		return nil, errors.New("TPM: PCRs: want numbers from 0 to 23")
	}
	if len(cfg.EKCertificates) > 0 {
		if _, err := ekTemplate(cfg.EKCertificates[0]); err != nil {
			return nil, fmt.Errorf("TPM: endorsement key certificate: %w", err)
		}
	}
	open := linuxtpm.Open
	if fi, err := os.Stat(cfg.Path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		open = linuxudstpm.Open
	}
	t, err := open(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open TPM %s (is there one, and are its drivers loaded?): %w", cfg.Path, err)
	}
	return &Device{cfg: cfg, tpm: t, now: time.Now}, nil
}

// Close flushes the key and lets go of the TPM.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ak != nil {
		d.flush(d.ak.handle)
		d.ak = nil
	}
	clear(d.secret)
	return d.tpm.Close()
}

// Activate proves to the broker, unless it lately did, that AK and EK are in
// one TPM. ask has the broker make a credential for the two; its error is returned as it is.
func (d *Device) Activate(ctx context.Context, ask func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.cfg.AKCertificate) > 0 || d.ticket != nil && d.now().Before(d.expires) {
		return nil
	}
	if err := d.loadAK(); err != nil {
		return err
	}
	chain, template := d.ekCertificates()
	ek, err := d.createPrimary(template)
	if err != nil {
		return fmt.Errorf("TPM: make endorsement key: %w", err)
	}
	defer d.flush(ek.handle)
	started := d.now()
	c, err := ask(ctx, attest.TPMActivation{EKCertificates: chain, EKPublic: ek.public, AKPublic: d.ak.public})
	if err != nil {
		return err
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: d.ak.handle, Name: d.ak.name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, ekPolicy)},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.CredentialBlob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.EncryptedSecret},
	}.Execute(d.tpm)
	if err != nil {
		return fmt.Errorf("TPM: activate credential: %w", err)
	}
	d.ticket, d.secret = c.Ticket, r.CertInfo.Buffer
	// By this machine's own clock, which may be wrong: half of what the broker
	// grants, but not more than half an hour.
	d.expires = started.Add(min(max(c.Expires.Sub(started)/2, time.Minute), 30*time.Minute))
	return nil
}

// ekPolicy is PolicySecret(TPM_RH_ENDORSEMENT), the authorisation policy of the EK templates.
func ekPolicy(t transport.TPM, h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: h, NonceTPM: nonce}.Execute(t)
	return err
}

// Evidence quotes the PCRs over the transcript's digest.
func (d *Device) Evidence(_ context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d.evidence(t.Digest32())
}

// Raw quotes the PCRs over given report data, of which a TPM takes 32 bytes.
// It binds the evidence to nothing of ours.
func (d *Device) Raw(_ context.Context, reportData [64]byte) (attest.Evidence, error) {
	if [32]byte(reportData[32:]) != ([32]byte{}) {
		return attest.Evidence{}, errors.New("TPM: report data of more than 32 bytes")
	}
	return d.evidence([32]byte(reportData[:32]))
}

func (d *Device) evidence(digest [32]byte) (attest.Evidence, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.loadAK(); err != nil {
		return attest.Evidence{}, err
	}
	q, err := d.quoted(*d.ak, digest[:])
	if err != nil {
		return attest.Evidence{}, err
	}
	r := attest.TPMReport{AKPublic: d.ak.public, Ticket: d.ticket, Secret: d.secret, PCRs: q.PCRs, Quote: q.Quote, Signature: q.Signature, Cmdline: q.Cmdline, SystemdLog: q.SystemdLog}
	report, err := r.Encode()
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("TPM: encode evidence: %w", err)
	}
	return attest.Evidence{Type: attest.TypeTPM, Report: report, Endorsements: d.cfg.AKCertificate, EventLog: q.EventLog}, nil
}

// Quoted is a quote, and what explains it.
type Quoted struct {
	PCRs             []attest.PCR
	Quote, Signature []byte // TPMS_ATTEST, TPMT_SIGNATURE
	Cmdline          string
	SystemdLog       []byte // what systemd measured into PCR 9
	EventLog         []byte // empty if the machine keeps none
}

// quoted quotes the PCRs by a key. d.mu is held.
func (d *Device) quoted(key loaded, digest []byte) (q Quoted, err error) {
	// What extends a PCR between reading and quoting makes the two differ.
	for range 5 {
		if q.PCRs, err = d.read(); err != nil {
			return q, err
		}
		var quoted []byte
		if q.Quote, q.Signature, quoted, err = d.quote(key, digest); err != nil {
			return q, err
		}
		h := sha256.New()
		for _, p := range q.PCRs {
			h.Write(p.Digest)
		}
		if bytes.Equal(h.Sum(nil), quoted) {
			break
		}
	}
	if b, err := os.ReadFile(cmdlinePath); err == nil {
		q.Cmdline = strings.TrimSuffix(string(b), "\n")
	}
	q.SystemdLog = systemdLog(d.cfg.SystemdLog)
	if q.EventLog, err = os.ReadFile(d.cfg.EventLog); err != nil && !errors.Is(err, os.ErrNotExist) {
		return q, fmt.Errorf("TPM event log: %w", err)
	}
	return q, nil
}

// systemdLog are the records of systemd's log (JSON texts, each after a record
// separator) about PCR 9, which its other records do not explain. Without them the PCR remains unexplained, so no error counts.
func systemdLog(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	all, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil
	}
	var out []byte
	for _, record := range bytes.Split(all, []byte{0x1e}) {
		var r struct {
			PCR *int `json:"pcr"`
		}
		if strictjson.Unmarshal(bytes.TrimSpace(record), &r) != nil || r.PCR == nil || *r.PCR != 9 || len(out)+1+len(record) > attest.MaxSystemdLog {
			continue
		}
		out = append(append(out, 0x1e), record...)
	}
	return out
}

// QuoteBy quotes the PCRs by a key that the platform keeps in the TPM, under its persistent handle.
func (d *Device) QuoteBy(handle uint32, digest [32]byte) (Quoted, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(d.tpm)
	if err != nil {
		return Quoted{}, fmt.Errorf("TPM: no key %#x: %w", handle, err)
	}
	return d.quoted(loaded{handle: tpm2.TPMHandle(handle), name: r.Name}, digest[:])
}

// QuoteFrom quotes the PCRs by the endorsement hierarchy's key of a template (TPMT_PUBLIC).
func (d *Device) QuoteFrom(template []byte, digest [32]byte) (Quoted, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, err := tpm2.Unmarshal[tpm2.TPMTPublic](template)
	if err != nil {
		return Quoted{}, fmt.Errorf("TPM: template of a key: %w", err)
	}
	k, err := d.createPrimary(*t)
	if err != nil {
		return Quoted{}, fmt.Errorf("TPM: make the platform's attestation key: %w", err)
	}
	defer d.flush(k.handle)
	return d.quoted(k, digest[:])
}

// NV reads an index of the TPM's memory.
func (d *Device) NV(index uint32) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.nvRead(index)
	if err != nil { // some platforms let the owner read, and not everybody
		b, err = d.nvReadAs(index, true)
	}
	if err != nil {
		return nil, fmt.Errorf("TPM: read index %#x: %w", index, err)
	}
	return b, nil
}

// closed is what CloseDoor measures: SHA-256 of this text.
const closed = "claviger/v1/key-released"

// CloseDoor extends a PCR, so that a policy that wants it unextended releases
// nothing more to this machine until it is booted again.
func (d *Device) CloseDoor(pcr int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := sha256.Sum256([]byte(closed))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sum[:]}}},
	}.Execute(d.tpm)
	if err != nil {
		return fmt.Errorf("TPM: extend PCR %d: %w", pcr, err)
	}
	return nil
}

// akTemplate is a restricted ECDSA P-256 signing key, nothing but quotes and certifications.
func akTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

// loadAK makes the attestation key anew: a primary key comes out the same each time.
func (d *Device) loadAK() error {
	if d.ak != nil {
		return nil
	}
	k, err := d.createPrimary(akTemplate())
	if err != nil {
		return fmt.Errorf("TPM: make attestation key: %w", err)
	}
	d.ak = &k
	return nil
}

func (d *Device) createPrimary(template tpm2.TPMTPublic) (loaded, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(d.tpm)
	if err != nil {
		return loaded{}, err
	}
	pub, err := r.OutPublic.Contents()
	if err != nil {
		return loaded{}, err
	}
	return loaded{r.ObjectHandle, r.Name, tpm2.Marshal(pub)}, nil
}

func (d *Device) flush(h tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(d.tpm) // the kernel's resource manager does it, too
}

func (d *Device) selection(pcrs []int) tpm2.TPMLPCRSelection {
	var u []uint
	for _, p := range pcrs {
		u = append(u, uint(p))
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(u...)}}}
}

// read reads the PCRs; a TPM answers with at most eight at a time.
func (d *Device) read() ([]attest.PCR, error) {
	var out []attest.PCR
	for batch := range slices.Chunk(d.cfg.PCRs, 8) {
		r, err := tpm2.PCRRead{PCRSelectionIn: d.selection(batch)}.Execute(d.tpm)
		if err != nil {
			return nil, fmt.Errorf("TPM: read PCRs: %w", err)
		}
		if len(r.PCRValues.Digests) != len(batch) {
			return nil, errors.New("TPM: read PCRs: no SHA-256 bank")
		}
		for i, p := range batch {
			out = append(out, attest.PCR{Index: p, Digest: r.PCRValues.Digests[i].Buffer})
		}
	}
	return out, nil
}

func (d *Device) quote(key loaded, data []byte) (quote, signature, pcrDigest []byte, err error) {
	r, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: key.handle, Name: key.name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect:      d.selection(d.cfg.PCRs),
	}.Execute(d.tpm)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("TPM: quote: %w", err)
	}
	a, err := r.Quoted.Contents()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("TPM: quote: %w", err)
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("TPM: quote: %w", err)
	}
	return r.Quoted.Bytes(), tpm2.Marshal(r.Signature), info.PCRDigest.Buffer, nil
}

// Indices of EK certificates ("EK Credential Profile", 2.2.1.4), and where chains begin (2.2.1.5.2).
const (
	nvRSA2048 = 0x01c00002
	nvP256    = 0x01c0000a
	nvChain   = 0x01c00100
	maxChain  = 4
)

// ekCertificates reads the EK's certificate, and issuers if the TPM holds any.
// None at all is left to the broker to refuse, whose operator should know.
func (d *Device) ekCertificates() ([][]byte, tpm2.TPMTPublic) {
	template := tpm2.RSAEKTemplate
	if given := d.cfg.EKCertificates; len(given) > 0 {
		if t, err := ekTemplate(given[0]); err == nil {
			template = t
		}
		return given, template
	}
	cert, err := d.nvRead(nvP256)
	if err == nil {
		template = tpm2.ECCEKTemplate
	} else if cert, err = d.nvRead(nvRSA2048); err != nil {
		return nil, template
	}
	chain := [][]byte{cert}
	for i := range uint32(maxChain) {
		b, err := d.nvRead(nvChain + i)
		if err != nil {
			break
		}
		// One index may hold several certificates, one after the other.
		for len(chain) < 8 {
			var raw asn1.RawValue
			rest, err := asn1.Unmarshal(b, &raw)
			if err != nil {
				break
			}
			chain = append(chain, raw.FullBytes)
			b = rest
		}
	}
	return chain, template
}

// ekTemplate makes the endorsement key that a certificate is of.
func ekTemplate(der []byte) (tpm2.TPMTPublic, error) {
	c, err := parseEK(der)
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	if certs.KindOf(c.PublicKey) == certs.P256 {
		return tpm2.ECCEKTemplate, nil
	}
	return tpm2.RSAEKTemplate, nil
}

func parseEK(der []byte) (*x509.Certificate, error) {
	return certs.ParseTPM(der, certs.RSA, certs.P256)
}

func (d *Device) nvRead(index uint32) ([]byte, error) { return d.nvReadAs(index, false) }

func (d *Device) nvReadAs(index uint32, owner bool) ([]byte, error) {
	h := tpm2.TPMHandle(index)
	p, err := tpm2.NVReadPublic{NVIndex: h}.Execute(d.tpm)
	if err != nil {
		return nil, err
	}
	pub, err := p.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	auth := tpm2.AuthHandle{Handle: h, Name: p.NVName, Auth: tpm2.PasswordAuth(nil)}
	if owner {
		auth = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	var out []byte
	for len(out) < int(pub.DataSize) {
		r, err := tpm2.NVRead{
			AuthHandle: auth,
			NVIndex:    tpm2.NamedHandle{Handle: h, Name: p.NVName},
			Size:       min(512, pub.DataSize-uint16(len(out))), Offset: uint16(len(out)),
		}.Execute(d.tpm)
		if err != nil {
			return nil, err
		}
		if len(r.Data.Buffer) == 0 {
			return nil, errors.New("empty read")
		}
		out = append(out, r.Data.Buffer...)
	}
	return out, nil
}

// AKName is the TPM name of the attestation key, hex.
func (d *Device) AKName() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.loadAK(); err != nil {
		return "", err
	}
	return hex.EncodeToString(d.ak.name.Buffer), nil
}

// AKPublic is the attestation key (SubjectPublicKeyInfo, DER), for a CA that certifies it.
func (d *Device) AKPublic() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.loadAK(); err != nil {
		return nil, err
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](d.ak.public)
	if err != nil {
		return nil, fmt.Errorf("TPM: attestation key: %w", err)
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, fmt.Errorf("TPM: attestation key: %w", err)
	}
	return x509.MarshalPKIXPublicKey(key)
}

// EKCertificate is the certificate that the manufacturer left in the TPM.
func (d *Device) EKCertificate() (*x509.Certificate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	chain, _ := d.ekCertificates()
	if len(chain) == 0 {
		return nil, errors.New(`TPM: it holds no endorsement key certificate: get it from its manufacturer, and name the file in "tpm.ek_certificate"`)
	}
	c, err := parseEK(chain[0])
	if err != nil {
		return nil, fmt.Errorf("TPM: endorsement key certificate: %w", err)
	}
	return c, nil
}

// ChipID is what the claims call this TPM: the SHA-256 of its certified
// endorsement key (SubjectPublicKeyInfo), hex; of its attestation key where that is what is certified.
func (d *Device) ChipID() (string, error) {
	if len(d.cfg.AKCertificate) > 0 {
		spki, err := d.AKPublic()
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(spki)
		return hex.EncodeToString(sum[:]), nil
	}
	c, err := d.EKCertificate()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}
