package broker

import (
	"context"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// parts are the pieces of evidence of a request. Each device's binds the request
// without devices; the first binds the request with the digests of theirs.
func (b *Broker) parts(req Request) []part {
	t := attest.Transcript{
		Nonce: req.Nonce, BrokerID: b.cfg.Identity.ID(), KeyAlgorithm: req.KeyAlgorithm, PublicKey: req.PublicKey,
		OfferedSuites: req.OfferedSuites, Resources: req.Resources, Inputs: req.Inputs,
	}
	for _, e := range req.Devices {
		t.Devices = append(t.Devices, e.Digest())
	}
	parts := []part{{b.verifiers[req.Evidence.Type], req.Evidence, attest.BindTo(t)}}
	for _, e := range req.Devices {
		parts = append(parts, part{b.verifiers[e.Type], e, attest.BindTo(t.Alone())})
	}
	return parts
}

// verifyAll appraises all pieces of evidence. One that fails fails all: a guest
// that cannot prove a device does not name it.
func (b *Broker) verifyAll(ctx context.Context, parts []part, now time.Time) (attest.Claims, error) {
	first := parts[0]
	claims, err := verify(ctx, first.verifier, first.evidence, first.binding, b.cfg.Collateral, now)
	if err != nil {
		return attest.Claims{}, err
	}
	type device struct {
		typ  attest.Type
		chip string
	}
	known := map[device]bool{{claims.Type, claims.ChipID}: true}
	for _, p := range parts[1:] {
		c, err := verify(ctx, p.verifier, p.evidence, p.binding, b.cfg.Collateral, now)
		if err != nil {
			return attest.Claims{}, err
		}
		// One GPU that signs eight times is not eight GPUs. A device that does not say who it is may be any.
		d := device{c.Type, c.ChipID}
		if c.ChipID == "" || known[d] {
			return attest.Claims{}, attest.Errorf(string(c.Type)+".device", attest.ReasonMismatch, "a device comes twice, or does not say which it is")
		}
		known[d] = true
		// What rests on a simulated part is simulated.
		claims.Simulated = claims.Simulated || c.Simulated
		c.VouchedBy, c.Checks = claims.Type, nil
		claims.Devices = append(claims.Devices, c)
	}
	return claims, nil
}
