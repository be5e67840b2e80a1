package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee"
)

// TestEveryType: a new type of evidence is not left out of the table.
func TestEveryType(t *testing.T) {
	set, err := tee.New(tee.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var want, got []attest.Type
	for _, v := range set.Verifiers {
		want = append(want, v.Type())
	}
	for _, s := range types {
		got = append(got, s.name)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the table has %v, the broker appraises %v", got, want)
	}
}

const output = `goos: linux
BenchmarkVerify/tdx     	      30	   2105629 ns/op	    9298 cpu-ns/op	   81497 B/op	    1738 allocs/op
BenchmarkVerify/tdx     	      30	   2105629 ns/op	    6000 cpu-ns/op	   81497 B/op	    1738 allocs/op
BenchmarkVerifyCold/tdx 	      12	  10268077 ns/op	 4285083 cpu-ns/op
BenchmarkFloor/tdx/RSA-2048+P-256 	 124	    474174 ns/op	    4000 cpu-ns/op	    1952 B/op	      19 allocs/op
PASS
`

func TestAdd(t *testing.T) {
	r := results{}
	if err := r.add("d", output); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[key]cost{
		{"d", "Verify", "tdx"}:     {ns: 6000}, // the least
		{"d", "VerifyCold", "tdx"}: {ns: 4285083},
		{"d", "Floor", "tdx"}:      {ns: 4000, counts: "RSA-2048 + P-256"},
	} {
		if r[k] != want {
			t.Errorf("%v: %v, want %v", k, r[k], want)
		}
	}
	for _, line := range []string{
		"BenchmarkVerify 30 2105629 ns/op", "BenchmarkVerify 30 x cpu-ns/op", "BenchmarkVerify 30 0 cpu-ns/op", "BenchmarkVerify cpu-ns/op", "cpu-ns/op\nBenchmarkVerify",
	} {
		if err := (results{}).add("d", line); err == nil {
			t.Errorf("%q: taken", line)
		}
	}
}

// TestPrint: a line per type, and no table in which one is missing.
func TestPrint(t *testing.T) {
	full := func() results {
		r := results{{releases, "Release", "tdx"}: {ns: 3e3}, {releases, "ReleaseFloor", "tdx"}: {2e3, "P-256 + MAC"},
			{policies, "Evaluate", "disks"}: {ns: 90e3}, {policies, "Decide", "disks"}: {ns: 120e3}, {policies, "Recall", "disks"}: {ns: 9e3}}
		for _, s := range types {
			r[key{s.dir, "Verify", ""}], r[key{s.dir, "Floor", ""}] = cost{ns: 6e6}, cost{4e6, "P-384"}
		}
		return r
	}
	var b strings.Builder
	if err := full().print(&b, 5, time.Second); err != nil {
		t.Fatal(err)
	}
	table := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{"psa 6000 - 4000 1.50 P-384", "tdx 3 - 2 1.50 P-256 + MAC", "disks 9 90 - - goal: under 100; 120 with"} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	for k := range full() {
		r := full()
		delete(r, k)
		if err := r.print(&strings.Builder{}, 5, time.Second); err == nil {
			t.Errorf("printed without %v", k)
		}
	}
}
