package teetest

import (
	"context"
	"slices"

	"github.com/claviger/claviger/broker/attest"
)

// MapCollateral is collateral held in a map, for tests.
type MapCollateral map[attest.CollateralRef]attest.CollateralItem

// Get returns the item for ref, or an *attest.Error with ReasonCollateralMissing.
func (m MapCollateral) Get(_ context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	it, ok := m[ref]
	if !ok {
		return attest.CollateralItem{}, missing(ref)
	}
	return it, nil
}

// Without is c with all pieces of one kind missing.
func Without(c attest.Collateral, k attest.CollateralKind) attest.Collateral {
	return changed{c, k, func(attest.CollateralItem) (attest.CollateralItem, error) {
		return attest.CollateralItem{}, missing(attest.CollateralRef{Kind: k})
	}}
}

func missing(ref attest.CollateralRef) error {
	return attest.Errorf("collateral", attest.ReasonCollateralMissing, "no %s %q in the map", ref.Kind, ref.Key)
}

func replace(c attest.Collateral, k attest.CollateralKind, data []byte) attest.Collateral {
	return changed{c, k, func(it attest.CollateralItem) (attest.CollateralItem, error) {
		it.Data = data
		return it, nil
	}}
}

func flipped(c attest.Collateral, k attest.CollateralKind) attest.Collateral {
	return changed{c, k, func(it attest.CollateralItem) (attest.CollateralItem, error) {
		it.Data = slices.Clone(it.Data)
		if n := len(it.Data); n > 0 {
			it.Data[n/2] ^= 1
		}
		return it, nil
	}}
}

// changed applies f to every piece of one kind that c has.
type changed struct {
	c    attest.Collateral
	kind attest.CollateralKind
	f    func(attest.CollateralItem) (attest.CollateralItem, error)
}

func (c changed) Get(ctx context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	it, err := c.c.Get(ctx, ref)
	if err != nil || ref.Kind != c.kind {
		return it, err
	}
	return c.f(it)
}

// failing answers with an error that says nothing about collateral.
type failing struct{ err error }

func (f failing) Get(context.Context, attest.CollateralRef) (attest.CollateralItem, error) {
	return attest.CollateralItem{}, f.err
}

type panicking struct{}

func (panicking) Get(context.Context, attest.CollateralRef) (attest.CollateralItem, error) {
	panic("collateral source")
}
