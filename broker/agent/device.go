package agent

import (
	"context"
	"fmt"

	"github.com/claviger/claviger/broker/attest"
)

// hasty ends the wait for a device when the context ends, though the device
// does not answer: a TPM that another process holds, a host that makes no quote.
// One call at a time gets to the device.
type hasty struct {
	Device
	turn chan struct{} // of size 1
}

func newHasty(d Device) hasty { return hasty{d, make(chan struct{}, 1)} }

// do runs call in its turn. What call changes is for the caller to see only if do returns nil.
func (h hasty) do(ctx context.Context, call func()) error {
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("the device has not answered the request before: %w", ctx.Err())
	}
	done := make(chan struct{})
	go func() {
		defer func() { <-h.turn }()
		defer close(done)
		call()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the device does not answer: %w", ctx.Err())
	}
}

// Evidence implements Device.
func (h hasty) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	type answer struct {
		ev  attest.Evidence
		err error
	}
	got := make(chan answer, 1)
	if err := h.do(ctx, func() {
		ev, err := h.Device.Evidence(ctx, t)
		got <- answer{ev, err}
	}); err != nil {
		return attest.Evidence{}, err
	}
	a := <-got
	return a.ev, a.err
}

// activate has a device that is Activated activate its key.
func (h hasty) activate(ctx context.Context, ask func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error {
	a, ok := h.Device.(Activated)
	if !ok {
		return nil
	}
	got := make(chan error, 1)
	if err := h.do(ctx, func() { got <- a.Activate(ctx, ask) }); err != nil {
		return err
	}
	return <-got
}
