package teetest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// toy is the smallest verifier that keeps the contract: the report is 64 bytes
// of report data and an HMAC; the collateral is a certificate-like expiry. Each
// fault is a way in which real verifiers have gone wrong.
type toy struct{ fault string }

const toyType = attest.Type("toy")

var (
	toyKey = []byte("toy")
	toyRef = attest.CollateralRef{Kind: attest.SNPCRL, Key: "toy"}
	toyNow = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func mac(b []byte) []byte {
	h := hmac.New(sha256.New, toyKey)
	h.Write(b)
	return h.Sum(nil)
}

func (v toy) Type() attest.Type { return toyType }

func (v toy) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (cl attest.Claims, err error) {
	defer func() {
		if v.fault != "panic" && recover() != nil {
			err = attest.Errorf("toy", attest.ReasonInternal, "panic")
		}
		if err != nil && v.fault != "claims" {
			cl = attest.Claims{Type: toyType}
		}
	}()
	fail := func(r attest.Reason) (attest.Claims, error) {
		return attest.Claims{Type: toyType, ReportData: "leak"}, attest.Errorf("toy", r, "no")
	}
	if ev.Type != toyType && v.fault != "type" {
		return fail(attest.ReasonUnsupported)
	}
	if len(ev.Report) < 96 || (len(ev.Report) > 96 && v.fault != "trailing") || len(ev.Endorsements) > 0 || len(ev.EventLog) > 0 {
		return fail(attest.ReasonMalformed)
	}
	bound, err := b.Check(ev.Report[:64])
	if err != nil && v.fault != "binding" {
		return fail(attest.ReasonBinding)
	}
	if ctx.Err() != nil && v.fault != "context" {
		return fail(attest.ReasonInternal)
	}
	signed := ev.Report[:64]
	if v.fault == "flip" { // the last byte is not covered
		if !bytes.Equal(mac(signed)[:31], ev.Report[64:95]) {
			return fail(attest.ReasonSignature)
		}
	} else if !hmac.Equal(mac(signed), ev.Report[64:96]) {
		return fail(attest.ReasonSignature)
	}
	if v.fault != "collateral" {
		if c == nil {
			return fail(attest.ReasonCollateralMissing)
		}
		it, gerr := c.Get(ctx, toyRef)
		if gerr != nil {
			return fail(attest.ReasonCollateralMissing)
		}
		until, perr := time.Parse(time.RFC3339, string(it.Data))
		if perr != nil || !until.Equal(toyNow.AddDate(1, 0, 0)) {
			return fail(attest.ReasonCollateralInvalid)
		}
		if v.fault != "clock" && (now.After(until) || now.Before(toyNow)) {
			return fail(attest.ReasonValidity)
		}
	}
	return attest.Claims{Type: toyType, Bound: bound || v.fault == "bound", ReportData: hex.EncodeToString(signed),
		Checks: []attest.Check{{Name: "toy", Outcome: attest.Passed}}}, nil
}

func toySuite(fault string) Suite {
	data := bytes.Repeat([]byte{7}, 64)
	return Suite{
		New: func(*testing.T) attest.Verifier { return toy{fault} },
		Good: []Vector{{
			Name:       "toy",
			Evidence:   attest.Evidence{Type: toyType, Report: append(bytes.Clone(data), mac(data)...)},
			Collateral: MapCollateral{toyRef: {Data: []byte(toyNow.AddDate(1, 0, 0).Format(time.RFC3339))}},
			Now:        toyNow.AddDate(0, 1, 0), ReportData: data,
			NotYetValid: toyNow.AddDate(-1, 0, 0), Expired: toyNow.AddDate(2, 0, 0),
			Needs: []attest.CollateralKind{attest.SNPCRL},
		}},
		Stride: 1, CutStride: 1,
	}
}

const faultEnv = "TEETEST_FAULT"

// TestSuite runs the suite over the toy; with a fault from the environment it must fail.
func TestSuite(t *testing.T) { Run(t, toySuite(os.Getenv(faultEnv))) }

// TestSuiteCatches: the suite fails for every fault.
func TestSuiteCatches(t *testing.T) {
	if os.Getenv(faultEnv) != "" {
		t.Skip("this is the child")
	}
	for _, fault := range []string{"claims", "type", "trailing", "binding", "context", "flip", "collateral", "clock", "bound", "panic"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuite$")
		cmd.Env = append(os.Environ(), faultEnv+"="+fault)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("the suite passes a verifier with the fault %q", fault)
		}
		if !bytes.Contains(out, []byte("--- FAIL")) {
			t.Errorf("fault %q: the child did not run: %s", fault, out)
		}
	}
}
