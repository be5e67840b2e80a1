package broker_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// faultyLog keeps every record, and fails or dawdles as a real log can.
type faultyLog struct {
	fakeLog
	during func()                    // runs while a release is appended
	answer func(broker.Record) error // what Append says of a record that it kept
}

func (l *faultyLog) Append(ctx context.Context, r broker.Record) (broker.Position, error) {
	if l.during != nil && r.Outcome == broker.Released {
		l.during()
	}
	if err := ctx.Err(); err != nil {
		return broker.Position{}, err
	}
	p, err := l.fakeLog.Append(ctx, r)
	if err == nil && l.answer != nil {
		err = l.answer(r)
	}
	return p, err
}

// TestRevokedWhileTheLogIsSlow: a revocation that is acknowledged before the reply stops it (G6), and the log says so.
func TestRevokedWhileTheLogIsSlow(t *testing.T) {
	l := &faultyLog{}
	w := newWorld(t, func(c *broker.Config) { c.Log = l })
	l.during = func() { w.revoked.add(broker.Subject{Kind: broker.RevokeResource, Value: "disks/vm-1"}) }
	resp, err := w.send(t, w.attempt(t))
	if !errors.Is(err, broker.ErrDenied) || len(resp.Secrets) > 0 {
		t.Fatalf("got %d secrets, %v", len(resp.Secrets), err)
	}
	withheld(t, l.records, broker.Denied)
}

// TestUncertainRecord: a log that has the record, but does not say so, releases nothing, and learns of it later.
func TestUncertainRecord(t *testing.T) {
	l := &faultyLog{answer: func(r broker.Record) error {
		if r.Outcome == broker.Released {
			return errors.New("no answer in time")
		}
		return nil
	}}
	w := newWorld(t, func(c *broker.Config) { c.Log = l })
	resp, err := w.send(t, w.attempt(t))
	if !errors.Is(err, broker.ErrUnavailable) || len(resp.Secrets) > 0 {
		t.Fatalf("got %d secrets, %v", len(resp.Secrets), err)
	}
	withheld(t, l.records, broker.Failed)
}

// withheld checks for a release and, under an id of its own, the word that it did not happen.
func withheld(t *testing.T, records []broker.Record, outcome broker.Outcome) {
	t.Helper()
	if len(records) != 2 || records[0].Outcome != broker.Released || records[1].Outcome != outcome ||
		records[1].Withholds != records[0].ID || records[1].ID == records[0].ID {
		t.Fatalf("records %+v", records)
	}
}

// TestHangUpLeavesOneRecord: a guest that hangs up while its release is recorded leaves one record, not a release and a failure.
func TestHangUpLeavesOneRecord(t *testing.T) {
	ctx, hangUp := context.WithCancel(t.Context())
	l := &faultyLog{during: hangUp}
	w := newWorld(t, func(c *broker.Config) { c.Log = l })
	a := w.attempt(t)
	var err error
	if a.req.Evidence, err = w.device.Evidence(a.bind.Digest64(), a.options); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Release(ctx, a.req); err != nil {
		t.Error(err)
	}
	if len(l.records) != 1 || l.records[0].Outcome != broker.Released {
		t.Errorf("records %+v", l.records)
	}
}

// TestDenialSpendsTheNonce: on no replica can a guest tell what was denied by policy from what does not exist (G7).
func TestDenialSpendsTheNonce(t *testing.T) {
	for name, change := range map[string]func(w *world, a *attempt){
		"no such resource": func(_ *world, a *attempt) { a.req.Resources = []string{"db/none"}; a.bind.Resources = a.req.Resources },
		"denied by policy": func(_ *world, a *attempt) { a.options.Measurement = teesim.Measurement("evil") },
		"no such secret":   func(w *world, _ *attempt) { w.source.fault = broker.ErrNoSecret },
	} {
		w := newWorld(t)
		a := w.attempt(t)
		change(w, a)
		if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
		second, err := broker.New(w.cfg)
		if err != nil {
			t.Fatal(err)
		}
		second.SetCatalog(w.Catalog())
		if _, err := second.Release(t.Context(), a.req); !errors.Is(err, broker.ErrChallenge) {
			t.Errorf("%s, on another replica: %v", name, err)
		}
	}
}

// TestDevicesAreRecorded: what can be revoked about a further device is in the record.
func TestDevicesAreRecorded(t *testing.T) {
	w := newWorld(t, func(c *broker.Config) {
		for i, v := range c.Verifiers {
			c.Verifiers[i] = accompanied{v}
		}
	})
	_, _ = w.send(t, w.attempt(t)) // denied or not: it is recorded
	r := w.log.records[0]
	if !slices.Contains(r.Devices, "nvidia-gpu=gpu-1") || !slices.Contains(r.Measurements, "nvidia-gpu/driver=22bb") ||
		!slices.Contains(r.DeviceTCB, "GH100/OutOfDate") || !slices.Contains(r.Advisories, "NV-1") {
		t.Errorf("record %+v", r)
	}
}

// accompanied is a verifier whose guest has a GPU.
type accompanied struct{ attest.Verifier }

func (v accompanied) Verify(ctx context.Context, e attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	claims, err := v.Verifier.Verify(ctx, e, b, c, now)
	claims.Devices = append(claims.Devices, attest.Claims{
		Type: "nvidia-gpu", HardwareModel: "GH100", ChipID: "gpu-1", Measurements: map[string]string{"driver": "22bb"}, Bound: true,
		TCB: attest.TCB{Status: attest.TCBOutOfDate, Advisories: []string{"NV-1"}},
	})
	return claims, err
}
