package dcap

import (
	"context"
	"fmt"
	"slices"
	"time"

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

// Bound compares a field of the evidence with the binding. It reports whether the
// evidence is bound; name is the field's, for the record.
func (t *Trail) Bound(b attest.Binding, field []byte, name string) (bool, error) {
	bound, err := b.Check(field)
	switch {
	case err != nil:
		return false, t.Fail("binding", attest.ReasonBinding, "%s: %w", name, err)
	case bound:
		t.Pass("binding", "%s is the digest of this request", name)
	default:
		t.Skip("binding", "no binding was asked for")
	}
	return bound, nil
}

// Clock refuses to appraise without one. Evidence without dates would pass: it is
// a caller's mistake that elsewhere makes every certificate invalid.
func (t *Trail) Clock(now time.Time) error {
	if now.IsZero() {
		return t.Fail("internal", attest.ReasonInternal, "no clock")
	}
	return nil
}

// Contain appraises with a new trail. A panic, of a parser or of a source of
// collateral, refuses this one request; claims that come with an error hold only type and checks.
func Contain(ctx context.Context, prefix string, typ attest.Type, appraise func(*Trail) (attest.Claims, error)) (claims attest.Claims, err error) {
	t := NewTrail(prefix)
	defer func() {
		if r := recover(); r != nil {
			err = t.Fail("internal", attest.ReasonInternal, "panic: %v", r)
		}
		if err != nil {
			claims = attest.Claims{Type: typ}
		}
		claims.Checks = t.Checks()
	}()
	if err := ctx.Err(); err != nil {
		return claims, t.Fail("internal", attest.ReasonInternal, "%w", err)
	}
	return appraise(t)
}

// Checks returns what was recorded.
func (t *Trail) Checks() []attest.Check { return slices.Clone(t.checks) }

func (t *Trail) add(name string, o attest.Outcome, detail string) {
	t.checks = append(t.checks, attest.Check{Name: t.prefix + "." + name, Outcome: o, Detail: detail})
}
