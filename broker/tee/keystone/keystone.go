// Package keystone appraises reports of Keystone enclaves (RISC-V): a device key
// signs what security monitor was booted and that monitor's key, and the monitor
// signs the enclave's hash and the data that the enclave gave it. There is no
// vendor above the device key: the operator endorses each one.
//
// A device signs for any monitor. What one claims of an enclave is worth what the
// monitor is, and only endorsed monitors count as a TEE (bound_to_cpu_tee).
//
// Source: keystone-enclave/keystone, sdk/include/verifier, sm/src, bootrom.
package keystone

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
)

// Config of a Verifier.
type Config struct {
	// DeviceKeys are the public keys of endorsed devices. Without any, nothing is believed.
	DeviceKeys [][32]byte
	// Monitors are the hashes of endorsed security monitors (SHA3-512). Reports of others have bound_to_cpu_tee false.
	Monitors [][64]byte
	// Unendorsed lets reports of other devices be looked at, as simulated. It never stands behind a release.
	Unendorsed bool
}

// testKey is the device key whose secret half Keystone publishes
// (sdk/include/verifier/test_dev_key.h), and that its QEMU images use.
const testKey = "0faad4ff01178583baa588966f7c1ff32564dd17d7dc2b46cb50a84a69270b4c"

// Verifier appraises evidence of type "keystone". It makes these checks, in this
// order; the names are those of Claims.Checks.
//
//  1. keystone.format: a report in one of its forms; what nobody signed is zero.
//  2. keystone.binding: enclave.data is the digest of this request (64 bytes).
//  3. keystone.device: the device's key is endorsed.
//  4. keystone.monitor_signature: the device signed the monitor's hash and key.
//  5. keystone.enclave_signature: the monitor signed the enclave's hash and data.
//
// A monitor's key that can be guessed is a claim: weak_sm_key, and debuggable. So is one that is not endorsed: bound_to_cpu_tee.
type Verifier struct {
	devices    map[[keySize]byte]bool
	monitors   map[[hashSize]byte]bool
	unendorsed bool
	keys       memo.Memo[publicKey]              // of monitors whose device signed for them
	weak       memo.Memo[map[[keySize]byte]bool] // by the first byte of the SM hash
}

// New makes a Verifier.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{devices: map[[keySize]byte]bool{}, monitors: map[[hashSize]byte]bool{}, unendorsed: cfg.Unendorsed}
	for i, k := range cfg.DeviceKeys {
		if _, err := newPublicKey(k); err != nil {
			return nil, fmt.Errorf("keystone: device key %d %w", i, err)
		}
		v.devices[k] = true
	}
	for _, h := range cfg.Monitors {
		v.monitors[h] = true
	}
	return v, nil
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "keystone".
func (v *Verifier) Type() attest.Type { return attest.TypeKeystone }

// Verify implements attest.Verifier. It needs no collateral, and nothing in a report has a date.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "keystone", attest.TypeKeystone, func(t *dcap.Trail) (attest.Claims, error) {
		if err := t.Clock(now); err != nil {
			return attest.Claims{}, err
		}
		return v.verify(t, ev, b)
	})
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeKeystone {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if len(ev.Endorsements) > 0 || len(ev.EventLog) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "a report has nothing beside it")
	}
	r, err := parse(ev.Report)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	t.Pass("format", "report with %d bytes of data", len(r.data))

	// A report recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, r.data, "enclave.data")
	if err != nil {
		return none, err
	}

	// A device of the attacker's: everybody can make a key, and sign with it.
	endorsed := v.devices[r.deviceKey]
	switch {
	case endorsed:
		t.Pass("device", "%x is endorsed", r.deviceKey)
	case v.unendorsed && !bound:
		t.Skip("device", "nobody vouches for device %x", r.deviceKey)
	case len(v.devices) == 0:
		return none, t.Fail("device", attest.ReasonChain, "this broker knows no device (evidence.keystone.device_keys); the report is of %x", r.deviceKey)
	default:
		return none, t.Fail("device", attest.ReasonChain, "device %x is not endorsed", r.deviceKey)
	}

	// A monitor that the device did not boot, or a key that is not its own.
	key, err := v.monitorKey(r)
	if err != nil {
		return none, t.Fail("monitor_signature", attest.ReasonSignature, "%w", err)
	}
	t.Pass("monitor_signature", "by the device, for monitor %x…", r.smHash[:8])

	// An enclave that the monitor did not run, or data that it did not give.
	if !key.verify(r.signedByMonitor(), r.enclaveSignature) {
		return none, t.Fail("enclave_signature", attest.ReasonSignature, "the monitor's signature does not verify")
	}
	t.Pass("enclave_signature", "by the monitor, for enclave %x…", r.enclaveHash[:8])

	weak, err := v.weak.Get(memo.Key(r.smHash[:1]), func() (map[[keySize]byte]bool, error) { return weakKeys(r.smHash[0]) })
	if err != nil {
		return none, t.Fail("internal", attest.ReasonInternal, "%w", err)
	}
	return v.claims(r, bound, endorsed, weak[r.smKey]), nil
}

// monitorKey returns the monitor's key once the device's signature over it has verified.
func (v *Verifier) monitorKey(r *report) (publicKey, error) {
	return v.keys.Get(memo.Key(r.deviceKey[:], r.smHash[:], r.smKey[:], r.smSignature[:]), func() (publicKey, error) {
		device, err := newPublicKey(r.deviceKey)
		if err != nil {
			return publicKey{}, fmt.Errorf("the device's key %w", err)
		}
		monitor, err := newPublicKey(r.smKey)
		if err != nil {
			return publicKey{}, fmt.Errorf("the monitor's key %w", err)
		}
		if !device.verify(r.signedByDevice(), r.smSignature) {
			return publicKey{}, fmt.Errorf("the device's signature does not verify")
		}
		return monitor, nil
	})
}

// Claims are what the report says, under Keystone's names. Byte strings are lower-case hex.
type Claims struct {
	EnclaveHash string `json:"enclave_hash"` // SHA3-512 over sizes and pages
	EnclaveData string `json:"enclave_data"`
	SMHash      string `json:"sm_hash"` // SHA3-512 of the security monitor's image
	SMPublicKey string `json:"sm_public_key"`
	// SMEndorsed says that the broker's configuration names the monitor.
	SMEndorsed   bool   `json:"sm_endorsed"`
	DevPublicKey string `json:"dev_public_key"`
	// DevEndorsed is false only where evidence is looked at from a file.
	DevEndorsed bool `json:"dev_endorsed"`
	// WeakSMKey says that the monitor's key is one of the 256 that upstream's boot
	// ROM can derive for this monitor: whoever tries them can sign anything in its name.
	WeakSMKey bool `json:"weak_sm_key"`
}

func (v *Verifier) claims(r *report, bound, endorsed, weak bool) attest.Claims {
	c := &Claims{
		EnclaveHash: hex.EncodeToString(r.enclaveHash[:]), EnclaveData: hex.EncodeToString(r.data),
		SMHash: hex.EncodeToString(r.smHash[:]), SMPublicKey: hex.EncodeToString(r.smKey[:]), SMEndorsed: v.monitors[r.smHash],
		DevPublicKey: hex.EncodeToString(r.deviceKey[:]), DevEndorsed: endorsed, WeakSMKey: weak,
	}
	return attest.Claims{
		Type: attest.TypeKeystone, HardwareModel: "Keystone", Bound: bound,
		// Whoever can sign for the monitor can change all that the report says of an enclave.
		Debuggable: weak,
		// A monitor that nobody knows may well let the host in.
		BoundToCPUTEE: c.SMEndorsed,
		Simulated:     !endorsed || c.DevPublicKey == testKey,
		ChipID:        c.DevPublicKey,
		TCB:           attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}},
		Measurements:  map[string]string{"enclave_hash": c.EnclaveHash, "sm_hash": c.SMHash},
		ReportData:    c.EnclaveData,
		Collateral:    attest.CollateralState{State: attest.CollateralFresh},
		Keystone:      c,
	}
}
