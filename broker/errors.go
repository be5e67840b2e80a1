package broker

import (
	"errors"
	"fmt"
)

// What Release returns to the edge wraps exactly one of these. Everything else
// about a failure is for operators: it is in the audit log and in Event.
var (
	// ErrInvalid: the request breaks the protocol. Text after it may be shown to the guest.
	ErrInvalid = errors.New("invalid request")
	// ErrChallenge: the nonce is not ours, has expired or was used. A new challenge may help.
	ErrChallenge = errors.New("challenge not valid: request a new one")
	// ErrDenied: evidence not believed, policy says no, or no such resource. A guest cannot tell the three apart by code and text, nor the last two by time (G7).
	ErrDenied = errors.New("denied")
	// ErrUnavailable: our fault; the same request with a new challenge may succeed later.
	ErrUnavailable = errors.New("temporarily unavailable")
)

// Errors of the interfaces below.
var (
	// ErrSpent is Store's: the nonce was redeemed before.
	ErrSpent = errors.New("nonce already spent")
	// ErrNoSecret is Source's: there is no such secret (and none may be created).
	ErrNoSecret = errors.New("no such secret")
	// ErrVanished goes with ErrNoSecret: a key was there, and its source neither has it nor says that it was deleted.
	ErrVanished = fmt.Errorf("%w any more", ErrNoSecret)
	// ErrWithheld is Source's: there was an answer, and it is not the secret (forbidden, no such engine, not what the
	// entry says). No copy stands in for it, and the copy is dropped.
	ErrWithheld = errors.New("the source answers, and does not give the secret")
	// ErrBusy is Source's: there was an answer, and it says nothing about the secret (too many requests). No copy stands
	// in for it either. Any other error of a Source is no answer.
	ErrBusy = errors.New("the source answers that it is too busy")
	// ErrInput is Source's: what the guest sent for the resource is not
	// acceptable (a CSR for other names, a ciphertext of another key). Text after it is for operators.
	ErrInput = errors.New("input not acceptable")
	// ErrEnding is LeasedSource's: renewed, but for less than half of what was asked; a maximum lifetime is near.
	ErrEnding = errors.New("cannot be renewed for much longer")
	// ErrChanged is LeaseBook's and SessionBook's: somebody else wrote the record meanwhile.
	ErrChanged = errors.New("changed by somebody else meanwhile")
	// ErrTooLarge: the secret is larger than what can be released. It goes with ErrUnavailable; a guest that policy
	// allows is told both sizes.
	ErrTooLarge = errors.New("the secret is too large")
	// ErrNotRotatable is Rotator's.
	ErrNotRotatable = errors.New("not rotatable")
)
