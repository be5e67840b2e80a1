// Package teetest is the conformance suite for attest.Verifier. It checks that
// a verifier accepts its good vectors, and then attacks each of them: flipped
// bits, cuts, another request's binding, clocks outside the certificates,
// missing and corrupt collateral. It knows nothing about any evidence type.
package teetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// Part names a field of attest.Evidence.
type Part string

// Parts.
const (
	Report       Part = "report"
	Endorsements Part = "endorsements"
	EventLog     Part = "event_log"
)

// Vector is evidence that the verifier must accept.
type Vector struct {
	Name       string
	Evidence   attest.Evidence
	Collateral attest.Collateral
	Now        time.Time
	// ReportData is the whole signed field that a binding is compared with.
	ReportData []byte
	// NotYetValid and Expired are moments at which some certificate or piece
	// of collateral that the vector needs is not yet, or no longer, valid.
	// The zero time leaves the attack out.
	NotYetValid, Expired time.Time
	// Needs lists the kinds of collateral without which it must be refused.
	Needs []attest.CollateralKind
	// Unsigned says that the byte at offset of part has no influence on trust:
	// a flip there may be accepted, as long as the claims stay the same. nil
	// means that every byte of the report counts, and that the other parts may
	// hold bytes that do not.
	Unsigned func(part Part, offset int) bool
	// TrailingOK lists the parts after which further bytes may stand.
	TrailingOK []Part
}

// Suite describes a verifier and its vectors.
type Suite struct {
	New  func(t *testing.T) attest.Verifier
	Good []Vector
	// Stride is the distance in bits between two flips; 0 means 29, which is
	// prime to 8, so that every bit position is met.
	Stride int
	// CutStride is the distance in bytes between two truncations; 0 means 41.
	CutStride int
}

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	if len(s.Good) == 0 {
		t.Fatal("teetest: no good vectors: nothing would be tested")
	}
	if s.Stride == 0 {
		s.Stride = 29
	}
	if s.CutStride == 0 {
		s.CutStride = 41
	}
	t.Run("zero evidence", func(t *testing.T) { testZero(t, s) })
	for _, v := range s.Good {
		t.Run(v.Name, func(t *testing.T) {
			for _, c := range []struct {
				name string
				run  func(*testing.T, Suite, Vector)
			}{
				{"good", testGood},
				{"binding", testBinding},
				{"clock", testClock},
				{"collateral", testCollateral},
				{"context", testContext},
				{"type", testType},
				{"concurrent", testConcurrent},
				{"flip", testFlip},
				{"truncate", testTruncate},
				{"trailing", testTrailing},
			} {
				t.Run(c.name, func(t *testing.T) { c.run(t, s, v) })
			}
		})
	}
}

// testZero: nothing at all is refused, with nothing to help.
func testZero(t *testing.T, s Suite) {
	v := s.New(t)
	for _, ev := range []attest.Evidence{{}, {Type: v.Type()}, {Type: v.Type(), Report: []byte{0}}} {
		_, err := verify(t, v, t.Context(), ev, attest.Unbound(), nil, time.Time{})
		refused(t, err, "evidence of %d bytes", len(ev.Report))
	}
}

func testGood(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	first := good(t, v, g)
	if !first.Bound {
		t.Error("claims of bound evidence say bound = false")
	}
	if first.Type != v.Type() {
		t.Errorf("claims have type %q, the verifier %q", first.Type, v.Type())
	}
	if len(first.Checks) == 0 {
		t.Error("claims list no checks")
	}
	for _, c := range first.Checks {
		if c.Outcome == attest.Failed {
			t.Errorf("accepted with a failed check %+v", c)
		}
		if c.Name == "" || (c.Outcome == attest.Skipped && c.Detail == "") {
			t.Errorf("check %+v lacks its name or its reason", c)
		}
	}
	// What is memoised must not change the outcome.
	if again := good(t, v, g); !reflect.DeepEqual(first, again) {
		t.Error("a second appraisal gives other claims")
	}
	unbound, err := verify(t, v, t.Context(), g.Evidence, attest.Unbound(), g.Collateral, g.Now)
	if err != nil {
		t.Fatalf("unbound appraisal: %v", err)
	}
	if unbound.Bound {
		t.Error("claims of unbound evidence say bound = true")
	}
}

// testBinding: evidence made for another request is refused, and so is a
// binding that nobody filled in.
func testBinding(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	other := slices.Clone(g.ReportData)
	other[len(other)-1] ^= 1
	for name, b := range map[string]attest.Binding{
		"zero":       {},
		"last bit":   attest.BindExact(other),
		"prefix":     attest.BindExact(g.ReportData[:len(g.ReportData)/2]),
		"empty":      attest.BindExact([]byte{}),
		"transcript": attest.BindTo(attest.Transcript{Nonce: []byte("another request")}),
	} {
		_, err := verify(t, v, t.Context(), g.Evidence, b, g.Collateral, g.Now)
		refusedFor(t, err, attest.ReasonBinding, "binding %q", name)
	}
}

func testClock(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	good(t, v, g) // a memoised chain must not outlive its certificates
	for name, now := range map[string]time.Time{"not yet valid": g.NotYetValid, "expired": g.Expired} {
		if now.IsZero() {
			continue
		}
		_, err := verify(t, v, t.Context(), g.Evidence, exact(g), g.Collateral, now)
		refused(t, err, "%s at %s", name, now)
		if r := attest.ReasonOf(err); r != attest.ReasonValidity && r != attest.ReasonCollateralExpired && r != attest.ReasonCollateralInvalid {
			t.Errorf("%s: reason %q (%v), want validity or a collateral reason", name, r, err)
		}
	}
	_, err := verify(t, v, t.Context(), g.Evidence, exact(g), g.Collateral, time.Time{})
	refused(t, err, "the zero time")
}

func testCollateral(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	good(t, v, g) // memoised results must not stand in for missing collateral
	for _, k := range g.Needs {
		_, err := verify(t, v, t.Context(), g.Evidence, exact(g), Without(g.Collateral, k), g.Now)
		refusedFor(t, err, attest.ReasonCollateralMissing, "without %s", k)
		for _, junk := range [][]byte{nil, {0}, []byte("not collateral"), bytes.Repeat([]byte{0x30, 0x80}, 1<<12), bytes.Repeat([]byte("[{"), 1<<12)} {
			_, err := verify(t, v, t.Context(), g.Evidence, exact(g), replace(g.Collateral, k, junk), g.Now)
			refused(t, err, "%s replaced by %d bytes of junk", k, len(junk))
		}
		_, err = verify(t, v, t.Context(), g.Evidence, exact(g), flipped(g.Collateral, k), g.Now)
		refused(t, err, "a bit flipped in %s", k)
	}
	if len(g.Needs) == 0 {
		return
	}
	_, err := verify(t, v, t.Context(), g.Evidence, exact(g), nil, g.Now)
	refused(t, err, "a nil collateral source")
	_, err = verify(t, v, t.Context(), g.Evidence, exact(g), failing{errors.New("disk on fire")}, g.Now)
	refused(t, err, "a collateral source that fails")
	_, err = verify(t, v, t.Context(), g.Evidence, exact(g), panicking{}, g.Now)
	refused(t, err, "a collateral source that panics")
}

func testContext(t *testing.T, s Suite, g Vector) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := verify(t, s.New(t), ctx, g.Evidence, exact(g), g.Collateral, g.Now)
	refused(t, err, "a cancelled context")
}

// testType: evidence labelled as another type is refused.
func testType(t *testing.T, s Suite, g Vector) {
	ev := g.Evidence
	ev.Type = "another"
	_, err := verify(t, s.New(t), t.Context(), ev, exact(g), g.Collateral, g.Now)
	refused(t, err, "evidence of another type")
}

func testConcurrent(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	bad := clone(g.Evidence)
	bad.Report[len(bad.Report)/4] ^= 0x10
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := v.Verify(t.Context(), g.Evidence, exact(g), g.Collateral, g.Now); err != nil {
				t.Errorf("good evidence, concurrently: %v", err)
			}
			if _, err := v.Verify(t.Context(), bad, attest.Unbound(), g.Collateral, g.Now); err == nil {
				t.Error("a flipped bit was accepted, concurrently")
			}
		})
	}
	wg.Wait()
}

func testFlip(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	want := good(t, v, g)
	for part, data := range parts(g.Evidence) {
		for bit := 0; bit < len(data)*8; bit += s.Stride {
			ev := clone(g.Evidence)
			parts(ev)[part][bit/8] ^= 1 << (bit % 8)
			before := clone(ev)
			got, err := verify(t, v, t.Context(), ev, attest.Unbound(), g.Collateral, g.Now)
			if !reflect.DeepEqual(before, ev) {
				t.Fatalf("the verifier changed the evidence it was given")
			}
			if err != nil {
				refused(t, err, "bit %d of %s", bit, part)
				continue
			}
			if !mayIgnore(g, part, bit/8) {
				t.Errorf("%s with bit %d (byte %#x) flipped was accepted", part, bit, bit/8)
				continue
			}
			got.Bound = want.Bound
			if got.Checks, want.Checks = nil, nil; !reflect.DeepEqual(got, want) {
				t.Errorf("bit %d of %s is not signed, yet changes the claims", bit, part)
			}
		}
	}
}

func testTruncate(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	want := good(t, v, g)
	for part, data := range parts(g.Evidence) {
		for n := 0; n < len(data); n += s.CutStride {
			ev := clone(g.Evidence)
			set(&ev, part, data[:n:n])
			got, err := verify(t, v, t.Context(), ev, attest.Unbound(), g.Collateral, g.Now)
			if err != nil {
				refused(t, err, "%s cut to %d bytes", part, n)
				continue
			}
			if part == Report {
				t.Errorf("a report cut to %d of %d bytes was accepted", n, len(data))
			}
			if !reflect.DeepEqual(got.Measurements, want.Measurements) {
				t.Errorf("%s cut to %d bytes changes the measurements", part, n)
			}
		}
	}
}

func testTrailing(t *testing.T, s Suite, g Vector) {
	v := s.New(t)
	for part, data := range parts(g.Evidence) {
		if slices.Contains(g.TrailingOK, part) {
			continue
		}
		for _, tail := range [][]byte{{0}, {0xff}, make([]byte, 4096), bytes.Repeat([]byte{'A'}, 1<<20)} {
			ev := clone(g.Evidence)
			set(&ev, part, append(slices.Clone(data), tail...))
			_, err := verify(t, v, t.Context(), ev, attest.Unbound(), g.Collateral, g.Now)
			// Only the report is one closed structure everywhere; elsewhere what
			// matters is that a flood is refused.
			if part == Report || len(tail) == 1<<20 {
				refused(t, err, "%s with %d trailing bytes", part, len(tail))
			}
		}
	}
}

// verify calls v and holds it to the contract of attest.Verifier.
func verify(t *testing.T, v attest.Verifier, ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (cl attest.Claims, err error) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("panic: %v", r)
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	cl, err = v.Verify(ctx, ev, b, c, now)
	if err == nil {
		return cl, nil
	}
	if _, ok := errors.AsType[*attest.Error](err); !ok {
		t.Errorf("the error is not an *attest.Error: %T %v", err, err)
	}
	rest := cl
	rest.Type, rest.Checks = "", nil
	if !reflect.DeepEqual(rest, attest.Claims{}) {
		t.Errorf("claims of refused evidence hold more than type and checks: %+v", rest)
	}
	return cl, err
}

func good(t *testing.T, v attest.Verifier, g Vector) attest.Claims {
	t.Helper()
	cl, err := verify(t, v, t.Context(), g.Evidence, exact(g), g.Collateral, g.Now)
	if err != nil {
		t.Fatalf("good evidence was refused: %v", err)
	}
	return cl
}

func refused(t *testing.T, err error, what string, args ...any) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted: "+what, args...)
	}
}

func refusedFor(t *testing.T, err error, want attest.Reason, what string, args ...any) {
	t.Helper()
	refused(t, err, what, args...)
	if err != nil && attest.ReasonOf(err) != want {
		t.Errorf("%s: reason %q (%v), want %q", fmt.Sprintf(what, args...), attest.ReasonOf(err), err, want)
	}
}

func exact(g Vector) attest.Binding { return attest.BindExact(g.ReportData) }

func mayIgnore(g Vector, part Part, offset int) bool {
	if g.Unsigned != nil {
		return g.Unsigned(part, offset)
	}
	return part != Report
}

func parts(ev attest.Evidence) map[Part][]byte {
	return map[Part][]byte{Report: ev.Report, Endorsements: ev.Endorsements, EventLog: ev.EventLog}
}

func set(ev *attest.Evidence, part Part, data []byte) {
	switch part {
	case Report:
		ev.Report = data
	case Endorsements:
		ev.Endorsements = data
	case EventLog:
		ev.EventLog = data
	}
}

func clone(ev attest.Evidence) attest.Evidence {
	ev.Report = slices.Clone(ev.Report)
	ev.Endorsements = slices.Clone(ev.Endorsements)
	ev.EventLog = slices.Clone(ev.EventLog)
	return ev
}
