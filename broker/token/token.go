// Package token is the broker's passport mode (RFC 9334 §5.1): what a guest
// gets is not a secret of somebody else's but a signed statement of its
// appraisal, an EAT attestation result (EAR), to show to relying parties that
// know nothing of attestation. It is a broker.Source for KindEAR and the
// OpenID Connect discovery that those parties read its keys from.
//
// It appraises nothing: it repeats what the verifier claimed and what policy
// allowed. docs/tokens.md says what such a token does not prove.
package token

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jws"

	"github.com/claviger/claviger/broker"
)

// ContentType is the media type of a token (RFC 9782).
const ContentType = "application/eat+jwt"

// Dialects of EAR, values of the catalog option "dialect". Empty means Draft03.
const (
	Draft03  = "draft-03" // draft-ietf-rats-ear-03
	Veraison = "veraison" // the claim names before it, as github.com/veraison/ear v1 reads them
)

// Signing algorithms (RFC 7518 §3.1).
const (
	ES256 = "ES256" // P-256
	RS256 = "RS256" // 3072 bits
)

// Config of a Source.
type Config struct {
	// Issuer is the URL that relying parties know the broker by: https, no
	// query, no fragment, no trailing slash. The discovery document must be
	// reachable below it.
	Issuer string
	// Key returns the sealed key of that name from the shared state: what is
	// there, else what generate made, written down once whoever races. An error
	// of generate is wrapped, and nothing is then written. What it returns is
	// wiped here after use. (*state.State).SealedKey is one. Required.
	Key func(ctx context.Context, name string, generate func() ([]byte, error)) ([]byte, error)
	// Algorithm of keys made from now on: ES256 (also if empty) or RS256. Keys
	// that exist keep theirs: change it, then Rotate.
	Algorithm string
	// MaxTTL bounds a token's lifetime; 0: 5 minutes.
	MaxTTL time.Duration
	// Lead is for how long a new key is published before anything is signed
	// with it, so that every replica and every relying party's cache has it; 0: 1 hour.
	Lead time.Duration
	// Developer and Build say who appraised (AR4SI §3.3); empty: "https://github.com/claviger/claviger" and "claviger".
	Developer, Build string
	Now              func() time.Time // nil: time.Now
	Logger           *slog.Logger
}

// Source mints tokens. It is safe for concurrent use.
type Source struct {
	cfg  Config
	path string // of Issuer
	log  *slog.Logger

	loading sync.Mutex // held while reading the shared state
	mu      sync.Mutex
	keys    []generation // oldest first, never empty; guarded by mu, and appended to only with loading
	loaded  time.Time    // when keys was last read; guarded by mu
}

// New loads the signing keys, and makes the first where there is none.
func New(ctx context.Context, cfg Config) (*Source, error) {
	u, err := url.Parse(cfg.Issuer)
	switch {
	case err != nil:
		return nil, fmt.Errorf("token: issuer: %w", err)
	case u.Scheme != "https" || u.Host == "" || u.User != nil:
		return nil, fmt.Errorf("token: issuer %q: want an https URL", cfg.Issuer)
	case strings.ContainsAny(cfg.Issuer, "?#") || strings.HasSuffix(cfg.Issuer, "/"):
		return nil, fmt.Errorf("token: issuer %q: no query, fragment or trailing slash", cfg.Issuer)
	case cfg.Key == nil:
		return nil, errors.New("token: no store of keys")
	case cfg.MaxTTL < 0 || cfg.Lead < 0:
		return nil, errors.New("token: negative lifetime")
	}
	cfg.Algorithm = cmp.Or(cfg.Algorithm, ES256)
	if cfg.Algorithm != ES256 && cfg.Algorithm != RS256 {
		return nil, fmt.Errorf("token: algorithm %q: want %s or %s", cfg.Algorithm, ES256, RS256)
	}
	cfg.MaxTTL = cmp.Or(cfg.MaxTTL, 5*time.Minute)
	cfg.Lead = cmp.Or(cfg.Lead, time.Hour)
	cfg.Developer = cmp.Or(cfg.Developer, "https://github.com/claviger/claviger")
	cfg.Build = cmp.Or(cfg.Build, "claviger")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Source{cfg: cfg, path: u.EscapedPath(), log: cfg.Logger}
	first, err := s.makeOrLoad(ctx, 1, false)
	if err != nil {
		return nil, err
	}
	if s.keys, err = s.load(ctx, []generation{first}); err != nil {
		return nil, err
	}
	s.loaded = cfg.Now()
	return s, nil
}

// Check says at start what Fetch would refuse about an entry. An option that a
// path variable fills in can only be checked later.
func Check(e broker.CatalogEntry) error {
	if e.Kind != broker.KindEAR {
		return fmt.Errorf("kind %q is not %s", e.Kind, broker.KindEAR)
	}
	switch d := e.Options["dialect"]; d {
	case "", Draft03, Veraison:
		return nil
	default:
		return fmt.Errorf("dialect %q: want %s or %s", d, Draft03, Veraison)
	}
}

// Fetch implements broker.Source: the secret is a compact JWS (RFC 7515) of
// media type ContentType.
func (s *Source) Fetch(ctx context.Context, g *broker.Grant) (broker.Secret, error) {
	what, err := g.Redeem()
	if err != nil {
		return broker.Secret{}, fmt.Errorf("token: %w", err)
	}
	if err := Check(what.Entry); err != nil {
		return broker.Secret{}, fmt.Errorf("token: %w", err)
	}
	ttl := min(what.TTL, s.cfg.MaxTTL)
	if what.Cap > 0 {
		ttl = min(ttl, what.Cap)
	}
	issued, expires := what.Now.Unix(), what.Now.Add(ttl).Unix()
	// A grant that was laid aside must not come back as a fresh token.
	if expires <= issued || expires <= s.cfg.Now().Unix() {
		return broker.Secret{}, fmt.Errorf("token: grant of %s for %s has expired", what.Now.UTC().Format(time.RFC3339), what.TTL)
	}
	payload, err := s.claims(what, issued, expires)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("token: %w", err)
	}
	key, _ := choose(s.generations(ctx), what.Now, s.cfg)
	jwt, err := key.sign(payload)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("token: %w", err)
	}
	return broker.Secret{Value: jwt, ContentType: ContentType, Expires: time.Unix(expires, 0)}, nil
}

// sign returns a compact JWS. Its typ is plain "JWT" because clouds' federation
// expects that; no other statement of the broker's is signed with these keys.
func (g generation) sign(payload []byte) ([]byte, error) {
	alg, ok := jwa.LookupSignatureAlgorithm(g.alg)
	if !ok {
		return nil, fmt.Errorf("algorithm %q is not known", g.alg)
	}
	h := jws.NewHeaders()
	if err := errors.Join(h.Set(jws.TypeKey, "JWT"), h.Set(jws.KeyIDKey, g.kid)); err != nil {
		return nil, fmt.Errorf("set headers: %w", err)
	}
	jwt, err := jws.Sign(payload, jws.WithKey(alg, g.private, jws.WithProtectedHeaders(h)))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return jwt, nil
}
