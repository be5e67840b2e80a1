// Package snp appraises AMD SEV-SNP attestation reports: Milan, Genoa (with
// Siena and Bergamo) and Turin, signed by the chip's key (VCEK) or by a
// provider's (VLEK). It says what a report proves; whether that is enough is
// for a policy to say: it does not judge measurements, VMPL, firmware levels
// or the debug bit.
//
// Specifications: AMD publications 56860 (firmware ABI), 57230 (VCEK
// certificates and KDS), 56421 (certificate table).
package snp

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/memo"
)

// Config of a Verifier. The zero value trusts AMD's roots alone and requires a
// current CRL; it is what a broker uses.
type Config struct {
	// TestRoots are believed besides AMD's roots. Claims of evidence below
	// them say simulated.
	TestRoots []TestRoot
	// CRLOptional lets evidence pass where no current CRL can be had: the
	// checks are then skipped, and the collateral's state is "expired". For
	// appraising files by hand (`claviger evidence verify --without-revocation`). A broker
	// never sets it: a revoked key would go unnoticed.
	CRLOptional bool
}

// TestRoot is the root of simulated devices (package teesim).
type TestRoot struct {
	Product string // "Milan", "Genoa", "Turin"; "" means each of them
	ARK     *x509.Certificate
}

// Names of the checks, in the order they are made.
const (
	checkReport        = "snp.report"
	checkVersion       = "snp.version"
	checkSignatureAlgo = "snp.signature_algo"
	checkReserved      = "snp.reserved"
	checkReportData    = "snp.report_data"
	checkSigningKey    = "snp.signing_key"
	checkTCBOrder      = "snp.tcb_order"
	checkProduct       = "snp.product"
	checkCertTable     = "snp.cert_table"
	checkLeaf          = "snp.leaf"
	checkKDSExtensions = "snp.kds_extensions"
	checkReportedTCB   = "snp.reported_tcb"
	checkChipID        = "snp.chip_id"
	checkChain         = "snp.chain"
	checkValidity      = "snp.validity"
	checkCRL           = "snp.crl"
	checkRevocation    = "snp.revocation"
	checkSignature     = "snp.signature"
	checkInternal      = "snp.internal"
)

// Verifier appraises SEV-SNP evidence. Its checks, cheap ones first:
//
//  1. snp.report: the report has 1184 bytes, the certificate table a bounded number.
//  2. snp.version: the report's version is 2 to 5.
//  3. snp.signature_algo: it is to be signed with ECDSA P-384 and SHA-384.
//  4. snp.reserved: reserved fields are as specified, VMPL exists. Unknown bits
//     of POLICY and PLATFORM_INFO become claims.
//  5. snp.report_data: it is the digest of this request, and the guest asked for the report.
//  6. snp.signing_key: the report says that a VCEK or VLEK signed it.
//  7. snp.tcb_order: reported <= committed <= current in every component of the TCB.
//  8. snp.product: CPUID, or for version 2 the certificate, names a known product line.
//  9. snp.cert_table: the table of certificates is well-formed.
//  10. snp.leaf: there is a certificate of the kind that SIGNING_KEY names, with a P-384 key.
//  11. snp.kds_extensions: AMD's extensions are complete, and name the same product line.
//  12. snp.reported_tcb: every component of REPORTED_TCB is the certificate's.
//  13. snp.chip_id: CHIP_ID is the certificate's HWID (skipped for a VLEK and where the host masks it).
//  14. snp.chain: leaf <- ASK or ASVK <- pinned ARK, each signature.
//  15. snp.validity: each of the three certificates is valid now.
//  16. snp.crl: a revocation list signed by that ARK is current.
//  17. snp.revocation: it lists none of the three.
//  18. snp.signature: the leaf's key signed the report.
//
// Results of 14 and of the signature of 16 are memoised by the digest of all
// the bytes they depend on; dates and revocation are looked at on each call.
type Verifier struct {
	anchors     map[line][]anchor
	issuers     map[issuerKey]*x509.Certificate // AMD's
	crlOptional bool
	chains      memo.Memo[*chain]
	crls        memo.Memo[*revocations]
	newest      memo.Newest // of the CRLs
}

// New makes a verifier. It fails if AMD's certificates are not the pinned ones.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{
		anchors:     map[line][]anchor{},
		issuers:     map[issuerKey]*x509.Certificate{},
		crlOptional: cfg.CRLOptional,
		crls:        memo.Memo[*revocations]{Size: 32},
	}
	for _, r := range amdRoots() {
		if err := v.addAMD(r); err != nil {
			return nil, fmt.Errorf("snp: %w", err)
		}
	}
	for _, t := range cfg.TestRoots {
		if err := v.addTest(t); err != nil {
			return nil, fmt.Errorf("snp: %w", err)
		}
	}
	return v, nil
}

// Type is attest.TypeSNP.
func (v *Verifier) Type() attest.Type { return attest.TypeSNP }

// Verify implements attest.Verifier.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (claims attest.Claims, err error) {
	a := &appraisal{}
	defer func() {
		// A bug here, or in a collateral source, must deny and not stop the broker.
		if r := recover(); r != nil {
			err = attest.Errorf(checkInternal, attest.ReasonInternal, "panic: %v", r)
		}
		if err != nil {
			claims = attest.Claims{Type: attest.TypeSNP, Checks: a.failed(err)}
		}
	}()
	return v.verify(ctx, ev, b, c, now, a)
}

func (v *Verifier) verify(ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time, a *appraisal) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeSNP {
		return none, attest.Errorf(checkReport, attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if n := len(ev.Endorsements); n > attest.MaxEndorsementsSize {
		return none, attest.Errorf(checkReport, attest.ReasonMalformed, "%d bytes of endorsements, more than %d", n, attest.MaxEndorsementsSize)
	}
	if n := len(ev.EventLog); n > 0 {
		return none, attest.Errorf(checkReport, attest.ReasonMalformed, "%d bytes of event log, which SNP does not have", n)
	}
	r, err := parseReport(ev.Report, a)
	if err != nil {
		return none, err
	}

	// A replayed report, or one made for another key, stops here.
	bound, err := b.Check(r.reportData)
	if err != nil {
		return none, attest.Errorf(checkReportData, attest.ReasonBinding, "%w", err)
	}
	// A host can ask for a report of the guest; report_data is then the host's word, not the guest's.
	if bound && r.hostRequests {
		return none, attest.Errorf(checkReportData, attest.ReasonBinding, "the host asked for this report, not the guest")
	}
	if bound {
		a.passed(checkReportData)
	} else {
		a.skipped(checkReportData, "appraised without a binding")
	}

	// Where VCEK use is masked, firmware leaves the report unsigned.
	if r.signingKey == keyNone {
		return none, attest.Errorf(checkSigningKey, attest.ReasonSignature, "the report is unsigned")
	}
	if r.signingKey > keyVLEK {
		return none, attest.Errorf(checkSigningKey, attest.ReasonUnsupported, "SIGNING_KEY %d", r.signingKey)
	}
	a.passed(checkSigningKey)

	// Firmware upholds this order; a report that breaks it did not come from sound firmware.
	if !tcbLE(r.reportedTCB, r.committedTCB) || !tcbLE(r.committedTCB, r.currentTCB) {
		return none, attest.Errorf(checkTCBOrder, attest.ReasonMalformed, "reported %s, committed %s, current %s",
			tcbHex(r.reportedTCB), tcbHex(r.committedTCB), tcbHex(r.currentTCB))
	}
	a.passed(checkTCBOrder)

	lines, model := []line{milan, genoa}, "" // version 2 does not say, and is older than Turin
	if r.version >= 3 {
		l, m, err := r.product()
		if err != nil {
			return none, err
		}
		lines, model = []line{l}, m
		a.passed(checkProduct)
	}
	table, err := parseCertTable(ev.Endorsements)
	if err != nil {
		return none, attest.Errorf(checkCertTable, attest.ReasonMalformed, "%w", err)
	}
	a.passed(checkCertTable)
	if err := ctx.Err(); err != nil {
		return none, attest.Errorf(checkLeaf, attest.ReasonInternal, "%w", err)
	}

	der, err := leafDER(ctx, r, table, lines, c, a)
	if err != nil {
		return none, err
	}
	ch := v.known(der, r.signingKey, table, lines)
	var lf *leaf
	if ch != nil {
		lf = ch.leaf
	} else if lf, err = parseLeaf(der, r.signingKey); err != nil {
		return none, r.blame(table, err)
	}
	if err := r.matches(lf, lines, a); err != nil {
		return none, r.blame(table, err)
	}
	if model == "" {
		model = lf.kds.line.name()
		a.passed(checkProduct)
	}

	if ch == nil {
		if ch, err = v.build(ctx, lf, table, c, a); err != nil {
			return none, r.blame(table, err)
		}
	} else if table.ark != nil && !v.pinned(ch.line, table.ark) {
		return none, attest.Errorf(checkChain, attest.ReasonChain, "the root in the certificate table is not a pinned root of %s", ch.line)
	}
	a.passed(checkChain)
	if err := ch.checkDates(now); err != nil {
		return none, err
	}
	a.passed(checkValidity)
	if err := v.revoked(ctx, ch, c, now, a); err != nil {
		return none, err
	}
	// Everything above could be put together from genuine pieces; this proves who did.
	if err := verifySignature(r, lf.key); err != nil {
		return none, err
	}
	a.passed(checkSignature)

	claims := r.claims(ch, model)
	claims.Bound = bound
	claims.Collateral = a.collateral
	claims.Checks = a.checks
	return claims, nil
}

// leafDER finds the certificate of the key that SIGNING_KEY names. AMD
// publishes VCEKs by chip and TCB; a VLEK only the host can provide.
func leafDER(ctx context.Context, r *report, t certTable, lines []line, c attest.Collateral, a *appraisal) ([]byte, error) {
	if r.signingKey == keyVLEK {
		if t.vlek == nil {
			return nil, attest.Errorf(checkLeaf, attest.ReasonCollateralMissing, "a VLEK signed, and the certificate table has none")
		}
		return t.vlek, nil
	}
	if t.vcek != nil {
		return t.vcek, nil
	}
	if r.chipIDMasked {
		return nil, attest.Errorf(checkLeaf, attest.ReasonCollateralMissing, "no VCEK in the certificate table, and CHIP_ID is masked")
	}
	var first error
	for _, l := range lines {
		key := string(l) + "/" + r.chipIDHex(l) + "/" + tcbHex(r.reportedTCB)
		it, err := a.get(ctx, checkLeaf, c, attest.CollateralRef{Kind: attest.SNPVCEK, Key: key})
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		der, derr := certDER(it.Data)
		if derr != nil {
			return nil, attest.Errorf(checkLeaf, attest.ReasonCollateralInvalid, "VCEK: %w", derr)
		}
		return der, nil
	}
	if len(lines) > 1 { // the error is about the first of them only
		return nil, attest.Errorf(checkLeaf, attest.ReasonOf(first), "version 2 of the report does not name the product; asked for all of %v: %w", lines, cause(first))
	}
	return nil, first
}

// blame is err about a VCEK. One that the guest did not bring was asked for by the report's own chip and TCB: that
// it is forged, or another one, says something of the service that answered, and nothing of the guest.
func (r *report) blame(t certTable, err error) error {
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || r.signingKey != keyVCEK || t.vcek != nil || t.ark != nil {
		return err
	}
	switch e.Reason {
	case attest.ReasonMalformed, attest.ReasonMismatch, attest.ReasonChain:
		return attest.Errorf(e.Check, attest.ReasonCollateralInvalid, "VCEK from collateral: %w", cause(err))
	}
	return err
}

// Describe is what the bytes of a report say, verified or not: nothing in it may
// be relied on. Missing says which certificate would be needed, by its collateral key; there are two where the report does not name its product.
func Describe(report []byte) (claims attest.Claims, missing []string, err error) {
	r, err := parseReport(report, &appraisal{})
	if err != nil {
		return attest.Claims{}, nil, err
	}
	lines, model := []line{milan, genoa}, "unknown"
	if r.version >= 3 {
		l, m, err := r.product()
		if err != nil {
			return attest.Claims{}, nil, err
		}
		lines, model = []line{l}, m
	}
	claims = r.claims(&chain{line: lines[0], leaf: &leaf{cert: &x509.Certificate{SerialNumber: new(big.Int)}}}, model)
	c := claims.SNP.(*Claims)
	c.LeafSerial, c.LeafExpires = "", ""
	if model == "unknown" {
		c.ProductLine = ""
	}
	claims.BoundToCPUTEE = false
	if r.signingKey == keyVCEK && !r.chipIDMasked {
		for _, l := range lines {
			missing = append(missing, string(l)+"/"+r.chipIDHex(l)+"/"+tcbHex(r.reportedTCB))
		}
	}
	return claims, missing, nil
}

// matches compares what the report says of its chip with what AMD certified
// of the key: checks 10 to 13.
func (r *report) matches(lf *leaf, lines []line, a *appraisal) error {
	a.passed(checkLeaf)
	ok := false
	for _, l := range lines {
		ok = ok || l == lf.kds.line
	}
	if !ok {
		return attest.Errorf(checkKDSExtensions, attest.ReasonMismatch, "the certificate is for product %q, the report of %v", lf.kds.productName, lines)
	}
	a.passed(checkKDSExtensions)

	// The key of older, vulnerable firmware must not speak for newer firmware.
	if lf.kds.tcb != r.reportedTCB {
		return attest.Errorf(checkReportedTCB, attest.ReasonMismatch, "REPORTED_TCB %s, in the certificate %s", tcbHex(r.reportedTCB), tcbHex(lf.kds.tcb))
	}
	a.passed(checkReportedTCB)

	// A chip must not pass for another one, and so evade its revocation.
	switch {
	case r.signingKey == keyVLEK:
		a.skipped(checkChipID, "a VLEK names a provider, not a chip")
	case r.chipIDMasked:
		a.skipped(checkChipID, "the host masks CHIP_ID")
	default:
		want := [chipIDSize]byte{}
		n := copy(want[:], lf.kds.hwid)
		if (lf.kds.line == turin) != (n == turinHWIDSize) || string(want[:]) != string(r.chipID) {
			return attest.Errorf(checkChipID, attest.ReasonMismatch, "CHIP_ID %x, in the certificate %x", r.chipID, lf.kds.hwid)
		}
		a.passed(checkChipID)
	}
	return nil
}

// tcbLE compares by component; the layout does not matter.
func tcbLE(x, y [8]byte) bool {
	for i := range x {
		if x[i] > y[i] {
			return false
		}
	}
	return true
}

// appraisal collects what one call of Verify has done.
type appraisal struct {
	checks     []attest.Check
	collateral attest.CollateralState
}

func (a *appraisal) passed(name string) {
	a.checks = append(a.checks, attest.Check{Name: name, Outcome: attest.Passed})
}

func (a *appraisal) skipped(name, why string) {
	a.checks = append(a.checks, attest.Check{Name: name, Outcome: attest.Skipped, Detail: why})
}

// failed is the list with the check that err names at its end.
func (a *appraisal) failed(err error) []attest.Check {
	c := attest.Check{Name: checkInternal, Outcome: attest.Failed, Detail: err.Error()}
	if e, ok := err.(*attest.Error); ok {
		c.Name = e.Check
	}
	return append(a.checks, c)
}

// cause is an error without the check and the reason that it begins with.
func cause(err error) error {
	if e, ok := errors.AsType[*attest.Error](err); ok && e.Err != nil {
		return e.Err
	}
	return err
}

// get fetches collateral. Whatever a source does, the error is an *attest.Error of the asking check.
func (a *appraisal) get(ctx context.Context, check string, c attest.Collateral, ref attest.CollateralRef) (attest.CollateralItem, error) {
	if c == nil {
		return attest.CollateralItem{}, attest.Errorf(check, attest.ReasonCollateralMissing, "%s %s: no source of collateral", ref.Kind, ref.Key)
	}
	it, err := c.Get(ctx, ref)
	if err != nil {
		reason := attest.ReasonOf(err)
		if reason == attest.ReasonInternal && ctx.Err() == nil {
			reason = attest.ReasonCollateralMissing
		}
		if _, ok := errors.AsType[*attest.Error](err); ok { // it names the piece, and has the same reason
			return attest.CollateralItem{}, attest.Errorf(check, reason, "%w", cause(err))
		}
		return attest.CollateralItem{}, attest.Errorf(check, reason, "%s %s: %w", ref.Kind, ref.Key, err)
	}
	a.collateral.Add(it)
	return it, nil
}
