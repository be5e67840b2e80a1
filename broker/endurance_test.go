package broker_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/seal"
)

// TestTooLarge: what no guest could open is not released, nor recorded as
// released, and both sizes are told; a session waits for a version that fits.
func TestTooLarge(t *testing.T) {
	sized := func(_ broker.Granted, v string) (broker.Secret, error) {
		n := map[string]int{"1": seal.MaxSecret, "2": seal.MaxSecret + 1, "3": 1}[v]
		return broker.Secret{Value: make([]byte, n), Version: v}, nil
	}
	r := &rotated{version: "1", answer: sized}
	w, a := watchWorld(t, r)
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	if st.next(t).Started == nil {
		t.Fatal("no session")
	}
	u := st.next(t)
	if u.Secret == nil {
		t.Fatalf("the largest secret: %+v", u)
	}
	if s, err := seal.Open(a.key, u.Secret.JWE, seal.Expect{Identity: w.Identity(), Resource: "disks/vm-1", Nonce: a.req.Nonce, Now: time.Now()}); err != nil || len(s.Secret) != seal.MaxSecret {
		t.Errorf("a guest opens the largest secret: %d bytes, %v", len(s.Secret), err)
	}
	r.set("2")
	b := w.again(t, a)
	_, err := w.send(t, b)
	if !errors.Is(err, broker.ErrTooLarge) || !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("released: %v", err)
	}
	if want := fmt.Sprintf("%v: it has 65537 bytes, and at most 65536 can be released", broker.ErrTooLarge); broker.SizeOf(err) != want {
		t.Errorf("a guest is told %q", broker.SizeOf(err))
	}
	w.log.mu.Lock()
	if last := w.log.records[len(w.log.records)-1]; last.Outcome != broker.Failed || !strings.Contains(last.Error, "65537") {
		t.Errorf("recorded as %s: %s", last.Outcome, last.Error)
	}
	w.log.mu.Unlock()
	w.Changed()
	r.set("3")
	w.Changed()
	if u := st.next(t); u.Secret == nil || u.Secret.Version != "3" {
		t.Errorf("got %+v", u)
	}
}

// TestOneDoesNotCome: a resource that cannot be fetched just now keeps no other
// from a session, neither a new version nor a session itself, while the guest has a version of it.
func TestOneDoesNotCome(t *testing.T) {
	r := &rotated{version: "1"}
	w, a := watchWorld(t, r)
	a.req.Resources = []string{"disks/vm-1", "disks/vm-2"}
	a.bind.Resources = a.req.Resources
	a = w.again(t, a)
	st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
	session := st.next(t).Started
	if session == nil || st.next(t).Secret == nil || st.next(t).Secret == nil {
		t.Fatal("no session")
	}
	for _, path := range a.req.Resources {
		st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: path, Version: "1"}}
	}
	r.mu.Lock()
	r.answer = func(g broker.Granted, v string) (broker.Secret, error) {
		if g.Entry.Key == "disks/vm-1" {
			return broker.Secret{}, errors.New("the engine is sealed")
		}
		return broker.Secret{Value: []byte(v), Version: v}, nil
	}
	r.mu.Unlock()
	r.set("2")
	w.Changed()
	if u := st.next(t); u.Secret == nil || u.Secret.Resource != "disks/vm-2" || u.Secret.Version != "2" {
		t.Fatalf("got %+v", u)
	}
	hangUp()
	// It comes back meanwhile.
	held := map[string]string{"disks/vm-1": "1", "disks/vm-2": "2"}
	st, _ = w.subscribe(t, broker.Subscription{Request: w.again(t, a).req, Session: session.ID, Held: held})
	if u := st.next(t); u.Started == nil || !u.Started.Resumed {
		t.Fatalf("got %+v", u)
	}
	r.mu.Lock()
	r.answer = nil
	r.mu.Unlock()
	w.Changed()
	if u := st.next(t); u.Secret == nil || u.Secret.Resource != "disks/vm-1" || u.Secret.Version != "2" {
		t.Errorf("got %+v", u)
	}
}

// TestCredentialThatRunsOut is replaced before, though it has no version that anybody tells of.
func TestCredentialThatRunsOut(t *testing.T) {
	r := &rotated{answer: func(g broker.Granted, _ string) (broker.Secret, error) {
		return broker.Secret{Value: []byte(g.DecisionID), Expires: g.Now.Add(3 * time.Second)}, nil
	}}
	w, a := watchWorld(t, r)
	c, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "vault", Key: "disks/{vm}", Kind: broker.KindWrapped, Policy: "disks"}})
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	if st.next(t).Started == nil {
		t.Fatal("no session")
	}
	seen := map[string]bool{}
	var last time.Time
	for range 3 {
		u := st.next(t)
		if u.Secret == nil || seen[u.Secret.JWE] {
			t.Fatalf("got %+v", u)
		}
		seen[u.Secret.JWE] = true
		if !last.IsZero() && time.Since(last) >= 3*time.Second {
			t.Errorf("the one before ran out %s ago", time.Since(last)-3*time.Second)
		}
		last = time.Now()
	}
}
