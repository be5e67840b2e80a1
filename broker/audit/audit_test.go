package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
)

func open(t *testing.T, dir string) (*Log, string) {
	t.Helper()
	s, v, err := GenerateKey(rand.Reader, "test.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), dir, s, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(t.Context()) })
	return l, v
}

func proveSoon(t *testing.T, l *Log, i uint64) Proof {
	t.Helper()
	for {
		p, err := l.Prove(t.Context(), i)
		if err == nil {
			return p
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestAppendProveVerify(t *testing.T) {
	dir := t.TempDir()
	l, vkey := open(t, dir)
	var last broker.Position
	for i := range 300 { // more than one bundle of 256
		errs := make(chan error, 8)
		for j := range 8 {
			go func() {
				p, err := l.Append(t.Context(), broker.Record{Version: 1, ID: fmt.Sprintf("r%d-%d", i, j), Time: time.Unix(0, 0)})
				if j == 0 {
					last = p
				}
				errs <- err
			}()
		}
		for range 8 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		if i == 40 {
			break
		}
	}
	p := proveSoon(t, l, last.Index)
	if [32]byte(p.LeafHash) != last.LeafHash {
		t.Error("the leaf hash of the proof is not that of the promise")
	}
	if _, err := VerifyProof(p, vkey); err != nil {
		t.Error(err)
	}
	forged := p
	forged.LeafHash = make([]byte, 32)
	if _, err := VerifyProof(forged, vkey); err == nil {
		t.Error("accepted a proof of another leaf")
	}
	_, other, _ := GenerateKey(rand.Reader, "test.example/audit")
	if _, err := VerifyProof(p, other); err == nil {
		t.Error("accepted a checkpoint by another key")
	}

	seen := map[string]bool{}
	for e, err := range l.Entries(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		seen[string(e.Data)] = true
	}
	if n, err := l.Verify(t.Context()); err != nil || n != uint64(len(seen)) {
		t.Fatalf("verified %d of %d entries: %v", n, len(seen), err)
	}

	// One altered byte anywhere in the entries is found.
	bundle := filepath.Join(dir, "tile", "entries", "000")
	b, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(bundle, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Verify(t.Context()); err == nil {
		t.Error("tampering went unnoticed")
	}
}

func TestProveNotYet(t *testing.T) {
	l, _ := open(t, t.TempDir())
	p, err := l.Append(t.Context(), broker.Record{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	proveSoon(t, l, p.Index)
	if _, err := l.Prove(t.Context(), p.Index+1000); !errors.Is(err, ErrNotYet) {
		t.Errorf("got %v, want ErrNotYet", err)
	}
}

func TestAppendRefusesOversize(t *testing.T) {
	l, _ := open(t, t.TempDir())
	if _, err := l.Append(t.Context(), broker.Record{Error: strings.Repeat("x", maxEntry)}); err == nil {
		t.Fatal("accepted")
	}
}

func TestSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	s, v, _ := GenerateKey(rand.Reader, "test.example/audit")
	for want := range uint64(3) {
		l, err := Open(t.Context(), dir, s, v)
		if err != nil {
			t.Fatal(err)
		}
		p, err := l.Append(t.Context(), broker.Record{ID: "x"})
		if err != nil || p.Index != want {
			t.Fatalf("index %d, want %d: %v", p.Index, want, err)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
