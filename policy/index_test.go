package policy

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// TestIndexOnlyProposes: with the index of the engine and without it (the
// library then looks at all sets) every question has the same answer.
func TestIndexOnlyProposes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	word := func() string { return []string{"", "aa", "bb", "cc"}[rng.IntN(4)] }
	in := snpInput(t)
	in.Resource.Policy = "workload"
	in.Resource.Params = map[string]string{"workload": "w"}
	e := newEngine(t, Config{Dir: "../examples/policies/workload"})
	allowed := 0
	for range 2000 {
		var sets []broker.ReferenceSet
		for i := range rng.IntN(4) {
			s := snpSet(fmt.Sprintf("s%d", i), in)
			s.Type = []attest.Type{attest.TypeSNP, attest.TypeSNP, attest.TypeTDX}[rng.IntN(3)]
			s.State = []broker.ReferenceState{broker.ReferenceActive, broker.ReferenceRetiring, broker.ReferenceRetired}[rng.IntN(3)]
			s.Values = map[string][]string{"measurement": {word(), word()}, "host_data": {word()}, "workload": {"w"}}
			if rng.IntN(4) == 0 {
				s.NotAfter = in.Time.Add(time.Duration(rng.IntN(3)-1) * time.Hour)
			}
			if rng.IntN(8) == 0 {
				s.Values = nil
			}
			sets = append(sets, s)
		}
		in.Attestation.Measurements = map[string]string{"measurement": word()}
		in.Attestation.HostData = word()
		if err := e.SetReferences(sets, nil); err != nil {
			t.Fatal(err)
		}
		got, err := e.Decide(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		refs, err := newReferences(sets, nil)
		if err != nil {
			t.Fatal(err)
		}
		plain := *e.inForce.Load()
		store, err := storeOf(map[string]any{"reference": refs.of(func(broker.ReferenceSet) bool { return true }).doc})
		if err != nil {
			t.Fatal(err)
		}
		plain.stores = map[string]storage.Store{"workload": store}
		term, err := e.conv.convert(in, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		want, err := plain.decide(t.Context(), "workload", term, in.Time, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.Allow != want.Allow {
			t.Fatalf("with the index allow is %t, without %t\nclaims %v %q\nsets %+v", got.Allow, want.Allow, in.Attestation.Measurements, in.Attestation.HostData, sets)
		}
		if got.Allow {
			allowed++
		}
	}
	if allowed < 50 || allowed > 1950 {
		t.Fatalf("%d of 2000 allowed: the test tries too little", allowed)
	}
}
