package dcap

import (
	"fmt"
	"slices"

	"github.com/claviger/claviger/broker/attest"
)

// Trail records the checks of one appraisal, in order, under the prefix of the
// evidence type: check "quote_signature" of a TDX quote is "tdx.quote_signature".
type Trail struct {
	prefix string
	checks []attest.Check
}

// NewTrail starts a trail; prefix is for example "tdx".
func NewTrail(prefix string) *Trail { return &Trail{prefix: prefix} }

// Pass records a check that held.
func (t *Trail) Pass(name, format string, args ...any) {
	t.add(name, attest.Passed, fmt.Sprintf(format, args...))
}

// Skip records a check that does not apply, and why.
func (t *Trail) Skip(name, format string, args ...any) {
	t.add(name, attest.Skipped, fmt.Sprintf(format, args...))
}

// Fail records a check that did not hold and returns the *attest.Error for it.
func (t *Trail) Fail(name string, r attest.Reason, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	t.add(name, attest.Failed, err.Error())
	return &attest.Error{Check: t.prefix + "." + name, Reason: r, Err: err}
}

// Include records the checks of evidence inside this evidence, under their own names.
func (t *Trail) Include(checks []attest.Check) { t.checks = append(t.checks, checks...) }

// Checks returns what was recorded.
func (t *Trail) Checks() []attest.Check { return slices.Clone(t.checks) }

func (t *Trail) add(name string, o attest.Outcome, detail string) {
	t.checks = append(t.checks, attest.Check{Name: t.prefix + "." + name, Outcome: o, Detail: detail})
}
