package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
)

// NewOwner implements broker.LeasedSource: a token from Config.SessionRole.
func (s *Source) NewOwner(ctx context.Context, session string, ttl time.Duration) (broker.Owner, error) {
	if ttl < time.Second {
		return broker.Owner{}, fmt.Errorf("vault: a session of %s is too short, want 1s or more", ttl)
	}
	got, err := s.call(ctx, write("auth", "token/create/"+s.cfg.SessionRole, map[string]any{
		"ttl": seconds(ttl), "renewable": true, "display_name": "claviger-session", "meta": map[string]string{"session": session},
	}))
	if err != nil {
		return broker.Owner{}, err
	}
	o, err := owner(got, ttl)
	if err != nil {
		err = fmt.Errorf("vault: token role %s: %w", s.cfg.SessionRole, err)
		if got != nil && got.Auth != nil && got.Auth.Accessor != "" {
			err = errors.Join(err, s.revokeSoon(ctx, got.Auth.Accessor))
		}
		return broker.Owner{}, err
	}
	o.Source = s.cfg.Name
	return o, nil
}

// owner refuses a token that would not end when the session does, and not before.
func owner(got *api.Secret, ttl time.Duration) (broker.Owner, error) {
	switch {
	case got == nil || got.Auth == nil || got.Auth.ClientToken == "":
		return broker.Owner{}, errors.New("the answer has no token")
	case got.Auth.Accessor == "":
		return broker.Owner{}, errors.New("token_type: want service; a batch token cannot be revoked")
	case !got.Auth.Orphan:
		return broker.Owner{}, errors.New("orphan: want true; the sessions would end with the broker's own token")
	case !got.Auth.Renewable:
		return broker.Owner{}, errors.New("renewable: want true")
	case lifetime(got) < ttl/2:
		return broker.Owner{}, fmt.Errorf("token_explicit_max_ttl: too short; asked for %s and got %s", ttl, lifetime(got))
	case lifetime(got) > ttl+time.Second:
		return broker.Owner{}, fmt.Errorf("token_period: want none; asked for %s and got %s", ttl, lifetime(got))
	}
	return broker.Owner{ID: got.Auth.Accessor, Secret: []byte(got.Auth.ClientToken)}, nil
}

// RenewOwner implements broker.LeasedSource.
func (s *Source) RenewOwner(ctx context.Context, o broker.Owner, ttl time.Duration) error {
	r := write("auth", "token/renew-accessor", map[string]any{"accessor": o.ID, "increment": seconds(ttl)})
	if len(o.Secret) > 0 {
		r = write("auth", "token/renew-self", map[string]any{"increment": seconds(ttl)})
	}
	err := s.renewOne(ctx, o, r, ttl, "session")
	if errors.Is(err, broker.ErrNoSecret) {
		return err
	}
	// What one lease cannot says nothing about the others, and little about the owner.
	failed := map[string]error{}
	for _, id := range o.Leases {
		if err := s.renewLease(ctx, o, id, o.LeaseTTL(id, ttl)); errors.Is(err, errOwnerGone) {
			return err
		} else if err != nil {
			failed[id] = err
		}
	}
	if len(failed) == 0 {
		return err
	}
	return &broker.RenewError{Owner: err, Leases: failed, All: len(failed) == len(o.Leases)}
}

func (s *Source) renewLease(ctx context.Context, o broker.Owner, id string, ttl time.Duration) error {
	if !strings.Contains(id, "/") { // a token's accessor (KindLogin); lease ids begin with a path
		// Only the broker may renew by accessor.
		return s.renewOne(ctx, broker.Owner{}, write("auth", "token/renew-accessor", map[string]any{"accessor": id, "increment": seconds(ttl)}), ttl, "lease "+id)
	}
	return s.renewOne(ctx, o, leaseRenewal(id, ttl), ttl, "lease "+id)
}

// leaseRenewal fails with what the lease was read from, and by itself: Vault says 400 where a database does not answer to
// a renewal, which is no reason to ask that database for new users.
func leaseRenewal(id string, ttl time.Duration) request {
	r := write("sys", "leases/renew", map[string]any{"lease_id": id, "increment": max(seconds(ttl), 1)})
	r.what = "sys/leases/renew/" + path.Dir(id)
	return r
}

// errOwnerGone: not a lease, but all of them.
var errOwnerGone = fmt.Errorf("the session's token has ended: %w", broker.ErrNoSecret)

// renewOne renews with the owner's token, or with the broker's where there is none.
func (s *Source) renewOne(ctx context.Context, o broker.Owner, r request, ttl time.Duration, what string) error {
	var got *api.Secret
	var err error
	if len(o.Secret) > 0 {
		got, err = s.asOwner(ctx, &o, r)
	} else {
		got, err = s.call(ctx, r)
	}
	if err != nil {
		if len(o.Secret) > 0 && status(err) == http.StatusForbidden && s.ownerGone(ctx, o) {
			return fmt.Errorf("vault: %s: %w: %w", what, errOwnerGone, err)
		}
		if gone(err) {
			return fmt.Errorf("vault: %s has ended: %w: %w", what, broker.ErrNoSecret, err)
		}
		if says(err, "past the max TTL") {
			return fmt.Errorf("renew %s: %w: %w", what, broker.ErrEnding, err)
		}
		return fmt.Errorf("renew %s: %w", what, err)
	}
	if got := lifetime(got); got < ttl/2 {
		return fmt.Errorf("vault: %s was renewed for %s of %s: %w", what, got, ttl, broker.ErrEnding)
	}
	return nil
}

// RevokeOwner implements broker.LeasedSource. Vault ends the leases of a
// revoked token itself, and tries again if the database does not answer. No circuit breaker stops this.
func (s *Source) RevokeOwner(ctx context.Context, o broker.Owner) error {
	r := write("auth", "token/revoke-accessor", map[string]any{"accessor": o.ID})
	r.cleanup = true
	_, err := s.call(ctx, r)
	if err != nil && !gone(err) {
		return fmt.Errorf("revoke session: %w", err)
	}
	return nil
}

// fetchLogin makes a token that is the owner's child: it ends with it. With a limit it also ends by itself: it cannot be
// renewed, not even by the guest that has it. (To a token of a role Vault does not apply the token's own explicit_max_ttl
// when it is renewed, as of 1.21: nothing else would hold.) Without one it is renewed with the owner.
func (s *Source) fetchLogin(ctx context.Context, e broker.CatalogEntry, o *broker.Owner, limit time.Duration) (broker.Secret, error) {
	body := map[string]any{"display_name": "claviger-login"}
	ttl := max(limit, time.Second)
	if limit > 0 {
		body["renewable"], body["explicit_max_ttl"] = false, seconds(ttl)
	} else {
		self, err := s.asOwner(ctx, o, read("auth", "token/lookup-self"))
		if err != nil {
			return broker.Secret{}, err
		}
		left, err := self.TokenTTL()
		if err != nil {
			return broker.Secret{}, fmt.Errorf("vault: read the lifetime of the session's token: %w", err)
		}
		ttl = max(left, time.Second)
	}
	body["ttl"] = seconds(ttl)
	now := time.Now()
	got, err := s.asOwner(ctx, o, write("auth", "token/create/"+e.Key, body))
	if status(err) == http.StatusBadRequest && says(err, "batch token") {
		return broker.Secret{}, fmt.Errorf("vault: token role %s: token_type: want service: %w", e.Key, err)
	}
	if err != nil {
		return broker.Secret{}, err
	}
	switch {
	case got == nil || got.Auth == nil || got.Auth.ClientToken == "":
		return broker.Secret{}, fmt.Errorf("vault: token role %s: the answer has no token", e.Key)
	case got.Auth.Accessor == "":
		return broker.Secret{}, fmt.Errorf("vault: token role %s: token_type: want service; a batch token cannot be revoked", e.Key)
	case got.Auth.Orphan:
		err = errors.New("orphan: want false; the login would outlive its session")
	case limit == 0 && !got.Auth.Renewable:
		err = errors.New("renewable: want true; the login would end before its session")
	case lifetime(got) > ttl+time.Second:
		err = fmt.Errorf("token_period: want none; asked for %s and got %s", ttl, lifetime(got))
	}
	if err != nil {
		err = fmt.Errorf("vault: token role %s: %w", e.Key, err)
		return broker.Secret{}, errors.Join(err, s.revokeSoon(ctx, got.Auth.Accessor))
	}
	value, err := canonical(struct {
		Token    string `json:"token"`
		Accessor string `json:"accessor"`
		TTL      int    `json:"ttl"` // seconds
	}{got.Auth.ClientToken, got.Auth.Accessor, got.Auth.LeaseDuration})
	return broker.Secret{
		Value: value, Version: madeAt(now), ContentType: "application/json", Lease: got.Auth.Accessor, Expires: now.Add(lifetime(got)),
	}, err
}

// asOwner makes a request with the session's token. If that is refused, the
// broker's own login is not to blame.
func (s *Source) asOwner(ctx context.Context, o *broker.Owner, r request) (*api.Secret, error) {
	switch {
	case o == nil || len(o.Secret) == 0:
		return nil, fmt.Errorf("vault: %s/%s: no session to lease it to", r.mount, r.path)
	case cmp.Or(o.Source, s.cfg.Name) != s.cfg.Name:
		return nil, fmt.Errorf("vault %s: the session's token is of source %s", s.cfg.Name, o.Source) // not to be shown to another Vault
	}
	got, err := s.do(ctx, string(o.Secret), r)
	if status(err) == http.StatusForbidden {
		return nil, fmt.Errorf("the session's token has ended, or its policies do not allow this: %w", err)
	}
	return got, err
}

// gone recognises Vault's answers for a token or lease that has ended.
func gone(err error) bool {
	return status(err) == http.StatusNotFound ||
		status(err) == http.StatusBadRequest && (says(err, "invalid accessor") || says(err, "lease not found") || says(err, "lease expired")) ||
		status(err) == http.StatusForbidden && says(err, "invalid accessor")
}

// ownerGone tells a token that has ended from one that may not do something: every good token may look at itself.
func (s *Source) ownerGone(ctx context.Context, o broker.Owner) bool {
	_, err := s.do(ctx, string(o.Secret), read("auth", "token/lookup-self"))
	return status(err) == http.StatusForbidden
}

func seconds(d time.Duration) int { return int(d.Round(time.Second).Seconds()) }
