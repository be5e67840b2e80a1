// Package grant makes authority a value: a Grant lets its holder do one thing
// once. Outside tests only package broker may import it (a test on the import
// graph says so), so only the broker's main flow can mint.
package grant

import (
	"errors"
	"sync/atomic"
)

// Grant is the authority over one T, redeemable once. The zero Grant grants nothing.
type Grant[T any] struct {
	minted bool
	what   T
	used   atomic.Bool
}

// Mint makes a grant.
func Mint[T any](what T) *Grant[T] { return &Grant[T]{minted: true, what: what} }

// Redeem returns what is granted. It works once.
func (g *Grant[T]) Redeem() (T, error) {
	var none T
	if g == nil || !g.minted {
		return none, errors.New("no grant")
	}
	if g.used.Swap(true) {
		return none, errors.New("grant already redeemed")
	}
	return g.what, nil
}
