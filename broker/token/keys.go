package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/claviger/claviger/broker/strictjson"
)

// A generation is one signing key. Generations are numbered from 1, and kept
// in the shared state under "token/<number>": so a replica finds what another
// one made by asking for the next number, and two that rotate at once make one key.
type generation struct {
	number   int
	alg      string
	kid      string // RFC 7638 thumbprint, SHA-256, base64url
	private  crypto.Signer
	public   jwk.Key // with kid, alg and use
	created  time.Time
	replaces bool // earlier generations are not trusted any more
}

// stored is a generation at rest, as JSON (before it is sealed).
type stored struct {
	V        int    `json:"v"`       // 1
	Alg      string `json:"alg"`     // ES256 | RS256
	Created  int64  `json:"created"` // seconds since 1970, by the clock of the replica that made it
	Replaces bool   `json:"replaces,omitempty"`
	PKCS8    []byte `json:"pkcs8"` // DER, base64
}

const (
	// refreshEvery bounds how long a replica does not know of another's rotation.
	refreshEvery = 15 * time.Second
	// keepFor is for how long a key stays published after the last token signed
	// with it has expired: clocks differ, and a replica learns of a rotation late.
	keepFor = 5 * time.Minute
)

// errNext aborts the making of a key: it was only asked whether there is one.
var errNext = errors.New("no such generation")

// Rotate publishes a new signing key. It signs once it has been published for
// Config.Lead; the key before it stays published until its last token has
// expired. While a new key waits, Rotate returns that one: replicas may rotate
// by the same timetable. The result is the new key's id.
func (s *Source) Rotate(ctx context.Context) (kid string, err error) {
	return s.rotate(ctx, false)
}

// Replace is for a key that leaked: the new one signs at once, and all earlier
// ones are withdrawn, on every replica within seconds. Tokens signed with them
// are refused by relying parties as soon as those read the key set again
// (Cache-Control allows 5 minutes).
func (s *Source) Replace(ctx context.Context) (kid string, err error) {
	return s.rotate(ctx, true)
}

func (s *Source) rotate(ctx context.Context, replace bool) (string, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	s.mu.Lock()
	keys := s.keys
	s.mu.Unlock()
	for range 8 {
		var err error
		if keys, err = s.load(ctx, keys); err != nil {
			return "", err
		}
		newest := keys[len(keys)-1]
		if !replace && newest.starts(s.cfg.Lead).After(s.cfg.Now()) {
			s.publish(keys)
			return newest.kid, nil
		}
		next, err := s.makeOrLoad(ctx, newest.number+1, replace)
		if err != nil {
			return "", err
		}
		keys = append(keys, next)
		if !replace || next.replaces {
			s.publish(keys)
			return next.kid, nil
		}
		// Another replica rotated in between, and not for our reason: once more.
	}
	return "", errors.New("token: others keep rotating")
}

// generations returns the keys, read again if that was long ago. When the
// shared state does not answer the known ones go on: nothing can be released
// in that state anyway, but outstanding tokens must still verify.
func (s *Source) generations(ctx context.Context) []generation {
	s.mu.Lock()
	keys, fresh := s.keys, s.cfg.Now().Sub(s.loaded) < refreshEvery
	s.mu.Unlock()
	if fresh || !s.loading.TryLock() {
		return keys
	}
	defer s.loading.Unlock()
	// One who hangs up must not keep the others from news.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	newer, err := s.load(ctx, keys)
	if err != nil {
		s.log.WarnContext(ctx, "cannot look for newer token signing keys", "error", err)
	}
	s.publish(newer)
	return newer
}

func (s *Source) publish(keys []generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.loaded = keys, s.cfg.Now()
}

// load appends the generations that were made since. It returns those it could
// read even with an error.
func (s *Source) load(ctx context.Context, keys []generation) ([]generation, error) {
	for {
		n := keys[len(keys)-1].number + 1
		b, err := s.cfg.Key(ctx, keyName(n), func() ([]byte, error) { return nil, errNext })
		if errors.Is(err, errNext) {
			return keys, nil
		}
		if err != nil {
			return keys, fmt.Errorf("token: look for key %d: %w", n, err)
		}
		g, err := parseKey(n, b)
		clear(b)
		if err != nil {
			return keys, err
		}
		keys = append(keys, g)
	}
}

func (s *Source) makeOrLoad(ctx context.Context, n int, replaces bool) (generation, error) {
	b, err := s.cfg.Key(ctx, keyName(n), func() ([]byte, error) {
		return newKey(s.cfg.Algorithm, s.cfg.Now(), replaces)
	})
	if err != nil {
		return generation{}, fmt.Errorf("token: key %d: %w", n, err)
	}
	defer clear(b)
	return parseKey(n, b)
}

func keyName(n int) string { return fmt.Sprintf("token/%d", n) }

func newKey(alg string, now time.Time, replaces bool) ([]byte, error) {
	var private crypto.Signer
	var err error
	if alg == RS256 {
		private, err = rsa.GenerateKey(rand.Reader, 3072)
	} else {
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("generate %s key: %w", alg, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("encode %s key: %w", alg, err)
	}
	defer clear(der)
	return json.Marshal(stored{V: 1, Alg: alg, Created: now.Unix(), Replaces: replaces, PKCS8: der})
}

func parseKey(n int, b []byte) (generation, error) {
	var st stored
	if err := strictjson.UnmarshalKnown(b, &st); err != nil {
		return generation{}, fmt.Errorf("token: decode key %d: %w", n, err)
	}
	defer clear(st.PKCS8)
	if st.V != 1 {
		return generation{}, fmt.Errorf("token: key %d: version %d of the encoding, want 1", n, st.V)
	}
	key, err := x509.ParsePKCS8PrivateKey(st.PKCS8)
	if err != nil {
		return generation{}, fmt.Errorf("token: parse key %d: %w", n, err)
	}
	g := generation{number: n, alg: st.Alg, created: time.Unix(st.Created, 0), replaces: st.Replaces}
	// The algorithm is the key's own: nothing else may choose how a key is used.
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if st.Alg != ES256 || k.Curve != elliptic.P256() {
			return generation{}, fmt.Errorf("token: key %d: %s on %s", n, st.Alg, k.Curve.Params().Name)
		}
		g.private = k
	case *rsa.PrivateKey:
		if st.Alg != RS256 || k.N.BitLen() < 2048 {
			return generation{}, fmt.Errorf("token: key %d: %s with %d bits", n, st.Alg, k.N.BitLen())
		}
		g.private = k
	default:
		return generation{}, fmt.Errorf("token: key %d: %T", n, key)
	}
	if g.public, err = jwk.Import(g.private.Public()); err != nil {
		return generation{}, fmt.Errorf("token: key %d: %w", n, err)
	}
	thumb, err := g.public.Thumbprint(crypto.SHA256)
	if err != nil {
		return generation{}, fmt.Errorf("token: key %d: thumbprint: %w", n, err)
	}
	g.kid = base64.RawURLEncoding.EncodeToString(thumb)
	alg, _ := jwa.LookupSignatureAlgorithm(g.alg)
	if err := errors.Join(g.public.Set(jwk.KeyIDKey, g.kid), g.public.Set(jwk.AlgorithmKey, alg), g.public.Set(jwk.KeyUsageKey, "sig")); err != nil {
		return generation{}, fmt.Errorf("token: key %d: %w", n, err)
	}
	return g, nil
}

// starts is when a generation begins to sign.
func (g generation) starts(lead time.Duration) time.Time {
	if g.number == 1 || g.replaces {
		return g.created
	}
	return g.created.Add(lead)
}

// choose says which key signs at a time, and which are published then.
func choose(keys []generation, now time.Time, cfg Config) (signing generation, published []generation) {
	base := 0
	for i, g := range keys {
		if g.replaces {
			base = i
		}
	}
	keys = keys[base:] // whatever the clock says: a withdrawn key never comes back
	current := 0
	for i, g := range keys {
		if i > 0 && !g.starts(cfg.Lead).After(now) {
			current = i
		}
	}
	for i, g := range keys {
		if i < current && !now.Before(keys[i+1].starts(cfg.Lead).Add(cfg.MaxTTL+keepFor)) {
			continue
		}
		published = append(published, g)
	}
	return keys[current], published
}
