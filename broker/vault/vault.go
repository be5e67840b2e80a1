// Package vault reads secrets from HashiCorp Vault's KV v2 engine (or OpenBao's,
// which speaks the same API). It is a broker.Source and the only importer of
// Vault's client.
package vault

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"

	"github.com/claviger/claviger/broker"
)

// Config of a Source. Exactly one login is required.
type Config struct {
	Address   string
	CAFile    string // PEM roots; empty: the system's
	Namespace string // sent only if set
	Mount     string // of the KV v2 engine; empty: "secret"

	AppRole   *AppRole
	TokenFile string // read again at every login, so that an agent may rotate it

	MaxConcurrency int           // requests to Vault at once; 0: 16
	Timeout        time.Duration // of one request; 0: 5 s
	Logger         *slog.Logger
}

// AppRole is a login by role id and secret id.
type AppRole struct {
	Mount        string // empty: "approle"
	RoleID       string
	SecretIDFile string
	Wrapped      bool // the file holds a response-wrapping token, good for one login
}

const defaultField = "value"

// Source reads from one Vault.
type Source struct {
	cfg    Config
	client *api.Client
	slots  chan struct{}
	log    *slog.Logger

	mu    sync.Mutex // serialises logins
	token string     // the token of the last login; guarded by mu
}

// New logs in. Run keeps the login alive.
func New(ctx context.Context, cfg Config) (*Source, error) {
	if (cfg.AppRole == nil) == (cfg.TokenFile == "") {
		return nil, errors.New("vault: want exactly one of approle and token_file")
	}
	if !strings.HasPrefix(cfg.Address, "https://") && !strings.HasPrefix(cfg.Address, "http://127.0.0.1:") {
		return nil, fmt.Errorf("vault: address %q: TLS is required beyond loopback", cfg.Address)
	}
	if cfg.Mount == "" {
		cfg.Mount = "secret"
	}
	if cfg.MaxConcurrency == 0 {
		cfg.MaxConcurrency = 16
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := api.DefaultConfig()
	if c.Error != nil {
		return nil, fmt.Errorf("vault: %w", c.Error)
	}
	c.Address, c.Timeout, c.MaxRetries = cfg.Address, cfg.Timeout, 0 // the guest retries; we do not multiply load
	if err := c.ConfigureTLS(&api.TLSConfig{CACert: cfg.CAFile}); err != nil {
		return nil, fmt.Errorf("vault: ca: %w", err)
	}
	c.HttpClient.Transport.(*http.Transport).MaxIdleConnsPerHost = cfg.MaxConcurrency
	client, err := api.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	// Only the configuration counts, not VAULT_TOKEN and VAULT_NAMESPACE of whoever starts the broker.
	client.ClearToken()
	client.ClearNamespace()
	if cfg.Namespace != "" {
		client.SetNamespace(cfg.Namespace)
	}
	s := &Source{cfg: cfg, client: client, slots: make(chan struct{}, cfg.MaxConcurrency), log: cfg.Logger}
	if _, err := s.login(ctx, ""); err != nil {
		return nil, err
	}
	return s, nil
}

// login replaces the token, unless somebody else already replaced the one that failed.
func (s *Source) login(ctx context.Context, failed string) (*api.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != failed {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	if s.cfg.TokenFile != "" {
		b, err := os.ReadFile(s.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("vault: read token: %w", err)
		}
		s.client.SetToken(strings.TrimSpace(string(b)))
		self, err := s.client.Auth().Token().LookupSelfWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("vault: token login: %w", err)
		}
		s.token = s.client.Token()
		renewable, _ := self.TokenIsRenewable()
		ttl, _ := self.TokenTTL()
		return &api.Secret{Auth: &api.SecretAuth{ClientToken: s.token, Renewable: renewable, LeaseDuration: int(ttl.Seconds())}}, nil
	}
	opts := []approle.LoginOption{}
	if s.cfg.AppRole.Mount != "" {
		opts = append(opts, approle.WithMountPath(s.cfg.AppRole.Mount))
	}
	if s.cfg.AppRole.Wrapped {
		opts = append(opts, approle.WithWrappingToken())
	}
	auth, err := approle.NewAppRoleAuth(s.cfg.AppRole.RoleID, &approle.SecretID{FromFile: s.cfg.AppRole.SecretIDFile}, opts...)
	if err != nil {
		return nil, fmt.Errorf("vault: approle: %w", err)
	}
	secret, err := s.client.Auth().Login(ctx, auth)
	if err != nil {
		return nil, fmt.Errorf("vault: approle login: %w", err)
	}
	s.token = secret.Auth.ClientToken
	return secret, nil
}

// Run renews the token until ctx ends, and logs in again when it cannot be renewed any more.
func (s *Source) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := s.renew(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "vault token is not renewed, logging in again", "error", err)
			s.mu.Lock()
			failed := s.token
			s.mu.Unlock()
			if _, err := s.login(ctx, failed); err != nil {
				s.log.ErrorContext(ctx, "cannot log in to vault", "error", err)
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	return ctx.Err()
}

func (s *Source) renew(ctx context.Context) error {
	lookup, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	self, err := s.client.Auth().Token().LookupSelfWithContext(lookup)
	if err != nil {
		return fmt.Errorf("look up token: %w", err)
	}
	ttl, err := self.TokenTTL()
	if err != nil {
		return fmt.Errorf("read token's lifetime: %w", err)
	}
	// A root or other token without an end. (A lifetime of 0 says little: Vault counts in whole seconds.)
	if self.Data["expire_time"] == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	renewable, err := self.TokenIsRenewable()
	if err != nil {
		return fmt.Errorf("read whether token is renewable: %w", err)
	}
	wait := ttl / 2
	select {
	case <-time.After(max(wait, 200*time.Millisecond)):
	case <-ctx.Done():
		return ctx.Err()
	}
	if !renewable {
		return errors.New("token is not renewable")
	}
	call, cancel2 := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel2()
	renewed, err := s.client.Auth().Token().RenewSelfWithContext(call, 0) // 0: by the role's own period
	if err != nil {
		return fmt.Errorf("renew token: %w", err)
	}
	// At its maximum lifetime Vault "renews" for ever less: then it is time for a new one.
	if got := time.Duration(renewed.Auth.LeaseDuration) * time.Second; got <= wait/2 {
		return fmt.Errorf("token nears its maximum lifetime, %s left", got)
	}
	return nil
}

// Fetch implements broker.Source.
func (s *Source) Fetch(ctx context.Context, g *broker.Grant) (broker.Secret, error) {
	what, err := g.Redeem()
	if err != nil {
		return broker.Secret{}, err
	}
	e := what.Entry
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return broker.Secret{}, fmt.Errorf("vault: wait for a slot: %w", ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	secret, err := s.fetch(ctx, e)
	if isForbidden(err) {
		// The token may have expired or been revoked, which looks like a denial: one fresh login tells.
		s.mu.Lock()
		failed := s.token
		s.mu.Unlock()
		if _, lerr := s.login(ctx, failed); lerr != nil {
			return broker.Secret{}, errors.Join(err, lerr)
		}
		secret, err = s.fetch(ctx, e)
	}
	return secret, err
}

func (s *Source) fetch(ctx context.Context, e broker.CatalogEntry) (broker.Secret, error) {
	kv := s.client.KVv2(s.cfg.Mount)
	for range 3 {
		got, err := kv.Get(ctx, e.Key)
		switch {
		case err == nil && got.Data != nil:
			return field(got, e)
		case err != nil && !errors.Is(err, api.ErrSecretNotFound):
			return broker.Secret{}, fmt.Errorf("vault: read %s/%s: %w", s.cfg.Mount, e.Key, err)
		}
		// Not there. A deleted version is not "not there": making a new key over
		// a deleted disk key would lose the disk.
		if err == nil {
			return broker.Secret{}, fmt.Errorf("vault: %s/%s: the current version is deleted: %w", s.cfg.Mount, e.Key, broker.ErrNoSecret)
		}
		if e.CreateBytes == 0 {
			return broker.Secret{}, fmt.Errorf("vault: %s/%s: %w", s.cfg.Mount, e.Key, broker.ErrNoSecret)
		}
		value := make([]byte, e.CreateBytes)
		if _, err := rand.Read(value); err != nil {
			return broker.Secret{}, fmt.Errorf("read random: %w", err)
		}
		name := e.Field
		if name == "" {
			name = defaultField
		}
		// Check-and-set 0: of two machines at their first boot one writes, and both get what it wrote.
		put, err := kv.Put(ctx, e.Key, map[string]any{name: encodingPrefix + base64.StdEncoding.EncodeToString(value)}, api.WithCheckAndSet(0))
		if err == nil {
			return broker.Secret{Value: value, Version: strconv.Itoa(put.VersionMetadata.Version)}, nil
		}
		clear(value)
		if !isConflict(err) {
			return broker.Secret{}, fmt.Errorf("vault: create %s/%s: %w", s.cfg.Mount, e.Key, err)
		}
	}
	return broker.Secret{}, fmt.Errorf("vault: %s/%s: others keep changing it", s.cfg.Mount, e.Key)
}

// encodingPrefix marks values that this package made: Vault's JSON holds no
// raw bytes. Other values are taken as they stand, as text.
const encodingPrefix = "base64:"

func field(got *api.KVSecret, e broker.CatalogEntry) (broker.Secret, error) {
	name := e.Field
	if name == "" {
		name = defaultField
	}
	text, ok := got.Data[name].(string)
	if !ok {
		return broker.Secret{}, fmt.Errorf("vault: %s has no text field %q: %w", e.Key, name, broker.ErrNoSecret)
	}
	s := broker.Secret{Value: []byte(text), Version: strconv.Itoa(got.VersionMetadata.Version)}
	if b64, ok := strings.CutPrefix(text, encodingPrefix); ok {
		value, err := base64.StdEncoding.DecodeString(b64)
		if err != nil {
			return broker.Secret{}, fmt.Errorf("vault: %s: field %q: not base64 after %q", e.Key, name, encodingPrefix)
		}
		s.Value = value
	}
	return s, nil
}

func isForbidden(err error) bool {
	r, ok := errors.AsType[*api.ResponseError](err)
	return ok && r.StatusCode == http.StatusForbidden
}

// isConflict recognises Vault's answer to a failed check-and-set: 400 with this text.
func isConflict(err error) bool {
	r, ok := errors.AsType[*api.ResponseError](err)
	return ok && r.StatusCode == http.StatusBadRequest && strings.Contains(strings.Join(r.Errors, " "), "check-and-set")
}
