package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// talkative is a verifier that refuses, and repeats what it was shown.
type talkative struct {
	panicking
	says string
}

func (v talkative) Verify(context.Context, attest.Evidence, attest.Binding, attest.Collateral, time.Time) (attest.Claims, error) {
	return attest.Claims{}, attest.Errorf("snp.chain", attest.ReasonChain, "the chain ends at %s", v.says)
}

// TestUnprovenRecords: whoever proves nothing leaves short records, and few bytes
// of them, whatever he sends.
func TestUnprovenRecords(t *testing.T) {
	for name, says := range map[string]string{
		"short":      "another root",
		"control":    strings.Repeat("\x01", 30000),
		"HTML":       strings.Repeat("<", 30000),
		"not UTF-8":  strings.Repeat("\xff", 30000),
		"characters": strings.Repeat("é", 30000),
	} {
		w := newWorld(t, func(c *broker.Config) { c.Verifiers = []attest.Verifier{talkative{says: says}} })
		flood := func(n int) (bytes int) {
			before := len(w.log.records)
			for range n {
				a := w.attempt(t)
				a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: []byte{1}}
				for i := range 16 {
					a.req.Resources = append(a.req.Resources, fmt.Sprintf("disks/%s%d", strings.Repeat("a", 200), i))
				}
				if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) {
					t.Fatal(err)
				}
			}
			for _, r := range w.log.records[before:] {
				b, err := json.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				if len(b) > 5000 || !r.Unproven || !strings.Contains(r.Error, "the chain ends at") || len(r.Resources) != 5 || r.Resources[0].Path != "disks/vm-1" ||
					r.Resources[4].Path != "… and 13 more" || !utf8.ValidString(r.Error) {
					t.Fatalf("%s: a record of %d bytes: %.600s", name, len(b), b)
				}
				bytes += len(b)
			}
			return bytes
		}
		if n := flood(200); n < 25000 || n > 33000 {
			t.Errorf("%s: a burst leaves %d bytes", name, n)
		}
		w.now = w.now.Add(40 * time.Second)
		if n := flood(200); n < 3000 || n > 15000 {
			t.Errorf("%s: 40 s later a burst leaves %d bytes", name, n)
		}
	}
}

func TestClip(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "0123456789": "0123456789", "0123456789a": "0123456…", "é123456789é": "é12345…", "ééééé": "ééééé", "éééééé": "ééé…",
		"a\x00b\n": "a\ufffdb\n", "a\xffb": "a\ufffdb", "a\xff\xfe\xfdb": "a\ufffdb",
	} {
		if got := broker.Clip(in, 10); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
