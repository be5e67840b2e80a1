package policy

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

// benchCases are the example policies with claims that each allows.
func benchCases(t testing.TB) map[string]benchCase {
	snp := snpInput(t)
	tdx := fixtureInput(t, "tdx_strict/fixtures/tdx_uptodate.json")
	tdx.Resource.Policy = "tdx_strict"
	tdxSet := broker.ReferenceSet{Name: "td", Type: attest.TypeTDX, State: broker.ReferenceActive, Values: map[string][]string{}}
	for k, v := range tdx.Attestation.Measurements {
		tdxSet.Values[k] = []string{v}
	}
	byName := snp
	byName.Resource.Policy = "workload"
	byRef := byName
	set := snpSet("fleet", snp)
	set.Values["host_data"] = []string{snp.Attestation.HostData}
	set.Values["workload"] = []string{"payments"}
	// Other teams' and older releases' sets, which must not slow this one down much.
	sets := []broker.ReferenceSet{set, tdxSet}
	for i := range 8 {
		o := snpSet(fmt.Sprintf("other-%d", i), snp)
		o.Values = map[string][]string{"measurement": {fmt.Sprintf("%096x", i)}, "host_data": {fmt.Sprintf("%064x", i)}}
		sets = append(sets, o)
	}
	denied := snp
	denied.Attestation.Measurements = map[string]string{"measurement": "00"}
	return map[string]benchCase{
		"disks":         {"disks", snp, sets, true},
		"workload":      {"workload", byRef, sets, true},
		"workload_name": {"workload", byName, []broker.ReferenceSet{snpSet("fleet", snp)}, true},
		"tdx_strict":    {"tdx_strict", tdx, sets, true},
		"disks_denied":  {"disks", denied, sets, false},
	}
}

type benchCase struct {
	policy string
	in     broker.PolicyInput
	sets   []broker.ReferenceSet
	allow  bool
}

// check wants the answer that this case must have.
func (c benchCase) check(d broker.Decision, err error) error {
	if err == nil && d.Allow != c.allow {
		err = fmt.Errorf("allow %t, reasons %+v", d.Allow, d.Reasons)
	}
	return err
}

func (c benchCase) engine(t testing.TB) *Engine {
	e := newEngine(t, Config{Dir: filepath.Join("..", "examples", "policies", c.policy)})
	if err := e.SetReferences(c.sets, nil); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExamplesDecide(t *testing.T) {
	for name, c := range benchCases(t) {
		d, err := c.engine(t).Decide(t.Context(), c.in)
		if err != nil || d.Allow != c.allow {
			t.Errorf("%s: allow %t, reasons %+v, error %v", name, d.Allow, d.Reasons, err)
		}
	}
}

// BenchmarkDecide is the whole of Decide:
// conversion of the claims, evaluation, and the answer.
func BenchmarkDecide(b *testing.B) {
	for name, c := range benchCases(b) {
		b.Run(name, func(b *testing.B) {
			e := c.engine(b)
			benchtest.Loop(b, func() error {
				d, err := e.Decide(b.Context(), c.in)
				return c.check(d, err)
			})
		})
	}
}

// BenchmarkEvaluate is Decide without the conversion of the claims: what the
// policy itself costs. The goal is under 100 µs.
func BenchmarkEvaluate(b *testing.B) {
	for name, c := range benchCases(b) {
		b.Run(name, func(b *testing.B) {
			e := c.engine(b)
			input, err := e.conv.convert(c.in, e.cfg.MaxInputBytes)
			if err != nil {
				b.Fatal(err)
			}
			benchtest.Loop(b, func() error {
				d, err := e.inForce.Load().decide(b.Context(), c.policy, input, c.in.Time, nil)
				return c.check(d, err)
			})
		})
	}
}

// BenchmarkManySets: a match among a thousand reference sets.
func BenchmarkManySets(b *testing.B) {
	c := benchCases(b)["workload"]
	for i := range 1000 {
		o := snpSet(fmt.Sprintf("more-%d", i), c.in)
		o.Values = map[string][]string{"measurement": {fmt.Sprintf("%096x", i+100)}, "host_data": {fmt.Sprintf("%064x", i)}}
		c.sets = append(c.sets, o)
	}
	e := c.engine(b)
	for b.Loop() {
		if d, err := e.Decide(b.Context(), c.in); err != nil || !d.Allow {
			b.Fatal(d, err)
		}
	}
}

func BenchmarkConvert(b *testing.B) {
	in := snpInput(b)
	var c converter
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.convert(in, 1<<20); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReload(b *testing.B) {
	e := newEngine(b, Config{Dir: filepath.Join("..", "examples", "policies")})
	for b.Loop() {
		if err := e.Reload(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
