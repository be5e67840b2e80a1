package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// stated is a verifier that believes what the test says about a report, by its first byte, if the rest of the report is the binding.
type stated struct {
	typ    attest.Type
	claims map[byte]attest.Claims
}

func (v stated) Type() attest.Type { return v.typ }

func (v stated) Verify(_ context.Context, e attest.Evidence, b attest.Binding, _ attest.Collateral, _ time.Time) (attest.Claims, error) {
	c, ok := v.claims[e.Report[0]]
	if !ok {
		return attest.Claims{}, attest.Errorf("stated", attest.ReasonSignature, "not signed")
	}
	if _, err := b.Check(e.Report[1:]); err != nil {
		return attest.Claims{}, attest.Errorf("stated", attest.ReasonBinding, "%w", err)
	}
	c.Type, c.Bound = v.typ, true
	return c, nil
}

// keepInput is a policy that allows everything and keeps what it was asked.
type keepInput struct{ last *broker.PolicyInput }

const anyPolicy = "sha256:00aa"

func (p keepInput) Decide(_ context.Context, in broker.PolicyInput) (broker.Decision, error) {
	*p.last = in
	return broker.Decision{Allow: true, Package: "any", PolicyDigest: anyPolicy}, nil
}

// guestWithDevices sends evidence of which the tests state what it proves: 'c' for the processor, what devices says for the rest.
func guestWithDevices(t *testing.T, cpu attest.Claims, gpus map[byte]attest.Claims, devices string, change ...func(*broker.Config)) (w *world, a *attempt, in *broker.PolicyInput) {
	t.Helper()
	in = &broker.PolicyInput{}
	w = newWorld(t, append([]func(*broker.Config){func(c *broker.Config) {
		c.Policy = keepInput{in}
		c.Verifiers = []attest.Verifier{stated{attest.TypeSNP, map[byte]attest.Claims{'c': cpu}}, stated{attest.TypeNVIDIA, gpus}}
	}}, change...)...)
	a = w.attempt(t)
	alone := a.bind.Digest64()
	for _, d := range []byte(devices) {
		e := attest.Evidence{Type: attest.TypeNVIDIA, Report: append([]byte{d}, alone[:]...)}
		a.req.Devices = append(a.req.Devices, e)
		a.bind.Devices = append(a.bind.Devices, e.Digest())
	}
	all := a.bind.Digest64()
	a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: append([]byte{'c'}, all[:]...)}
	return w, a, in
}

func gpu(chip string) attest.Claims {
	return attest.Claims{
		HardwareModel: "GH100", ChipID: chip, Measurements: map[string]string{"driver": "22bb"}, HostData: "33cc", Checks: []attest.Check{{}},
		TCB: attest.TCB{Status: attest.TCBOutOfDate, Advisories: []string{"NV-1"}},
	}
}

var theCPU = attest.Claims{HardwareModel: "Milan", ChipID: "cpu-1", Measurements: map[string]string{"measurement": "11aa"}, TCB: attest.TCB{Status: attest.TCBUnknown}}

// TestDevices: the policy sees each device, and who vouches for it.
func TestDevices(t *testing.T) {
	w, a, in := guestWithDevices(t, theCPU, map[byte]attest.Claims{'1': gpu("gpu-1"), '2': gpu("gpu-2")}, "12")
	if _, err := w.send(t, a); err != nil {
		t.Fatal(err)
	}
	ds := in.Attestation.Devices
	if len(ds) != 2 || ds[0].ChipID != "gpu-1" || ds[1].ChipID != "gpu-2" {
		t.Fatalf("devices %+v", ds)
	}
	for _, d := range ds {
		if d.VouchedBy != attest.TypeSNP || d.Type != attest.TypeNVIDIA || len(d.Checks) != 0 {
			t.Errorf("device %+v", d)
		}
	}
	if r := w.log.records[0]; !slices.Equal(r.Advisories, []string{"NV-1"}) || len(r.Devices) != 2 {
		t.Errorf("record %+v", r)
	}
	if in.Attestation.Simulated || w.log.records[0].Simulated {
		t.Error("real devices pass for simulated ones")
	}
}

// TestDevicesRefused: what can be wrong with a further device is as good a reason as what can be wrong with the first.
func TestDevicesRefused(t *testing.T) {
	simulated := gpu("gpu-1")
	simulated.Simulated = true
	for name, tt := range map[string]struct {
		devices string
		gpu     attest.Claims
		change  func(w *world, a *attempt)
		want    error
		says    string
	}{
		"revoked chip":        {gpu: gpu("gpu-1"), change: revoke(broker.RevokeChip, "gpu-1"), want: broker.ErrDenied, says: "revoked: chip gpu-1"},
		"revoked measurement": {gpu: gpu("gpu-1"), change: revoke(broker.RevokeMeasurement, "22BB"), want: broker.ErrDenied, says: "revoked: measurement 22bb"},
		"revoked TCB":         {gpu: gpu("gpu-1"), change: revoke(broker.RevokeTCB, "GH100/OutOfDate"), want: broker.ErrDenied, says: "revoked: tcb"},
		"revoked advisory":    {gpu: gpu("gpu-1"), change: revoke(broker.RevokeAdvisory, "NV-1"), want: broker.ErrDenied, says: "revoked: advisory"},
		"revoked workload":    {gpu: gpu("gpu-1"), change: revoke(broker.RevokeWorkload, "33cc"), want: broker.ErrDenied, says: "revoked: workload"},
		"without a chip id":   {gpu: gpu(""), want: broker.ErrDenied, says: "does not say which it is"},
		"comes twice":         {devices: "11", gpu: gpu("gpu-1"), want: broker.ErrDenied, says: "comes twice"},
		"not genuine":         {devices: "2", gpu: gpu("gpu-1"), want: broker.ErrDenied, says: "not signed"},
		"simulated":           {gpu: simulated, want: broker.ErrDenied, says: "policy"},
		"beside other evidence": {gpu: gpu("gpu-1"), change: func(_ *world, a *attempt) { a.req.Devices[0].EventLog = []byte("another") },
			want: broker.ErrDenied, says: "not the digest of this request"},
		"left out": {gpu: gpu("gpu-1"), change: func(_ *world, a *attempt) { a.req.Devices = nil }, want: broker.ErrDenied, says: "not the digest of this request"},
		"too many": {devices: strings.Repeat("1", attest.MaxDevices+1), gpu: gpu("gpu-1"), want: broker.ErrInvalid, says: "devices beside the first, at most"},
		"of an unknown type": {gpu: gpu("gpu-1"), change: func(_ *world, a *attempt) { a.req.Devices[0].Type = attest.TypeTDX },
			want: broker.ErrInvalid, says: "evidence[1].type"},
		"empty": {gpu: gpu("gpu-1"), change: func(_ *world, a *attempt) { a.req.Devices[0].Report = nil }, want: broker.ErrInvalid, says: "evidence[1].report"},
		"endorsed at length": {gpu: gpu("gpu-1"), change: func(_ *world, a *attempt) { a.req.Devices[0].Endorsements = make([]byte, attest.MaxEndorsementsSize+1) },
			want: broker.ErrInvalid, says: "evidence[1].endorsements"},
		"with a long event log": {gpu: gpu("gpu-1"), change: func(_ *world, a *attempt) { a.req.Devices[0].EventLog = make([]byte, attest.MaxEventLogSize+1) },
			want: broker.ErrInvalid, says: "evidence[1].event_log"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.devices == "" {
				tt.devices = "1"
			}
			w, a, _ := guestWithDevices(t, theCPU, map[byte]attest.Claims{'1': tt.gpu}, tt.devices, func(c *broker.Config) { c.AllowSimulated = false })
			if tt.change != nil {
				tt.change(w, a)
			}
			resp, err := w.send(t, a)
			if !errors.Is(err, tt.want) || len(resp.Secrets) > 0 || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %d secrets, %v; want %v about %q", len(resp.Secrets), err, tt.want, tt.says)
			}
			if w.source.touched != 0 {
				t.Error("the source was touched")
			}
			if r := w.log.records; name == "simulated" && (!r[0].Simulated || r[0].Resources[0].Reasons[0].Rule != "simulated") {
				t.Errorf("record %+v", r[0])
			}
		})
	}
}

func revoke(kind broker.RevocationKind, value string) func(*world, *attempt) {
	return func(w *world, _ *attempt) { w.revoked.add(broker.Subject{Kind: kind, Value: value}) }
}

// TestLargestEvidence is not too large: the bounds are what is let in.
func TestLargestEvidence(t *testing.T) {
	w, a, _ := guestWithDevices(t, theCPU, map[byte]attest.Claims{'1': gpu("gpu-1")}, "")
	a.req.Evidence.Endorsements, a.req.Evidence.EventLog = make([]byte, attest.MaxEndorsementsSize), make([]byte, attest.MaxEventLogSize)
	if _, err := w.send(t, a); err != nil {
		t.Error(err)
	}
	gpus, devices := map[byte]attest.Claims{}, ""
	for i := range attest.MaxDevices {
		gpus[byte(i)] = gpu(fmt.Sprintf("gpu-%d", i))
		devices += string(rune(i))
	}
	w, a, in := guestWithDevices(t, theCPU, gpus, devices)
	if _, err := w.send(t, a); err != nil || len(in.Attestation.Devices) != attest.MaxDevices {
		t.Errorf("%d devices: %v", len(in.Attestation.Devices), err)
	}
}

// TestSameChipIDOfTwoTypes: a chip id is told apart by the type of its device.
func TestSameChipIDOfTwoTypes(t *testing.T) {
	w, a, _ := guestWithDevices(t, theCPU, map[byte]attest.Claims{'1': gpu(theCPU.ChipID)}, "1")
	if _, err := w.send(t, a); err != nil {
		t.Error(err)
	}
}

// TestFirstDeviceAgain: the first piece of evidence does not vouch for itself as another device.
func TestFirstDeviceAgain(t *testing.T) {
	w, a, _ := guestWithDevices(t, theCPU, nil, "")
	alone := a.bind.Digest64()
	e := attest.Evidence{Type: attest.TypeSNP, Report: append([]byte{'c'}, alone[:]...)}
	a.req.Devices, a.bind.Devices = []attest.Evidence{e}, append(a.bind.Devices, e.Digest())
	all := a.bind.Digest64()
	a.req.Evidence.Report = append([]byte{'c'}, all[:]...)
	if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), "comes twice") {
		t.Error(err)
	}
}

// TestSimulatedFirst: genuine devices do not make simulated evidence genuine.
func TestSimulatedFirst(t *testing.T) {
	cpu := theCPU
	cpu.Simulated = true
	w, a, _ := guestWithDevices(t, cpu, map[byte]attest.Claims{'1': gpu("gpu-1")}, "1", func(c *broker.Config) { c.AllowSimulated = false })
	if _, err := w.send(t, a); !errors.Is(err, broker.ErrDenied) || !w.log.records[0].Simulated {
		t.Error(err)
	}
}
