package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker/attest"
)

// MaxIdentities is how many names one machine may have.
const MaxIdentities = 16

// IdentityBook knows, for all brokers, which identities are those of one machine:
// what evidence showed together, and what operators enrolled together. Safe for concurrent use.
type IdentityBook interface {
	// SameMachine returns ids and all that are known to be of the same machine, from memory.
	SameMachine(ids []string) []string
	// Bind makes it known that ids are of one machine. It is durable on return, and costs nothing
	// if it was known. What there is no room for is not kept: MaxIdentities of a machine, and a bound on all.
	Bind(ctx context.Context, ids []string) error
}

// identities are the names of the machine, or device, in lower case: those in its evidence, and those known to be the same.
func (b *Broker) identities(c attest.Claims) []string {
	ids := identitiesOf(c)
	if len(ids) > 0 && b.cfg.Identities != nil {
		ids = b.cfg.Identities.SameMachine(ids)
	}
	return ids
}

// identitiesOf are those in the evidence, without devices'.
func identitiesOf(c attest.Claims) []string {
	var ids []string
	for _, id := range append([]string{c.ChipID}, c.Identities...) {
		if id = strings.ToLower(id); id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// bindIdentities remembers what the evidence showed to be one machine. It is
// called where a policy has allowed it, so that strangers do not fill the book,
// and before anything is sent, so that a revocation of either name finds both.
func (b *Broker) bindIdentities(ctx context.Context, c attest.Claims) error {
	if b.cfg.Identities == nil {
		return nil
	}
	for _, of := range append([]attest.Claims{c}, c.Devices...) {
		// The further names in another verifier's token are of parts that it does not call genuine: good for a denial,
		// and not for making two machines one, so that whoever revokes the guest's hits the other.
		if of.Type == attest.TypeResult {
			continue
		}
		if ids := identitiesOf(of); len(ids) > 1 {
			if err := b.cfg.Identities.Bind(ctx, ids); err != nil {
				return fmt.Errorf("%w: remember that identities are one machine's: %w", ErrUnavailable, err)
			}
		}
	}
	return nil
}
