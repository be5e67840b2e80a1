// Package dcaptest makes a whole simulated Intel platform under a test root:
// certificates, revocation lists, signed TCB info and QE identities, and quotes
// with any content. Every name in it says TEST SIMULATED. It is for tests and
// for a simulated device; production code must not import it.
package dcaptest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
)

// Platform is a simulated platform. Its fields may be changed before
// Certify, Collateral and the Quote methods are called, each of which uses
// those that its documentation names.
type Platform struct {
	// PCK is what the PCK certificate says; used by Certify.
	PCK dcap.PCK
	// The validity of the PCK certificate, the PCK CA and the TCB signing
	// certificate; used by Certify.
	NotBefore, NotAfter time.Time

	// TCB info and QE identities; used by Collateral.
	TDX, SGX    TCBInfo
	TDQE, SGXQE QEIdentity
	// CRLs; used by Collateral.
	RevokedByRoot, RevokedByCA   []*big.Int
	CRLThisUpdate, CRLNextUpdate time.Time
	CRLNumber                    int64

	// QE is the quoting enclave's report apart from REPORTDATA; used by Quote….
	QE     dcap.EnclaveReport
	QEAuth []byte
	// Trailer is appended to quotes, after the signature data.
	Trailer []byte

	Root, CA, Leaf, TCBSigning *Certificate
	attKey                     *ecdsa.PrivateKey
	prefix                     string // of common names

	mu        sync.Mutex
	certified struct { // guarded by mu; see certify
		of        [32]byte
		signature []byte
	}
}

// Certificate is a certificate and its key.
type Certificate struct {
	*x509.Certificate
	Key *ecdsa.PrivateKey
}

// TCBInfo is the signed part of TCB info version 3.
type TCBInfo struct {
	ID                      string     `json:"id"`
	Version                 int        `json:"version"`
	IssueDate               time.Time  `json:"issueDate"`
	NextUpdate              time.Time  `json:"nextUpdate"`
	FMSPC                   string     `json:"fmspc"`
	PCEID                   string     `json:"pceId"`
	TCBType                 int        `json:"tcbType"`
	TCBEvaluationDataNumber int        `json:"tcbEvaluationDataNumber"`
	TDXModule               *Module    `json:"tdxModule,omitempty"`
	TDXModuleIdentities     []Module   `json:"tdxModuleIdentities,omitempty"`
	TCBLevels               []TCBLevel `json:"tcbLevels"`
}

// Module is a TDX module identity.
type Module struct {
	ID             string     `json:"id,omitempty"`
	MRSigner       string     `json:"mrsigner"`
	Attributes     string     `json:"attributes"`
	AttributesMask string     `json:"attributesMask"`
	TCBLevels      []ISVLevel `json:"tcbLevels,omitempty"`
}

// TCBLevel is a platform's TCB level.
type TCBLevel struct {
	TCB         TCB       `json:"tcb"`
	TCBDate     time.Time `json:"tcbDate"`
	TCBStatus   string    `json:"tcbStatus"`
	AdvisoryIDs []string  `json:"advisoryIDs,omitempty"`
}

// TCB are the SVNs of a platform's TCB level.
type TCB struct {
	SGX    []Component `json:"sgxtcbcomponents"`
	PCESVN uint16      `json:"pcesvn"`
	TDX    []Component `json:"tdxtcbcomponents,omitempty"`
}

// Component is one SVN.
type Component struct {
	SVN uint8 `json:"svn"`
}

// ISVLevel is a TCB level of a TDX module or a QE.
type ISVLevel struct {
	TCB struct {
		ISVSVN uint16 `json:"isvsvn"`
	} `json:"tcb"`
	TCBDate     time.Time `json:"tcbDate"`
	TCBStatus   string    `json:"tcbStatus"`
	AdvisoryIDs []string  `json:"advisoryIDs,omitempty"`
}

// QEIdentity is the signed part of a QE identity version 2.
type QEIdentity struct {
	ID                      string     `json:"id"`
	Version                 int        `json:"version"`
	IssueDate               time.Time  `json:"issueDate"`
	NextUpdate              time.Time  `json:"nextUpdate"`
	TCBEvaluationDataNumber int        `json:"tcbEvaluationDataNumber"`
	MISCSELECT              string     `json:"miscselect"`
	MISCSELECTMask          string     `json:"miscselectMask"`
	Attributes              string     `json:"attributes"`
	AttributesMask          string     `json:"attributesMask"`
	MRSIGNER                string     `json:"mrsigner"`
	ISVPRODID               uint16     `json:"isvprodid"`
	TCBLevels               []ISVLevel `json:"tcbLevels"`
}

// Level makes an ISVLevel.
func Level(isvsvn uint16, status string, date time.Time, advisories ...string) ISVLevel {
	l := ISVLevel{TCBDate: date, TCBStatus: status, AdvisoryIDs: advisories}
	l.TCB.ISVSVN = isvsvn
	return l
}

// New makes an up-to-date multi-package platform whose certificates and
// collateral were issued a day before now, and certifies it.
func New(now time.Time) (*Platform, error) {
	now = now.UTC().Truncate(time.Second)
	issued, next := now.AddDate(0, 0, -1), now.AddDate(0, 0, 30)
	date := issued.AddDate(0, -6, 0)
	p := &Platform{
		prefix: "TEST SIMULATED ",
		PCK: dcap.PCK{
			PPID: [16]byte{0x51, 1}, CPUSVN: [16]byte{5, 5}, Components: [16]uint8{5, 5, 2, 2}, PCESVN: 13,
			FMSPC: [6]byte{0x99, 0x80, 0x6f}, SGXType: 1, CA: "platform",
			Platform: &dcap.PCKPlatform{InstanceID: [16]byte{0x71, 2}, CachedKeys: true, SMTEnabled: true},
		},
		NotBefore: issued, NotAfter: now.AddDate(7, 0, 0),
		CRLThisUpdate: issued, CRLNextUpdate: next, CRLNumber: 1,
		QEAuth: make([]byte, 32),
	}
	for i := range p.QEAuth {
		p.QEAuth[i] = byte(i)
	}
	p.TDX = TCBInfo{
		ID: "TDX", Version: 3, IssueDate: issued, NextUpdate: next, FMSPC: "99806f000000", PCEID: "0000", TCBEvaluationDataNumber: 18,
		TDXModule: &Module{MRSigner: zeros(48), Attributes: zeros(8), AttributesMask: "FFFFFFFFFFFFFFFF"},
		TDXModuleIdentities: []Module{{
			ID: "TDX_01", MRSigner: zeros(48), Attributes: zeros(8), AttributesMask: "FFFFFFFFFFFFFFFF",
			TCBLevels: []ISVLevel{Level(5, "UpToDate", date), Level(3, "OutOfDate", date.AddDate(-1, 0, 0), "TEST-SA-00003")},
		}},
		TCBLevels: []TCBLevel{
			{TCB: TCB{SGX: components(5, 5, 2, 2), PCESVN: 13, TDX: components(5, 0, 3)}, TCBDate: date, TCBStatus: "UpToDate"},
			{TCB: TCB{SGX: components(4, 4, 2, 2), PCESVN: 13, TDX: components(5, 0, 3)}, TCBDate: date.AddDate(-1, 0, 0), TCBStatus: "OutOfDate", AdvisoryIDs: []string{"TEST-SA-00001", "TEST-SA-00002"}},
		},
	}
	p.SGX = TCBInfo{
		ID: "SGX", Version: 3, IssueDate: issued, NextUpdate: next, FMSPC: "99806f000000", PCEID: "0000", TCBEvaluationDataNumber: 18,
		TCBLevels: []TCBLevel{{TCB: TCB{SGX: components(5, 5, 2, 2), PCESVN: 13}, TCBDate: date, TCBStatus: "UpToDate"}},
	}
	p.QE = dcap.EnclaveReport{ATTRIBUTES: [16]byte{0x11}, MRSIGNER: [32]byte{0xdc, 0x9e}, ISVPRODID: 2, ISVSVN: 4}
	p.TDQE = QEIdentity{
		ID: "TD_QE", Version: 2, IssueDate: issued, NextUpdate: next, TCBEvaluationDataNumber: 18,
		MISCSELECT: zeros(4), MISCSELECTMask: "FFFFFFFF",
		Attributes: "11" + zeros(15), AttributesMask: "FBFFFFFFFFFFFFFF" + zeros(8),
		MRSIGNER: hex.EncodeToString(p.QE.MRSIGNER[:]), ISVPRODID: 2,
		TCBLevels: []ISVLevel{Level(4, "UpToDate", date)},
	}
	p.SGXQE = p.TDQE
	p.SGXQE.ID = "QE"
	return p, p.Certify()
}

// Certify makes all keys and certificates anew, with PCK, NotBefore and NotAfter.
func (p *Platform) Certify() error {
	var err error
	ca := x509.Certificate{
		Subject: p.subject("Root CA"), NotBefore: p.NotBefore.AddDate(-8, 0, 0), NotAfter: p.NotAfter.AddDate(30, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if p.Root, err = issue(ca, nil); err != nil {
		return err
	}
	ca.Subject, ca.MaxPathLen, ca.MaxPathLenZero = p.subject("PCK Platform CA"), 0, true
	if p.PCK.CA == "processor" {
		ca.Subject = p.subject("PCK Processor CA")
	}
	ca.NotBefore, ca.NotAfter = p.NotBefore, p.NotAfter
	if p.CA, err = issue(ca, p.Root); err != nil {
		return err
	}
	if err := p.RenewTCBSigning(); err != nil {
		return err
	}
	leaf := p.signing("PCK Certificate")
	ext, err := extension(p.PCK)
	if err != nil {
		return err
	}
	leaf.ExtraExtensions = []pkix.Extension{ext}
	leaf.CRLDistributionPoints = []string{"https://simulated.invalid/pckcrl"}
	if p.Leaf, err = issue(leaf, p.CA); err != nil {
		return err
	}
	p.attKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return err
}

// RenewTCBSigning makes another key and certificate for signing TCB info and QE identities.
func (p *Platform) RenewTCBSigning() error {
	var err error
	p.TCBSigning, err = issue(p.signing("TCB Signing"), p.Root)
	return err
}

func (p *Platform) signing(role string) x509.Certificate {
	return x509.Certificate{
		Subject: p.subject(role), NotBefore: p.NotBefore, NotAfter: p.NotAfter,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
	}
}

// Collateral is a fixed set of collateral.
type Collateral map[attest.CollateralRef]attest.CollateralItem

// Get implements attest.Collateral.
func (c Collateral) Get(_ context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	it, ok := c[ref]
	if !ok {
		return it, attest.Errorf("collateral", attest.ReasonCollateralMissing, "no %s %q", ref.Kind, ref.Key)
	}
	return it, nil
}

// Collateral signs all collateral of the platform.
func (p *Platform) Collateral() (Collateral, error) {
	c := Collateral{}
	for _, d := range []struct {
		kind   attest.CollateralKind
		key    string
		member string
		value  any
	}{
		{attest.TDXTCBInfo, hex.EncodeToString(p.PCK.FMSPC[:]), "tcbInfo", p.TDX},
		{attest.SGXTCBInfo, hex.EncodeToString(p.PCK.FMSPC[:]), "tcbInfo", p.SGX},
		{attest.TDXQEID, "", "enclaveIdentity", p.TDQE},
		{attest.SGXQEID, "", "enclaveIdentity", p.SGXQE},
	} {
		raw, err := json.Marshal(d.value)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", d.member, err)
		}
		it, err := p.SignDocument(d.member, raw)
		if err != nil {
			return nil, err
		}
		c[attest.CollateralRef{Kind: d.kind, Key: d.key}] = it
	}
	var err error
	root, ca := attest.CollateralRef{Kind: attest.IntelRootCRL}, attest.CollateralRef{Kind: attest.PCKCRL, Key: p.PCK.CA}
	if c[root], err = p.crl(p.Root, p.RevokedByRoot); err != nil {
		return nil, err
	}
	list, err := p.crl(p.CA, p.RevokedByCA)
	if err != nil {
		return nil, err
	}
	list.IssuerChain = chain(p.CA, p.Root)
	c[ca] = list
	return c, nil
}

// SignDocument makes {"<member>": raw, "signature": …} with its issuer chain.
func (p *Platform) SignDocument(member string, raw []byte) (attest.CollateralItem, error) {
	sig, err := sign(p.TCBSigning.Key, raw)
	if err != nil {
		return attest.CollateralItem{}, err
	}
	return attest.CollateralItem{
		Data:        fmt.Appendf(nil, `{"%s":%s,"signature":"%x"}`, member, raw, sig),
		IssuerChain: chain(p.TCBSigning, p.Root),
		Source:      "bundle",
	}, nil
}

func (p *Platform) crl(issuer *Certificate, revoked []*big.Int) (attest.CollateralItem, error) {
	list := &x509.RevocationList{Number: big.NewInt(p.CRLNumber), ThisUpdate: p.CRLThisUpdate, NextUpdate: p.CRLNextUpdate}
	for _, n := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: p.CRLThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer.Certificate, issuer.Key)
	if err != nil {
		return attest.CollateralItem{}, fmt.Errorf("sign CRL: %w", err)
	}
	return attest.CollateralItem{Data: der, Source: "bundle"}, nil
}

// TD returns the report of a TD on an up-to-date platform: TDX module 1.5.
func (p *Platform) TD() dcap.TDReport {
	r := dcap.TDReport{
		TEETCBSVN:    [16]byte{5, 1, 3},
		MRSEAM:       pattern(0x5e),
		TDATTRIBUTES: [8]byte{3: 0x10}, // SEPT_VE_DISABLE
		XFAM:         [8]byte{0xe7, 0x02, 0x06},
		MRTD:         pattern(0x4d),
		TDX15:        &dcap.TDReport15{TEETCBSVN2: [16]byte{5, 1, 3}},
	}
	for i := range r.RTMR {
		r.RTMR[i] = pattern(byte(0xa0 + i))
	}
	return r
}

// QuoteTD makes a quote of version 4 (which has room for a TDX 1.0 report
// only: TDX15 is left out) or 5, over r.
func (p *Platform) QuoteTD(version uint16, r dcap.TDReport) ([]byte, error) {
	var body []byte
	for _, f := range [][]byte{
		r.TEETCBSVN[:], r.MRSEAM[:], r.MRSIGNERSEAM[:], r.SEAMATTRIBUTES[:], r.TDATTRIBUTES[:], r.XFAM[:],
		r.MRTD[:], r.MRCONFIGID[:], r.MROWNER[:], r.MROWNERCONFIG[:],
		r.RTMR[0][:], r.RTMR[1][:], r.RTMR[2][:], r.RTMR[3][:], r.REPORTDATA[:],
	} {
		body = append(body, f...)
	}
	bodyType := uint16(2)
	if version >= 5 && r.TDX15 != nil {
		bodyType = 3
		body = append(append(body, r.TDX15.TEETCBSVN2[:]...), r.TDX15.MRSERVICETD[:]...)
	}
	return p.quote(version, dcap.TEETDX, bodyType, body)
}

// QuoteSGX makes a quote of version 3, 4 or 5 over r.
func (p *Platform) QuoteSGX(version uint16, r dcap.EnclaveReport) ([]byte, error) {
	return p.quote(version, dcap.TEESGX, 1, enclaveReport(r))
}

func (p *Platform) quote(version uint16, tee dcap.TEEType, bodyType uint16, body []byte) ([]byte, error) {
	le := binary.LittleEndian
	var b []byte
	b = le.AppendUint16(b, version)
	b = le.AppendUint16(b, 2) // ECDSA P-256
	b = le.AppendUint32(b, uint32(tee))
	b = append(b, 0, 0, 0, 0)
	b = append(b, 0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07)
	b = append(b, make([]byte, 20)...)
	if version >= 5 {
		b = le.AppendUint16(b, bodyType)
		b = le.AppendUint32(b, uint32(len(body)))
	}
	b = append(b, body...)

	quoteSig, err := sign(p.attKey, b)
	if err != nil {
		return nil, err
	}
	point, err := p.attKey.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode attestation key: %w", err)
	}
	key := point[1:]
	qe := p.QE
	sum := sha256.Sum256(append(append([]byte{}, key...), p.QEAuth...))
	copy(qe.REPORTDATA[:], sum[:])
	qeRaw := enclaveReport(qe)
	qeSig, err := p.certify(qeRaw)
	if err != nil {
		return nil, err
	}
	pemChain := chain(p.Leaf, p.CA, p.Root)
	cert := append(qeRaw, qeSig...)
	cert = le.AppendUint16(cert, uint16(len(p.QEAuth)))
	cert = append(cert, p.QEAuth...)
	cert = le.AppendUint16(cert, 5)
	cert = le.AppendUint32(cert, uint32(len(pemChain)))
	cert = append(cert, pemChain...)

	sig := append(quoteSig, key...)
	if version >= 4 {
		sig = le.AppendUint16(sig, 6)
		sig = le.AppendUint32(sig, uint32(len(cert)))
	}
	sig = append(sig, cert...)
	b = le.AppendUint32(b, uint32(len(sig)))
	b = append(b, sig...)
	return append(b, p.Trailer...), nil
}

// certify has the PCK sign the quoting enclave's report. Like Intel's quoting
// enclave it keeps the signature beside its attestation key and puts it into
// every quote: real quotes of one platform carry the same bytes.
func (p *Platform) certify(qeReport []byte) ([]byte, error) {
	of := sha256.Sum256(slices.Concat(p.Leaf.Raw, qeReport))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.certified.of == of {
		return slices.Clone(p.certified.signature), nil
	}
	sig, err := sign(p.Leaf.Key, qeReport)
	if err != nil {
		return nil, err
	}
	p.certified.of, p.certified.signature = of, slices.Clone(sig)
	return sig, nil
}

func enclaveReport(r dcap.EnclaveReport) []byte {
	b := make([]byte, 384)
	le := binary.LittleEndian
	copy(b[0:], r.CPUSVN[:])
	copy(b[16:], r.MISCSELECT[:])
	copy(b[32:], r.ISVEXTPRODID[:])
	copy(b[48:], r.ATTRIBUTES[:])
	copy(b[64:], r.MRENCLAVE[:])
	copy(b[128:], r.MRSIGNER[:])
	copy(b[192:], r.CONFIGID[:])
	le.PutUint16(b[256:], r.ISVPRODID)
	le.PutUint16(b[258:], r.ISVSVN)
	le.PutUint16(b[260:], r.CONFIGSVN)
	copy(b[304:], r.ISVFAMILYID[:])
	copy(b[320:], r.REPORTDATA[:])
	return b
}

func (p *Platform) subject(role string) pkix.Name {
	return pkix.Name{CommonName: p.prefix + "Intel SGX " + role, Organization: []string{"TEST SIMULATED"}, Country: []string{"US"}}
}

// issue makes a key and a certificate for it; a nil issuer means self-signed.
func issue(tmpl x509.Certificate, issuer *Certificate) (*Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 150)); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	pub, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	id := sha256.Sum256(pub)
	tmpl.SubjectKeyId = id[:20]
	if issuer == nil {
		issuer = &Certificate{&tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, issuer.Certificate, key.Public(), issuer.Key)
	if err != nil {
		return nil, fmt.Errorf("sign %q: %w", tmpl.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse %q: %w", tmpl.Subject.CommonName, err)
	}
	return &Certificate{cert, key}, nil
}

// extension encodes the SGX extension of a PCK certificate.
func extension(p dcap.PCK) (pkix.Extension, error) {
	type item struct {
		ID    asn1.ObjectIdentifier
		Value any
	}
	oid := func(arcs ...int) asn1.ObjectIdentifier {
		return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, arcs...)
	}
	var tcb []item
	for i, n := range p.Components {
		tcb = append(tcb, item{oid(2, i+1), int(n)})
	}
	tcb = append(tcb, item{oid(2, 17), int(p.PCESVN)}, item{oid(2, 18), p.CPUSVN[:]})
	items := []item{
		{oid(1), p.PPID[:]}, {oid(2), tcb}, {oid(3), p.PCEID[:]}, {oid(4), p.FMSPC[:]}, {oid(5), asn1.Enumerated(p.SGXType)},
	}
	if f := p.Platform; f != nil {
		items = append(items, item{oid(6), f.InstanceID[:]},
			item{oid(7), []item{{oid(7, 1), f.DynamicPlatform}, {oid(7, 2), f.CachedKeys}, {oid(7, 3), f.SMTEnabled}}})
	}
	der, err := asn1.Marshal(items)
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encode SGX extension: %w", err)
	}
	return pkix.Extension{Id: oid(), Value: der}, nil
}

func chain(certs ...*Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// sign returns r || s over SHA-256 of data.
func sign(key *ecdsa.PrivateKey, data []byte) ([]byte, error) {
	sum := sha256.Sum256(data)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

func components(svns ...uint8) []Component {
	c := make([]Component, 16)
	for i, n := range svns {
		c[i].SVN = n
	}
	return c
}

func zeros(n int) string { return fmt.Sprintf("%0*d", 2*n, 0) }

// pattern is a recognisable 48-byte value.
func pattern(b byte) (d [48]byte) {
	for i := range d {
		d[i] = b
	}
	return d
}
