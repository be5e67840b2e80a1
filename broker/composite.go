package broker

import (
	"context"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// parts are the pieces of evidence of a request. Each device's binds the request
// without devices; the first binds the request with the digests of theirs.
func (b *Broker) parts(req Request) []part {
	t := req.transcript(b.cfg.Identity.ID())
	for _, e := range req.Devices {
		t.Devices = append(t.Devices, e.Digest())
	}
	parts := []part{{req.Evidence, attest.BindTo(t)}}
	for _, e := range req.Devices {
		parts = append(parts, part{e, attest.BindTo(t.Alone())})
	}
	return parts
}

// transcript is what the request says to this broker, apart from the evidence.
func (r Request) transcript(brokerID [32]byte) attest.Transcript {
	return attest.Transcript{
		Nonce: r.Nonce, BrokerID: brokerID, KeyAlgorithm: r.KeyAlgorithm, PublicKey: r.PublicKey,
		OfferedSuites: r.OfferedSuites, Resources: r.Resources, Inputs: r.Inputs,
	}
}

// verifyAll appraises all pieces of evidence. One that fails fails all: a guest
// that cannot prove a device does not name it.
func (b *Broker) verifyAll(ctx context.Context, vs *verifiers, parts []part, now time.Time) (attest.Claims, error) {
	first := parts[0]
	claims, err := verify(ctx, vs.byType[first.evidence.Type], first.evidence, first.binding, b.cfg.Collateral, now)
	if err != nil {
		return attest.Claims{}, err
	}
	type device struct {
		typ      attest.Type
		identity string
	}
	known := map[device]bool{}
	for _, id := range b.identities(claims) {
		known[device{claims.Type, id}] = true
	}
	for _, p := range parts[1:] {
		c, err := verify(ctx, vs.byType[p.evidence.Type], p.evidence, p.binding, b.cfg.Collateral, now)
		if err != nil {
			return attest.Claims{}, err
		}
		// One GPU that signs eight times is not eight GPUs. A device that does not say who it is may be any.
		// Nor is one TPM, which has several keys, two TPMs.
		twice := c.ChipID == ""
		ids := b.identities(c)
		for _, id := range ids {
			twice = twice || known[device{c.Type, id}]
		}
		if twice {
			return attest.Claims{}, attest.Errorf(string(c.Type)+".device", attest.ReasonMismatch, "a device comes twice, or does not say which it is")
		}
		for _, id := range ids {
			known[device{c.Type, id}] = true
		}
		// What rests on a simulated part is simulated.
		claims.Simulated = claims.Simulated || c.Simulated
		c.VouchedBy, c.Checks = claims.Type, nil
		claims.Devices = append(claims.Devices, c)
	}
	return claims, nil
}
