// Package dcap verifies what Intel SGX and TDX quotes share by Intel's Data
// Center Attestation Primitives: the quote format (v3, v4, v5), the quoting
// enclave, the PCK certificate chain, revocation, and the TCB evaluation. It
// says nothing about what runs in the TEE: binding, measurements and debug
// belong to the packages of the evidence types.
//
// Sources: "Intel TDX DCAP Quoting Library API" and "Intel SGX ECDSA Quote
// Library Reference" (quote format), "Intel SGX PCK Certificate and CRL Profile
// Specification", the PCS API V4 (collateral), and Intel's quote verification
// library for the order of checks.
package dcap

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/memo"
)

// Config configures a Verifier. The zero value trusts Intel's root only and
// needs all collateral.
type Config struct {
	// TestRoots are trusted beside Intel's root. Results under them say Simulated.
	TestRoots []*x509.Certificate
	// CollateralOptional lets an appraisal go on without collateral, or with
	// lapsed collateral, for looking at a quote offline. The checks concerned
	// are recorded as skipped and the collateral state is "expired". A broker
	// never sets it.
	CollateralOptional bool
}

// Verifier verifies quotes. It is safe for concurrent use. It remembers
// signatures that verified, never dates or revocation; and of each list and
// document the newest edition that it used, so that no older one counts again.
type Verifier struct {
	testRoots          []*x509.Certificate
	intel              []*x509.Certificate // of intelPEM
	collateralOptional bool

	chains       memo.Memo[*pckChain]
	qeReports    memo.Memo[struct{}]
	crls         memo.Memo[*crl]
	tcbInfos     memo.Memo[*tcbInfo]
	qeIdentities memo.Memo[*qeIdentity]
	newest       memo.Newest // of lists and documents
}

// New makes a Verifier.
func New(cfg Config) *Verifier {
	v := &Verifier{testRoots: cfg.TestRoots, collateralOptional: cfg.CollateralOptional}
	var err error
	if v.intel, err = parseChain(intelPEM); err != nil {
		panic("dcap: intel.pem: " + err.Error()) // it is compiled in
	}
	// Of Intel's documents there are some per year and processor, not one per machine.
	v.crls.Size, v.tcbInfos.Size, v.qeIdentities.Size = 32, 256, 32
	return v
}

// Result is what a verified quote says about its platform.
type Result struct {
	Simulated bool // the chain ends at a test root
	PCK       PCK
	// TCB is the state of the whole. Its parts follow; they are nil without
	// collateral, and Module also for SGX and for TDX modules of version 0.
	TCB      attest.TCB
	Platform *Level
	Module   *Level
	QE       *Level
	// TCBEvaluationDataNumber is the lower of those of TCB info and QE identity; 0 without collateral.
	TCBEvaluationDataNumber uint32
	Collateral              attest.CollateralState
}

// Verify verifies a quote up to the vendor's root. It makes these checks,
// recorded in t under these names:
//
//  1. qe_binding: the QE's REPORTDATA is SHA-256(attestation key ‖ QE
//     authentication data), then zeros.
//  2. pck_chain: leaf, PCK Platform or Processor CA, root; signatures, roles,
//     key types, validity at now; the root is Intel's, or a test root.
//  3. qe_report_signature: the PCK signed the QE's report.
//  4. quote_signature: the attestation key signed header and body.
//  5. root_crl: signed by the root, current; it revokes neither the PCK CA nor,
//     later, the TCB signing certificate.
//  6. pck_crl: signed by the PCK CA, current; it does not revoke the leaf.
//  7. tcb_info: version 3, signed under the same root by a TCB signing
//     certificate, current, for this kind of TEE, FMSPC and PCEID.
//  8. qe_identity: likewise, version 2; the QE's MISCSELECT, ATTRIBUTES,
//     MRSIGNER and ISVPRODID are those published.
//  9. tdx_module (TDX only): MRSIGNERSEAM and SEAMATTRIBUTES are those of the
//     TDX module's identity.
//  10. tcb_status: the levels of platform, TDX module and QE together are not
//     Revoked. Any other status is for the policy.
//
// An error is an *attest.Error.
func (v *Verifier) Verify(ctx context.Context, t *Trail, q *Quote, c attest.Collateral, now time.Time) (Result, error) {
	return v.verify(ctx, t, q, c, clock{chain: now, tcbInfo: now, qeIdentity: now})
}

// clock is one instant, three times over: the vectors that Google ships have
// no instant at which all their parts are valid.
type clock struct{ chain, tcbInfo, qeIdentity time.Time }

func (v *Verifier) verify(ctx context.Context, t *Trail, q *Quote, c attest.Collateral, at clock) (Result, error) {
	a := &appraisal{v: v, t: t, source: c, at: at}
	chain, err := a.signatures(q)
	if err != nil {
		return Result{}, err
	}
	rootCRL, err := a.revocation(ctx, chain)
	if err != nil {
		return Result{}, err
	}
	info, err := a.tcbInfo(ctx, q, chain, rootCRL)
	if err != nil {
		return Result{}, err
	}
	id, err := a.qeIdentity(ctx, q, chain, rootCRL)
	if err != nil {
		return Result{}, err
	}
	if err := a.tcbStatus(q, chain, info, id); err != nil {
		return Result{}, err
	}
	if a.lapsed {
		a.res.Collateral.State = attest.CollateralExpired
	}
	return a.res, nil
}

// appraisal is one run of Verify.
type appraisal struct {
	v      *Verifier
	t      *Trail
	source attest.Collateral
	at     clock
	res    Result
	lapsed bool // collateral was missing or past its date, and that is allowed
}

// signatures follows the signatures from the body up to the root, without collateral.
func (a *appraisal) signatures(q *Quote) (*pckChain, error) {
	// The QE vouches for the attestation key by putting its digest into its own
	// report. Without this anybody's key would do, beside a genuine QE report.
	var want [64]byte
	sum := sha256.Sum256(append(bytes.Clone(q.attKey), q.qeAuth...))
	copy(want[:], sum[:])
	if q.qe.REPORTDATA != want {
		return nil, a.t.Fail("qe_binding", attest.ReasonSignature, "the QE report is not about this attestation key")
	}
	a.t.Pass("qe_binding", "SHA-256 %x", sum)

	chain, err := a.v.pckChain(q.pckChain)
	if err == nil {
		err = checkDates(a.at.chain, chain.leaf, chain.ca, chain.root)
	}
	if err != nil {
		return nil, a.fail("pck_chain", err)
	}
	a.res.PCK, a.res.Simulated = chain.pck, chain.simulated
	a.t.Pass("pck_chain", "%s CA, root %q", chain.pck.CA, chain.root.Subject.CommonName)

	// A QE report by another platform's key, or by nobody.
	key := memo.Key([]byte("qe report"), chain.leaf.Raw, q.qeRaw, q.qeSig)
	if _, err := a.v.qeReports.Get(key, func() (struct{}, error) {
		if !verifyP256(chain.key, q.qeRaw, q.qeSig) {
			return struct{}{}, faultf(attest.ReasonSignature, "the PCK did not sign this QE report")
		}
		return struct{}{}, nil
	}); err != nil {
		return nil, a.fail("qe_report_signature", err)
	}
	a.t.Pass("qe_report_signature", "ECDSA P-256")

	// A body that was changed, or put under another quote's signature.
	attKey, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.attKey...))
	if err != nil {
		return nil, a.t.Fail("quote_signature", attest.ReasonMalformed, "attestation key: %w", err)
	}
	if !verifyP256(attKey, q.signed, q.signature) {
		return nil, a.t.Fail("quote_signature", attest.ReasonSignature, "the attestation key did not sign this quote")
	}
	a.t.Pass("quote_signature", "ECDSA P-256")
	return chain, nil
}

// revocation looks the chain up in the CRLs. It returns the root's, for the
// TCB signing certificate; nil if there is none and that is allowed.
func (a *appraisal) revocation(ctx context.Context, chain *pckChain) (*crl, error) {
	rootCRL, err := a.checkCRL(ctx, "root_crl", attest.CollateralRef{Kind: attest.IntelRootCRL}, chain.root, chain.ca)
	if err != nil {
		return nil, err
	}
	_, err = a.checkCRL(ctx, "pck_crl", attest.CollateralRef{Kind: attest.PCKCRL, Key: chain.pck.CA}, chain.ca, chain.leaf)
	return rootCRL, err
}

func (a *appraisal) checkCRL(ctx context.Context, check string, ref attest.CollateralRef, issuer, subject *x509.Certificate) (*crl, error) {
	it, have, err := a.get(ctx, check, ref)
	if !have {
		return nil, err
	}
	list, err := a.v.crl(it.Data, issuer)
	if err != nil {
		return nil, a.fail(check, err)
	}
	if err := a.newest(check, issuer, ref, list.edition(), list.thisUpdate, list.nextUpdate, a.at.chain, nil); err != nil {
		return nil, err
	}
	if err := list.check(a.at.chain, subject); err != nil {
		return list, a.lapse(check, err)
	}
	a.t.Pass(check, "%q, serial %x, not among %d revoked", subject.Subject.CommonName, subject.SerialNumber, len(list.revoked))
	return list, nil
}

// newest notes a list or document and its age, or refuses one that is older than
// what was used before: 29 days old and still valid, it hides what was revoked
// meanwhile. One that is not in force now is the dates' business, and leaves no trace.
func (a *appraisal) newest(check string, issuer *x509.Certificate, ref attest.CollateralRef, e memo.Edition, issued, next, now time.Time, rootCRL *crl) error {
	a.res.Collateral.Issued(issued, now)
	if checkUpdates("", issued, next, now) != nil || rootCRL != nil && rootCRL.revoked[e.Signer] {
		return nil
	}
	var revoked func(string) bool
	if rootCRL != nil {
		revoked = func(signer string) bool { return rootCRL.revoked[signer] }
	}
	e.Until = next
	if err := a.v.newest.Use(memo.Key(issuer.Raw, []byte(ref.Kind), []byte(ref.Key)), e, now, revoked); err != nil {
		return a.t.Fail(check, attest.ReasonCollateralExpired, "%s %s was replaced: %w", ref.Kind, ref.Key, err)
	}
	return nil
}

func (a *appraisal) tcbInfo(ctx context.Context, q *Quote, chain *pckChain, rootCRL *crl) (*tcbInfo, error) {
	const check = "tcb_info"
	kind := attest.TDXTCBInfo
	if q.Header.TEEType == TEESGX {
		kind = attest.SGXTCBInfo
	}
	ref := attest.CollateralRef{Kind: kind, Key: hex.EncodeToString(chain.pck.FMSPC[:])}
	it, have, err := a.get(ctx, check, ref)
	if !have {
		return nil, err
	}
	info, err := a.v.tcbInfo(it, chain.root)
	if err != nil {
		return nil, a.fail(check, err)
	}
	// Genuine TCB info of another platform would grade this one by other SVNs.
	if info.ID != q.Header.TEEType.String() || !bytes.Equal(info.FMSPC, chain.pck.FMSPC[:]) || !bytes.Equal(info.PCEID, chain.pck.PCEID[:]) {
		return nil, a.t.Fail(check, attest.ReasonMismatch, "TCB info is for %s, FMSPC %x, PCEID %x; the platform is %v, %x, %x",
			info.ID, []byte(info.FMSPC), []byte(info.PCEID), q.Header.TEEType, chain.pck.FMSPC, chain.pck.PCEID)
	}
	a.res.TCBEvaluationDataNumber = info.TCBEvaluationDataNumber
	if err := a.newest(check, chain.root, ref, documentEdition(info.IssueDate, info.TCBEvaluationDataNumber, info.signer), info.IssueDate, info.NextUpdate, a.at.tcbInfo, rootCRL); err != nil {
		return nil, err
	}
	if err := checkDocument("TCB info", info.IssueDate, info.NextUpdate, info.signer, rootCRL, a.at.tcbInfo); err != nil {
		return info, a.lapse(check, err)
	}
	a.t.Pass(check, "issued %s, TCB evaluation data number %d", info.IssueDate.Format(time.RFC3339), info.TCBEvaluationDataNumber)
	return info, nil
}

func (a *appraisal) qeIdentity(ctx context.Context, q *Quote, chain *pckChain, rootCRL *crl) (*qeIdentity, error) {
	const check = "qe_identity"
	kind, want := attest.TDXQEID, "TD_QE"
	if q.Header.TEEType == TEESGX {
		kind, want = attest.SGXQEID, "QE"
	}
	ref := attest.CollateralRef{Kind: kind}
	it, have, err := a.get(ctx, check, ref)
	if !have {
		return nil, err
	}
	id, err := a.v.qeIdentity(it, chain.root)
	if err != nil {
		return nil, a.fail(check, err)
	}
	if id.ID != want {
		return nil, a.t.Fail(check, attest.ReasonMismatch, "identity of %q, want %q", id.ID, want)
	}
	if err := a.newest(check, chain.root, ref, documentEdition(id.IssueDate, id.TCBEvaluationDataNumber, id.signer), id.IssueDate, id.NextUpdate, a.at.qeIdentity, rootCRL); err != nil {
		return nil, err
	}
	// Any enclave can have its report signed by a PCK; only this one vouches for quotes.
	if a.res.QE, err = qeLevel(id, &q.qe); err != nil {
		return nil, a.fail(check, err)
	}
	a.res.TCBEvaluationDataNumber = min(a.res.TCBEvaluationDataNumber, id.TCBEvaluationDataNumber)
	if err := checkDocument("QE identity", id.IssueDate, id.NextUpdate, id.signer, rootCRL, a.at.qeIdentity); err != nil {
		return id, a.lapse(check, err)
	}
	a.t.Pass(check, "issued %s, ISVSVN %d: %s", id.IssueDate.Format(time.RFC3339), q.qe.ISVSVN, a.res.QE.Status)
	return id, nil
}

func documentEdition(issued time.Time, number uint32, signer *x509.Certificate) memo.Edition {
	return memo.Edition{Issued: issued, Number: new(big.Int).SetUint64(uint64(number)), Signer: signer.SerialNumber.String()}
}

// checkDocument makes the checks of a signed document that depend on the
// clock and on revocation.
func checkDocument(what string, issued, next time.Time, signer *x509.Certificate, rootCRL *crl, now time.Time) error {
	if rootCRL != nil && rootCRL.revoked[signer.SerialNumber.String()] {
		return faultf(attest.ReasonRevoked, "%s: its signing certificate is revoked", what)
	}
	if err := checkUpdates(what, issued, next, now); err != nil {
		return err
	}
	return checkUpdates(signer.Subject.CommonName, signer.NotBefore, signer.NotAfter, now)
}

// tcbStatus grades the platform.
func (a *appraisal) tcbStatus(q *Quote, chain *pckChain, info *tcbInfo, id *qeIdentity) error {
	if info == nil || id == nil {
		a.res.TCB = attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}}
		if q.TD != nil {
			a.t.Skip("tdx_module", "no TCB info")
		}
		a.t.Skip("tcb_status", "no TCB info or QE identity")
		return nil
	}
	var err error
	if q.TD != nil {
		if a.res.Module, err = moduleLevel(info, q.TD); err != nil {
			return a.fail("tdx_module", err)
		}
		a.t.Pass("tdx_module", "MRSIGNERSEAM and SEAMATTRIBUTES as published")
	}
	if a.res.Platform, err = platformLevel(info, &chain.pck, q.TD); err != nil {
		return a.fail("tcb_status", err)
	}
	if a.res.TCB, err = converge(a.res.Platform, a.res.Module, a.res.QE); err != nil {
		return a.fail("tcb_status", err)
	}
	if a.res.TCB.Status == attest.TCBRevoked {
		return a.t.Fail("tcb_status", attest.ReasonRevoked, "Intel revoked this TCB level (platform %s, module %s, QE %s)",
			a.res.Platform.Status, a.res.Module.status(), a.res.QE.Status)
	}
	a.t.Pass("tcb_status", "%s", a.res.TCB.Status)
	return nil
}

func (l *Level) status() string {
	if l == nil {
		return "none"
	}
	return l.Status
}

// get obtains collateral. have is false if there is none; err is then nil only
// if that is allowed.
func (a *appraisal) get(ctx context.Context, check string, ref attest.CollateralRef) (it attest.CollateralItem, have bool, err error) {
	if a.source == nil {
		err = faultf(attest.ReasonCollateralMissing, "no source of collateral")
	} else if it, err = a.source.Get(ctx, ref); err == nil {
		a.res.Collateral.Add(it)
		return it, true, nil
	}
	if r := ReasonOf(err); a.v.collateralOptional && r == attest.ReasonCollateralMissing {
		a.lapsed = true
		a.t.Skip(check, "%v", err)
		return it, false, nil
	}
	return it, false, a.lapse(check, err)
}

// lapse fails a check, unless all that is wrong is the age of collateral and
// that is allowed.
func (a *appraisal) lapse(check string, err error) error {
	if a.v.collateralOptional && ReasonOf(err) == attest.ReasonCollateralExpired {
		a.lapsed = true
		a.t.Skip(check, "%v", err)
		return nil
	}
	return a.fail(check, err)
}

func (a *appraisal) fail(check string, err error) error {
	return a.t.Fail(check, ReasonOf(err), "%w", err)
}
