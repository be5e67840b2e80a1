// Package tdx appraises Intel TDX evidence: DCAP quotes of version 4 and 5 and,
// beside them, the Confidential Computing event log.
package tdx

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/eventlog"
)

// Config configures a Verifier. The zero value trusts Intel's root only.
type Config struct {
	// TestRoots are trusted beside Intel's root; claims under them say simulated.
	TestRoots []*x509.Certificate
	// CollateralOptional appraises without collateral, or with lapsed
	// collateral, for an operator who looks at a quote offline. A broker never sets it.
	CollateralOptional bool
}

// Verifier appraises TDX evidence. It makes these checks, in this order; the
// names are those of Claims.Checks.
//
//  1. tdx.format: a DCAP quote of version 4 or 5, about a TD, with an ECDSA
//     P-256 attestation key of Intel's quoting enclave and a PCK certificate chain.
//  2. tdx.binding: REPORTDATA is the binding's digest.
//  3. tdx.qe_binding: the quoting enclave vouches for the attestation key.
//  4. tdx.pck_chain: the PCK certificate leads to Intel's root, or a test root, and is valid now.
//  5. tdx.qe_report_signature: by the PCK.
//  6. tdx.quote_signature: by the attestation key, over header and body.
//  7. tdx.root_crl: current; does not revoke the PCK CA.
//  8. tdx.pck_crl: current; does not revoke the PCK certificate.
//  9. tdx.tcb_info: current, signed by Intel, for this FMSPC and PCEID.
//  10. tdx.qe_identity: current, signed by Intel; the quoting enclave is Intel's TD QE.
//  11. tdx.tdx_module: MRSIGNERSEAM and SEAMATTRIBUTES are those of Intel's TDX module.
//  12. tdx.tcb_status: platform, TDX module and QE together are not Revoked.
//  13. tdx.event_log: if there is a log, it replays to the RTMRs that it touches.
//
// Checks 3 to 12 are those of package dcap. Debug TDs and every other TCB
// status are reported, for the policy to judge.
type Verifier struct {
	dcap *dcap.Verifier
}

// New makes a Verifier.
func New(cfg Config) *Verifier {
	return &Verifier{dcap.New(dcap.Config{TestRoots: cfg.TestRoots, CollateralOptional: cfg.CollateralOptional})}
}

// CheckCollateral says whether a piece of collateral is genuine, as dcap.Verifier does.
func (v *Verifier) CheckCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) error {
	return v.dcap.CheckCollateral(ctx, ref, it, c)
}

// Type implements attest.Verifier.
func (v *Verifier) Type() attest.Type { return attest.TypeTDX }

// Verify implements attest.Verifier. Endorsements are not used: a quote carries its own.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "tdx", attest.TypeTDX, func(t *dcap.Trail) (attest.Claims, error) { return v.verify(ctx, t, ev, b, c, now) })
}

func (v *Verifier) verify(ctx context.Context, t *dcap.Trail, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	q, err := dcap.ParseQuote(ev.Report)
	switch {
	case err != nil:
		return attest.Claims{}, t.Fail("format", dcap.ReasonOf(err), "%w", err)
	case ev.Type != attest.TypeTDX || q.TD == nil:
		return attest.Claims{}, t.Fail("format", attest.ReasonUnsupported, "evidence %q with a quote about %v", ev.Type, q.Header.TEEType)
	case len(ev.EventLog) > attest.MaxEventLogSize:
		return attest.Claims{}, t.Fail("format", attest.ReasonMalformed, "event log of %d bytes", len(ev.EventLog))
	}
	t.Pass("format", "quote v%d", q.Header.Version)

	// Evidence recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, q.TD.REPORTDATA[:], "REPORTDATA")
	if err != nil {
		return attest.Claims{}, err
	}

	res, err := v.dcap.Verify(ctx, t, q, c, now)
	if err != nil {
		return attest.Claims{}, err // an *attest.Error of one of checks 3 to 12
	}
	claims := makeClaims(q, res, bound)
	if err := checkEventLog(t, ev.EventLog, q.TD, claims.TDX.(*Claims)); err != nil {
		return attest.Claims{}, err
	}
	return claims, nil
}

// checkEventLog replays the log. A register that it does not touch may hold
// what software extended after the firmware's log ended: it is reported as
// unexplained, and nothing is claimed about it. A register that it does touch
// has to come out right, or every entry of the log may be a lie.
func checkEventLog(t *dcap.Trail, raw []byte, td *dcap.TDReport, c *Claims) error {
	if len(raw) == 0 {
		c.EventLog = EventLogAbsent
		t.Skip("event_log", "no event log")
		return nil
	}
	log, err := eventlog.ParseCC(raw)
	if err != nil {
		return t.Fail("event_log", attest.ReasonMalformed, "%w", err)
	}
	rtmr, touched := log.ReplayRTMRs()
	c.EventLog = EventLogVerified
	for i := range rtmr {
		switch {
		case rtmr[i] == td.RTMR[i]:
		case touched[i]:
			return t.Fail("event_log", attest.ReasonMismatch, "RTMR%d is %x, but the log replays to %x", i, td.RTMR[i], rtmr[i])
		default:
			c.EventLog = EventLogPartial
			c.RTMRsUnexplained = append(c.RTMRsUnexplained, fmt.Sprintf("rtmr%d", i))
		}
	}
	c.addEvents(log)
	t.Pass("event_log", "%d events, %s", len(log.Events), c.EventLog)
	return nil
}

// Describe is what the bytes of a quote say, verified or not: nothing in it may be relied on.
func Describe(quote []byte) (attest.Claims, error) {
	q, err := dcap.ParseQuote(quote)
	if err != nil {
		return attest.Claims{}, err
	}
	if q.TD == nil {
		return attest.Claims{}, fmt.Errorf("a quote about %v", q.Header.TEEType)
	}
	c := makeClaims(q, dcap.Result{}, false)
	c.BoundToCPUTEE = false
	return c, nil
}

// migratable: a migration TD may export the TD's memory. Only quotes of TDX 1.5 say which service TD is
// bound (MRSERVICETD), so that its absence means nothing. One that is bound to a TD without the attribute is
// of a kind that we do not know.
func migratable(td *dcap.TDReport) bool {
	return newTDAttributes(td.TDATTRIBUTES).Migratable || td.TDX15 != nil && td.TDX15.MRSERVICETD != [48]byte{}
}

func makeClaims(q *dcap.Quote, res dcap.Result, bound bool) attest.Claims {
	td := q.TD
	c := attest.Claims{
		Type:          attest.TypeTDX,
		HardwareModel: "TDX",
		Bound:         bound,
		// Any flag of the TUD byte ("TD under debug") lets the host look inside.
		Debuggable:    td.TDATTRIBUTES[0] != 0,
		Migratable:    migratable(td),
		BoundToCPUTEE: true,
		Simulated:     res.Simulated,
		ChipID:        res.PCK.ChipID(),
		Identities:    res.PCK.Identities(),
		TCB:           res.TCB,
		Measurements: map[string]string{
			"mrtd":   hex.EncodeToString(td.MRTD[:]),
			"mrseam": hex.EncodeToString(td.MRSEAM[:]),
		},
		HostData:   hex.EncodeToString(td.MRCONFIGID[:]),
		ReportData: hex.EncodeToString(td.REPORTDATA[:]),
		Collateral: res.Collateral,
		TDX:        newClaims(q, res),
	}
	for i, r := range td.RTMR {
		c.Measurements[fmt.Sprintf("rtmr%d", i)] = hex.EncodeToString(r[:])
	}
	if td.TDX15 != nil {
		c.Measurements["mrservicetd"] = hex.EncodeToString(td.TDX15.MRSERVICETD[:])
	}
	return c
}
