package attest

import (
	"errors"
	"fmt"
)

// Reason classifies why evidence was not believed. The set is closed: it
// becomes a metric label and a word in the audit log.
type Reason string

// Reasons.
const (
	ReasonMalformed         Reason = "malformed"          // does not parse, or breaks its specification
	ReasonUnsupported       Reason = "unsupported"        // well-formed but a version, product or algorithm we do not know
	ReasonBinding           Reason = "binding"            // report_data is not the digest of this request
	ReasonSignature         Reason = "signature"          // a signature does not verify
	ReasonChain             Reason = "chain"              // a certificate does not lead to a pinned root
	ReasonValidity          Reason = "validity"           // expired or not yet valid
	ReasonRevoked           Reason = "revoked"            // on a CRL, or TCB status Revoked
	ReasonMismatch          Reason = "mismatch"           // two signed statements contradict (CHIP_ID, TCB, FMSPC, event log…)
	ReasonCollateralMissing Reason = "collateral_missing" // could not be had from any source
	ReasonCollateralExpired Reason = "collateral_expired" // older than its age limit or nextUpdate
	ReasonCollateralInvalid Reason = "collateral_invalid" // not signed by its authority, or malformed
	ReasonInternal          Reason = "internal"           // the verifier failed; not the guest's fault
)

// Error says which check failed and why. Its text is for operators, never for guests.
type Error struct {
	Check  string // the name of the failed check, as in Claims.Checks
	Reason Reason
	Err    error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", e.Check, e.Reason)
	}
	// What only passes on another one with the same reason, as that of a source of collateral, says it once.
	if in, ok := errors.AsType[*Error](e.Err); ok && in.Err != nil && in.Reason == e.Reason && e.Err.Error() == in.Error() {
		return fmt.Sprintf("%s: %s: %v", e.Check, e.Reason, in.Err)
	}
	return fmt.Sprintf("%s: %s: %v", e.Check, e.Reason, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error.
func Errorf(check string, r Reason, format string, args ...any) *Error {
	return &Error{Check: check, Reason: r, Err: fmt.Errorf(format, args...)}
}

// ReasonOf returns the reason of the first *Error in err's chain, or ReasonInternal.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ReasonInternal
}
