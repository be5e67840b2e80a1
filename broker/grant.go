package broker

import "github.com/claviger/claviger/broker/internal/grant"

// Grant is the authority to read one secret once. Only Release mints it, after
// policy allowed and the nonce was spent; a Source redeems it before it
// touches anything. The zero Grant grants nothing.
type Grant = grant.Grant[CatalogEntry]

// Secret is a value on its way to a guest. Whoever holds it last wipes it.
type Secret struct {
	Value   []byte
	Version string
	Lease   string // the source's lease id, or empty
}

// Wipe overwrites the value.
func (s *Secret) Wipe() { clear(s.Value) }
