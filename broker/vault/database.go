package vault

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
)

const databaseMount = "database"

// behind is a request that the database must answer, or one like it: each role by itself, as each may be of another database.
func behind(r request) request {
	r.alone = true
	return r
}

// fetchDatabase makes a user in the database that lives as long as the owner, and unless renewed no longer than limit, if that is not 0.
func (s *Source) fetchDatabase(ctx context.Context, e broker.CatalogEntry, o *broker.Owner, limit time.Duration) (broker.Secret, error) {
	mount := cmp.Or(e.Mount, databaseMount)
	now := time.Now()
	got, err := s.asOwner(ctx, o, behind(read(mount, "creds/"+e.Key)))
	if err != nil {
		return broker.Secret{}, unknownRole(err, e)
	}
	out, err := login(got, e)
	if err != nil {
		return broker.Secret{}, err
	}
	if got.LeaseID == "" {
		return broker.Secret{}, fmt.Errorf("vault: %s/creds/%s: the answer has no lease", mount, e.Key)
	}
	out.Version, out.Lease, out.Expires = madeAt(now), got.LeaseID, now.Add(lifetime(got))
	if limit == 0 || lifetime(got) <= limit {
		return out, nil
	}
	// Vault cannot be told when it makes one, but a renewal sets the time anew.
	now = time.Now()
	shorter, err := s.asOwner(ctx, o, leaseRenewal(out.Lease, limit))
	if err == nil && lifetime(shorter) > limit+time.Second {
		err = fmt.Errorf("it lives for %s", lifetime(shorter))
	}
	if err != nil {
		out.Wipe()
		return broker.Secret{}, fmt.Errorf("vault: %s/creds/%s: policy and catalog allow %s, and the lease cannot be made that short: %w", mount, e.Key, limit, err)
	}
	out.Expires = now.Add(lifetime(shorter))
	return out, nil
}

// madeAt names the version of a secret that is made anew each time.
func madeAt(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// fetchStatic reads the password of a user whose password Vault changes from time to time.
func (s *Source) fetchStatic(ctx context.Context, e broker.CatalogEntry) (broker.Secret, error) {
	mount := cmp.Or(e.Mount, databaseMount)
	now := time.Now()
	got, err := s.call(ctx, behind(read(mount, "static-creds/"+e.Key)))
	if err != nil {
		return broker.Secret{}, unknownRole(err, e)
	}
	out, err := login(got, e)
	if err != nil {
		return broker.Secret{}, err
	}
	if out.Version, err = rotation(got, e); err != nil {
		return broker.Secret{}, err
	}
	if ttl := integer(got.Data["ttl"]); ttl > 0 {
		out.Expires = now.Add(time.Duration(ttl) * time.Second)
	}
	return out, nil
}

// staticVersion reads the role: no password travels.
func (s *Source) staticVersion(ctx context.Context, e broker.CatalogEntry) (string, error) {
	got, err := s.call(ctx, behind(read(cmp.Or(e.Mount, databaseMount), "static-roles/"+e.Key)))
	if err != nil {
		return "", unknownRole(err, e)
	}
	return rotation(got, e)
}

func (s *Source) rotateStatic(ctx context.Context, e broker.CatalogEntry) (string, error) {
	if _, err := s.call(ctx, behind(write(cmp.Or(e.Mount, databaseMount), "rotate-role/"+e.Key, nil))); err != nil {
		return "", unknownRole(err, e)
	}
	return s.staticVersion(ctx, e)
}

// login turns Vault's answer into {"username", "password"}.
func login(got *api.Secret, e broker.CatalogEntry) (broker.Secret, error) {
	if got == nil {
		return broker.Secret{}, fmt.Errorf("vault: no role %s: %w", e.Key, broker.ErrNoSecret)
	}
	user, _ := got.Data["username"].(string)
	password, _ := got.Data["password"].(string)
	if user == "" || password == "" {
		return broker.Secret{}, fmt.Errorf("vault: %s: the answer has no username and password", e.Key)
	}
	value, err := canonical(map[string]string{"username": user, "password": password})
	return broker.Secret{Value: value, ContentType: "application/json"}, err
}

// rotation names the version of a static password by the time it was set.
func rotation(got *api.Secret, e broker.CatalogEntry) (string, error) {
	if got == nil {
		return "", fmt.Errorf("vault: no static role %s: %w", e.Key, broker.ErrNoSecret)
	}
	text, _ := got.Data["last_vault_rotation"].(string)
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return "", fmt.Errorf("vault: %s: last_vault_rotation: %w", e.Key, err)
	}
	return at.UTC().Format(time.RFC3339Nano), nil
}

// unknownRole recognises Vault's answers for a role that it does not have: 400 with these texts.
func unknownRole(err error, e broker.CatalogEntry) error {
	if status(err) == http.StatusBadRequest && (says(err, "unknown role") || says(err, "no static role found")) {
		return fmt.Errorf("vault: no role %s: %w: %w", e.Key, broker.ErrNoSecret, err)
	}
	return err
}
