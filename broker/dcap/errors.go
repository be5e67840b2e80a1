package dcap

import (
	"errors"
	"fmt"

	"github.com/claviger/claviger/broker/attest"
)

// fault is an error with its reason. The flow in Verify turns it into an
// *attest.Error by adding the name of the check.
type fault struct {
	reason attest.Reason
	err    error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

func faultf(r attest.Reason, format string, args ...any) error {
	return &fault{r, fmt.Errorf(format, args...)}
}

func malformed(format string, args ...any) error {
	return faultf(attest.ReasonMalformed, format, args...)
}

func unsupported(format string, args ...any) error {
	return faultf(attest.ReasonUnsupported, format, args...)
}

// ReasonOf returns the reason of an error of this package, before or after it
// became an *attest.Error.
func ReasonOf(err error) attest.Reason {
	if f, ok := errors.AsType[*fault](err); ok {
		return f.reason
	}
	return attest.ReasonOf(err)
}

func invalid(format string, args ...any) error {
	return faultf(attest.ReasonCollateralInvalid, format, args...)
}
