package attest

import "context"

// Place is a request's turn among those that are appraised at once. Who waits
// for somebody else's service gives it up for so long: otherwise whoever makes
// up chips would have all turns spent on waiting for their certificates.
type Place interface {
	// Leave gives the turn up. The error says that too many wait as it is; then
	// the turn is kept. back takes a turn again, and may have to wait for it.
	Leave() (back func(context.Context) error, err error)
}

type placeKey struct{}

// WithPlace is a context of a request that has a turn.
func WithPlace(ctx context.Context, p Place) context.Context {
	return context.WithValue(ctx, placeKey{}, p)
}

// Leave gives up the turn of a context's request, as Place.Leave does. A
// request without one has nothing to give up.
func Leave(ctx context.Context) (back func(context.Context) error, err error) {
	if p, ok := ctx.Value(placeKey{}).(Place); ok {
		return p.Leave()
	}
	return func(context.Context) error { return nil }, nil
}
