package state

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker"
)

const (
	// MaxMachines is how many machines with several identities are remembered.
	MaxMachines = 100_000

	maxSame            = 256 // identities that are followed from one machine's
	maxIdentitiesBytes = 16 << 10
)

// machine is a record of identities that were seen together.
type machine struct {
	Identities []string `json:"identities"`
}

var _ broker.IdentityBook = (*State)(nil)

// SameMachine implements broker.IdentityBook.
func (s *State) SameMachine(ids []string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.view.same(ids)
}

// Bind implements broker.IdentityBook.
func (s *State) Bind(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	known := s.SameMachine(ids[:1])
	missing := slices.ContainsFunc(ids, func(id string) bool { return !slices.Contains(known, id) })
	if !missing || len(ids) > broker.MaxIdentities {
		return nil
	}
	if all := s.SameMachine(ids); len(all) > broker.MaxIdentities {
		s.log.Warn("a machine has more identities than are remembered", "identity", ids[0], "most", broker.MaxIdentities)
		return nil
	}
	sum := sha256.Sum256([]byte(strings.Join(ids, "\n")))
	key := identities + hex.EncodeToString(sum[:])
	if err := s.room(key, MaxMachines); errors.Is(err, broker.ErrRefused) {
		s.log.Warn("no room to remember which identities are one machine's", "identity", ids[0], "most", MaxMachines)
		return nil
	} else if err != nil {
		return err
	}
	b, err := encode(machine{ids}, "identities", maxIdentitiesBytes)
	if err != nil {
		return err
	}
	// A request writes it, and not an operator, for whom there is room left when the store fills up. It is in the view a moment later; until
	// then this request has the identities in its evidence.
	_, err = s.kv.PutIf(ctx, key, b, 0)
	return err
}
