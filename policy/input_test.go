package policy

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

type named string

func (n named) MarshalText() ([]byte, error) { return []byte("<" + string(n) + ">"), nil }

type embedded struct{ E int }

type awkward struct {
	embedded
	A int            `json:"a,string"`
	B []byte         `json:"b"`
	C [3]byte        `json:"c"`
	D *int           `json:"d,omitempty"`
	E map[int]string `json:"e"`
	F float64        `json:"f"`
	G named          `json:"g"`
	H json.Number    `json:"h"`
	I json.RawMessage
	J any `json:"j"`
	K map[named]int
	L []string `json:"l,omitempty"`
	M string   `json:"-"`
	N string   `json:"<n>"`
	O time.Time
	P uint64
	//lint:ignore U1000 what is not exported must not be read
	lower int
}

// TestConverterIsJSON compares with what encoding/json and OPA make of a value.
func TestConverterIsJSON(t *testing.T) {
	n := 7
	date := testTime
	type vendor struct {
		VMPL  uint32            `json:"vmpl"`
		Flags struct{ X bool }  `json:"flags"`
		TCB   map[string]uint8  `json:"tcb"`
		Date  *time.Time        `json:"date,omitempty"`
		None  *time.Time        `json:"none,omitempty"`
		Zero  time.Time         `json:"zero,omitzero"`
		Map   map[string]string `json:"map,omitempty"`
		Int   int64             `json:"int"`
	}
	in := snpInput(t)
	in.Attestation.SNP = &vendor{VMPL: math.MaxUint32, TCB: map[string]uint8{"a": 1}, Date: &date, Int: math.MinInt64}
	in.Attestation.Measurements["odd"] = "\xff\"<>&\u2028é"
	for name, v := range map[string]any{
		"snp": snpInput(t), "tdx": fixtureInput(t, "tdx_strict/fixtures/tdx_uptodate.json"), "vendor struct": in,
		"zero": broker.PolicyInput{}, "nil": nil, "types": attest.TypeSNP,
		"awkward": awkward{B: []byte{1}, D: &n, E: map[int]string{1: "x"}, F: 1.25e300, G: "g", H: "12345678901234567890", I: json.RawMessage(`{"z":1}`),
			J: []any{1, "x", nil, map[string]any{"y": 2.5}}, K: map[named]int{"k": 1}, L: []string{"x"}, O: testTime, P: math.MaxUint64},
		"pointer": &awkward{H: "1", I: json.RawMessage("null")},
	} {
		t.Run(name, func(t *testing.T) {
			var c converter
			for range 2 { // the second time from the cached plan
				got, err := c.convert(v, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				b, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				want, err := ast.ValueFromReader(strings.NewReader(string(b)))
				if err != nil {
					t.Fatal(err)
				}
				if got.Value.Compare(want) != 0 {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			}
		})
	}
}

func TestConverterBounds(t *testing.T) {
	var c converter
	var deep any = "x"
	for range 50 {
		deep = []any{deep}
	}
	if _, err := c.convert(deep, 1<<20); err == nil {
		t.Error("deep nesting accepted")
	}
	type loop struct{ Next *loop }
	l := &loop{}
	l.Next = l
	if _, err := c.convert(l, 1<<20); err == nil {
		t.Error("a loop ends well")
	}
	if _, err := c.convert(make([]bool, 1000), 100); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long list: %v", err)
	}
	if _, err := c.convert(func() {}, 100); err == nil {
		t.Error("a function converts")
	}
}
