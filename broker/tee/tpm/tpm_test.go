package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tpmquote"
)

// recorded are boots of real guests (QEMU, OVMF, swtpm), with what must come of them.
const recorded = "../../../../shared/evidence/tpm/boot"

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func pcrName(i int) string { return "pcr" + strconv.Itoa(i) }

type boots struct {
	evidence attest.Evidence
	extra    []byte // qualifying data: another protocol's
	ek       [][]byte
	ekPub    []byte
	want     map[string]string
}

func load(t testing.TB, name string) boots {
	t.Helper()
	read := func(file string, v any) []byte {
		b, err := os.ReadFile(filepath.Join(recorded, name, file))
		if err != nil {
			t.Skipf("no recorded evidence: %v", err)
		}
		if v != nil {
			if err := json.Unmarshal(b, v); err != nil {
				t.Fatal(err)
			}
		}
		return b
	}
	var ev struct {
		Quote []byte            `json:"quote"`
		Sig   []byte            `json:"sig"`
		PCRs  map[string][]byte `json:"pcrs"`
	}
	var session struct {
		Hello struct {
			EKCerts [][]byte `json:"ek_certs"`
			EKPub   []byte   `json:"ek_pub"`
			AKPub   []byte   `json:"ak_pub"`
		} `json:"hello"`
	}
	b := boots{want: map[string]string{}}
	read("evidence.json", &ev)
	read("session.json", &session)
	read("claims.json", &b.want)
	r := attest.TPMReport{Quote: ev.Quote, Signature: ev.Sig, AKPublic: session.Hello.AKPub}
	for i := range 24 {
		if d, ok := ev.PCRs[itoa(i)]; ok {
			r.PCRs = append(r.PCRs, attest.PCR{Index: i, Digest: d})
		}
	}
	report, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.evidence = attest.Evidence{Type: attest.TypeTPM, Report: report, EventLog: read("eventlog.bin", nil)}
	q, err := tpmquote.Parse(r.Quote, r.Signature)
	if err != nil {
		t.Fatal(err)
	}
	b.extra = q.ExtraData()
	b.ek, b.ekPub = session.Hello.EKCerts, session.Hello.EKPub
	return b
}

func itoa(i int) string { return strings.TrimPrefix(pcrName(i), "pcr") }

func recordedCA(t testing.TB) (roots, inters []*x509.Certificate) {
	t.Helper()
	one := func(name string) []*x509.Certificate {
		b, err := os.ReadFile(filepath.Join(recorded, name))
		if err != nil {
			t.Skipf("no recorded evidence: %v", err)
		}
		block, _ := pem.Decode(b)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{c}
	}
	return one("swtpm-localca-rootca-cert.pem"), one("issuercert.pem")
}

func verifier(t testing.TB, cfg Config) *Verifier {
	t.Helper()
	if cfg.TicketKey == nil {
		cfg.TicketKey = make([]byte, 32)
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestRecordedBoots: quotes, PCRs and logs of four real boots come out as the guests' own recorder said.
func TestRecordedBoots(t *testing.T) {
	for _, name := range []string{"direct", "uki", "uki-sb", "grub-sb"} {
		t.Run(name, func(t *testing.T) {
			b := load(t, name)
			// Nobody activated this key with this broker, so the evidence is looked at unbound.
			c, err := verifier(t, Config{Unvouched: true}).Verify(t.Context(), b.evidence, attest.Unbound(), nil, now)
			if err != nil {
				t.Fatal(err)
			}
			m, boot := c.Measurements, c.TPM.(*tpmquote.Claims).Boot
			for i := range 16 {
				if want := b.want[pcrName(i)]; want != "" && m[pcrName(i)] != want {
					t.Errorf("%s is %s, want %s", pcrName(i), m[pcrName(i)], want)
				}
			}
			if (boot.SecureBoot == tpmquote.SecureBootOn) != (b.want["secure_boot"] == "true") || boot.SecureBoot == tpmquote.SecureBootUnknown {
				t.Errorf("secure boot %s, want %s", boot.SecureBoot, b.want["secure_boot"])
			}
			if want := b.want["efi_app0"]; want != "" && (len(boot.BootChain) == 0 || boot.BootChain[0] != want) {
				t.Errorf("boot chain %v, want %s first", boot.BootChain, want)
			}
			if boot.Initrd != b.want["initrd_sha256"] || name != "grub-sb" && boot.CmdlineDigest != b.want["load_options_sha256"] {
				t.Errorf("initrd %s, cmdline %s, want %s and %s", boot.Initrd, boot.CmdlineDigest, b.want["initrd_sha256"], b.want["load_options_sha256"])
			}
			if strings.HasPrefix(name, "uki") != (len(boot.UKI) == 4) {
				t.Errorf("UKI sections %v", boot.UKI)
			}
			// GRUB's command line is what a label says, and no claim.
			if says := c.TPM.(*tpmquote.Claims).LogSays; name == "grub-sb" && (boot.Cmdline != "" || m["cmdline"] != "" || says.Cmdline != "/vmlinuz console=ttyS0 quiet panic=-1 gotpmtools") {
				t.Errorf("command line %q, %+v", boot.Cmdline, says)
			}
			if c.BoundToCPUTEE || c.Bound || c.TPM.(*tpmquote.Claims).AK.Trust != tpmquote.TrustNone {
				t.Errorf("bound to a CPU TEE %v, bound %v, trust %s", c.BoundToCPUTEE, c.Bound, c.TPM.(*tpmquote.Claims).AK.Trust)
			}
		})
	}
}

// TestCmdlineClaim: the guest's word becomes a claim only where the log has its digest.
func TestCmdlineClaim(t *testing.T) {
	b := load(t, "direct")
	r, err := attest.DecodeTPMReport(b.evidence.Report)
	if err != nil {
		t.Fatal(err)
	}
	for cmdline, want := range map[string]string{
		"console=ttyS0 quiet panic=-1 initrd=initrd": "", "": "",
	} {
		r.Cmdline = cmdline
		b.evidence.Report, _ = r.Encode()
		c, err := verifier(t, Config{Unvouched: true}).Verify(t.Context(), b.evidence, attest.Unbound(), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.TPM.(*tpmquote.Claims).Boot.Cmdline; got != want && got != cmdline {
			t.Errorf("%q: claimed %q", cmdline, got)
		}
	}
}

// TestNobodyVouches: bound evidence of a key that is neither activated nor certified is refused.
func TestNobodyVouches(t *testing.T) {
	b := load(t, "direct")
	_, err := verifier(t, Config{}).Verify(t.Context(), b.evidence, attest.BindExact(b.extra), nil, now)
	var e *attest.Error
	if !errors.As(err, &e) || e.Check != "tpm.ak_activation" || e.Reason != attest.ReasonChain {
		t.Fatalf("%v", err)
	}
	if _, err := verifier(t, Config{}).Verify(t.Context(), b.evidence, attest.BindExact(make([]byte, 32)), nil, now); attest.ReasonOf(err) != attest.ReasonBinding {
		t.Fatalf("another request's: %v", err)
	}
}

// TestActivateRecordedEK: the recorded EK certificate leads to its CA, and to no other.
func TestActivateRecordedEK(t *testing.T) {
	b := load(t, "direct")
	r, _ := attest.DecodeTPMReport(b.evidence.Report)
	roots, inters := recordedCA(t)
	req := attest.TPMActivation{EKCertificates: b.ek[:1], EKPublic: b.ekPub, AKPublic: r.AKPublic}
	good := verifier(t, Config{EKRoots: roots, EKIntermediates: inters})
	c, err := good.Activate(req, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.CredentialBlob) == 0 || len(c.EncryptedSecret) == 0 || !c.Expires.After(now) {
		t.Errorf("%+v", c)
	}
	other := load(t, "uki")
	otherReport, _ := attest.DecodeTPMReport(other.evidence.Report)
	for name, tc := range map[string]struct {
		v     *Verifier
		edit  func(*attest.TPMActivation)
		now   time.Time
		check string
		why   attest.Reason
	}{
		"no CA configured":       {verifier(t, Config{}), func(*attest.TPMActivation) {}, now, "tpm.ek_certificate", attest.ReasonChain},
		"another manufacturer":   {verifier(t, Config{EKRoots: inters[:0:0], EKIntermediates: roots}), func(*attest.TPMActivation) {}, now, "tpm.ek_certificate", attest.ReasonChain},
		"no intermediate":        {verifier(t, Config{EKRoots: roots}), func(*attest.TPMActivation) {}, now, "tpm.ek_certificate", attest.ReasonChain},
		"no certificate":         {good, func(a *attest.TPMActivation) { a.EKCertificates = nil }, now, "tpm.ek_certificate", attest.ReasonChain},
		"another TPM's EK":       {good, func(a *attest.TPMActivation) { a.EKPublic = other.ekPub }, now, "tpm.ek_certificate", attest.ReasonMismatch},
		"the AK as EK":           {good, func(a *attest.TPMActivation) { a.EKPublic = otherReport.AKPublic }, now, "tpm.ek", attest.ReasonUnsupported},
		"the EK as AK":           {good, func(a *attest.TPMActivation) { a.AKPublic = a.EKPublic }, now, "tpm.ak", attest.ReasonUnsupported},
		"before it was valid":    {good, func(*attest.TPMActivation) {}, now.AddDate(-1, 0, 0), "tpm.ek_certificate", attest.ReasonValidity},
		"certificate of garbage": {good, func(a *attest.TPMActivation) { a.EKCertificates = [][]byte{{1, 2, 3}} }, now, "tpm.ek_certificate", attest.ReasonMalformed},
		"a CA as EK":             {good, func(a *attest.TPMActivation) { a.EKCertificates = [][]byte{inters[0].Raw} }, now, "tpm.ek_certificate", attest.ReasonChain},
		"a huge key above it":    {good, func(a *attest.TPMActivation) { a.EKCertificates = [][]byte{b.ek[0], hugeKey(t)} }, now, "tpm.ek_certificate", attest.ReasonMalformed},
	} {
		a := req
		tc.edit(&a)
		_, err := tc.v.Activate(a, tc.now)
		var e *attest.Error
		if !errors.As(err, &e) || e.Check != tc.check || e.Reason != tc.why {
			t.Errorf("%s: %v, want %s %s", name, err, tc.check, tc.why)
		}
	}
}

// hugeKey is a certificate that nobody vouches for, whose RSA key has 59,200 bits:
// a signature takes half a second to check.
func hugeKey(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a stranger"}, NotBefore: now, NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	public := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 59199, 1), E: 1<<31 - 1}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestForgedLogs: a log that was changed in what counts is refused, and in what does not count changes no claim.
func TestForgedLogs(t *testing.T) {
	for _, name := range []string{"direct", "uki", "grub-sb"} {
		b := load(t, name)
		v := verifier(t, Config{Unvouched: true})
		good, err := v.Verify(t.Context(), b.evidence, attest.Unbound(), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		want := good.TPM.(*tpmquote.Claims).Boot
		for i := 0; i < len(b.evidence.EventLog); i += 3 {
			ev := b.evidence
			ev.EventLog = append([]byte{}, b.evidence.EventLog...)
			ev.EventLog[i] ^= 1 << (i % 8)
			c, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, now)
			if err != nil {
				continue
			}
			// Labels are not measured: a claim may vanish by such a lie, but never change.
			got := c.TPM.(*tpmquote.Claims).Boot
			for _, f := range [][2]string{
				{got.Initrd, want.Initrd}, {got.CmdlineDigest, want.CmdlineDigest}, {got.Cmdline, want.Cmdline},
				{strings.Join(got.BootChain, ","), strings.Join(want.BootChain, ",")},
				{strings.TrimPrefix(got.SecureBoot, tpmquote.SecureBootUnknown), want.SecureBoot},
			} {
				// A mark whose text was changed counts as a program: more than there was, which no reference lists.
				if f[0] != "" && f[0] != f[1] && !strings.Contains(f[0], want.BootChain[0]) {
					t.Errorf("%s: byte %d: claim %q became %q", name, i, f[1], f[0])
				}
			}
		}
		for i := 1; i < len(b.evidence.EventLog); i += 17 {
			ev := b.evidence
			ev.EventLog = b.evidence.EventLog[:i]
			if c, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, now); err == nil && c.TPM.(*tpmquote.Claims).EventLog != tpmquote.EventLogPartial {
				t.Errorf("%s: cut to %d bytes: accepted as whole", name, i)
			}
		}
	}
}

// TestFlippedReports: no flipped bit in quote, signature, key or PCRs is accepted.
func TestFlippedReports(t *testing.T) {
	b := load(t, "direct")
	v := verifier(t, Config{Unvouched: true})
	r, err := attest.DecodeTPMReport(b.evidence.Report)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{"quote": r.Quote, "signature": r.Signature, "key": r.AKPublic}
	for _, p := range r.PCRs {
		parts[pcrName(p.Index)] = p.Digest
	}
	for name, part := range parts {
		for bit := range 8 * len(part) {
			part[bit/8] ^= 1 << (bit % 8)
			report, _ := r.Encode()
			if _, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeTPM, Report: report, EventLog: b.evidence.EventLog}, attest.Unbound(), nil, now); err == nil {
				// Attributes such as noDA are not part of what a quote proves unless the AK's name is known:
				// with a ticket or certificate they are (TestActivation).
				if name != "key" {
					t.Errorf("%s: bit %d: accepted", name, bit)
				}
			}
			part[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"quote":"AA==","signature":"AA==","ak_public":"AA==","pcrs":[{"index":0,"digest":"`+base64.StdEncoding.EncodeToString(make([]byte, 32))+`"}]}`), []byte(nil))
	if _, err := os.Stat(recorded); err == nil {
		b := load(f, "direct")
		f.Add(b.evidence.Report, b.evidence.EventLog)
	}
	v, err := New(Config{TicketKey: make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, report, log []byte) {
		c, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeTPM, Report: report, EventLog: log}, attest.BindExact(make([]byte, 32)), nil, now)
		if err == nil {
			t.Fatalf("accepted %s", hex.EncodeToString([]byte(c.ReportData)))
		}
	})
}
