package broker

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
)

// Denial is ErrDenied as a guest is told of it: with the id of the record, by
// which an operator finds the reasons, and a proof that it was this broker that
// said no to this request. All denials are alike but for the id (G7).
type Denial struct {
	ID        string
	Statement string // compact JWS, typ seal.TypeDenial, payload DenialStatement
	cause     error
}

func (d *Denial) Error() string { return d.cause.Error() }
func (d *Denial) Unwrap() error { return d.cause }

// DenialStatement is the payload of a denial. All its members have a fixed length.
type DenialStatement struct {
	Issuer   string `json:"iss"`     // broker id, base64url
	ID       string `json:"jti"`     // the record's id
	Request  string `json:"request"` // the request that is denied, attest.Transcript.Whole, base64url
	IssuedAt int64  `json:"iat"`
}

// recorded is an error with the id of the record that it left.
type recorded struct {
	id string
	error
}

func (r recorded) Unwrap() error { return r.error }

// denial makes a Denial of what wraps ErrDenied, about this request.
func (b *Broker) denial(err error, p attest.Purpose, req Request, now time.Time) error {
	r, ok := errors.AsType[recorded](err)
	if !ok || !errors.Is(err, ErrDenied) {
		return err
	}
	id := b.cfg.Identity.ID()
	whole := req.transcript(id).Whole(p, append([]attest.Evidence{req.Evidence}, req.Devices...)...)
	payload, jerr := json.Marshal(DenialStatement{
		Issuer: base64.RawURLEncoding.EncodeToString(id[:]), ID: r.id, Request: base64.RawURLEncoding.EncodeToString(whole[:]), IssuedAt: now.Unix(),
	})
	if jerr != nil {
		return fmt.Errorf("%w: encode denial: %w", ErrUnavailable, jerr)
	}
	statement, serr := b.cfg.Identity.Sign(seal.TypeDenial, payload)
	if serr != nil {
		return fmt.Errorf("%w: sign denial: %w", ErrUnavailable, serr)
	}
	return &Denial{ID: r.id, Statement: string(statement), cause: err}
}
