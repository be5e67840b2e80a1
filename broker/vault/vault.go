// Package vault gets secrets from HashiCorp Vault, or from OpenBao, which
// speaks the same API: KV v2, dynamic and static database passwords, PKI,
// Transit, response wrapping and tokens of its own. It is a broker.Source,
// LeasedSource, Versioner and Rotator, and the only importer of Vault's client.
//
// Leased secrets are made with a token of the session (the broker.Owner), so
// Vault itself ends them with it, even if every broker is gone by then.
//
// Vault's client hands out secrets as Go strings, which cannot be wiped; only
// what is copied out of them into Secret.Value can.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
)

// Config of a Source. Exactly one login is required.
type Config struct {
	Name      string // of this source in the configuration; it goes into Owner.Source
	Address   string
	CAFile    string // PEM roots; empty: the system's
	Namespace string // sent only if set
	Mount     string // of the KV v2 engine, for entries that name none; empty: "secret"

	AppRole     *AppRole
	TokenFile   string       // read again at every login, so that an agent may rotate it
	Kubernetes  *JWT         // mount "kubernetes", the pod's own token
	JWT         *JWT         // mount "jwt"
	Certificate *Certificate // TLS client certificate

	SessionRole string // token role that owners are made from; empty: "claviger-session"

	MaxConcurrency int           // requests to Vault at once; 0: 16
	MaxQueue       int           // requests that wait for their turn; 0: 1024
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

// JWT is a login by a token that somebody else signed.
type JWT struct {
	Mount string // empty: "kubernetes" or "jwt"
	Role  string
	File  string // read again at every login; empty, for Kubernetes: the pod's service account token
}

// Certificate is a login by TLS client certificate. The files are read again at every login.
type Certificate struct {
	Mount    string // empty: "cert"
	Role     string // empty: Vault tries them all
	CertFile string // PEM
	KeyFile  string // PEM
}

const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// check fills in defaults and names the field that is wrong.
func (c *Config) check() error {
	var logins []string
	for _, l := range []struct {
		name string
		set  bool
	}{
		{"approle", c.AppRole != nil}, {"token_file", c.TokenFile != ""}, {"kubernetes", c.Kubernetes != nil},
		{"jwt", c.JWT != nil}, {"certificate", c.Certificate != nil},
	} {
		if l.set {
			logins = append(logins, l.name)
		}
	}
	missing := func(field, value string) error {
		if value == "" {
			return fmt.Errorf("%s: missing", field)
		}
		return nil
	}
	var err error
	switch {
	case len(logins) == 0:
		return errors.New("want one login: approle, token_file, kubernetes, jwt or certificate")
	case len(logins) > 1:
		return fmt.Errorf("want one login, not %s", strings.Join(logins, " and "))
	case !strings.HasPrefix(c.Address, "https://") && !strings.HasPrefix(c.Address, "http://127.0.0.1:"):
		return fmt.Errorf("address: %q: TLS is required beyond loopback", c.Address)
	case c.MaxConcurrency < 0 || c.MaxQueue < 0 || c.Timeout < 0:
		return errors.New("max_concurrency, max_queue, timeout: negative")
	case c.AppRole != nil:
		a := *c.AppRole
		def(&a.Mount, "approle")
		c.AppRole = &a
		err = errors.Join(missing("approle.role_id", a.RoleID), missing("approle.secret_id_file", a.SecretIDFile))
	case c.Kubernetes != nil:
		k := *c.Kubernetes
		def(&k.Mount, "kubernetes")
		def(&k.File, serviceAccountToken)
		c.Kubernetes = &k
		err = missing("kubernetes.role", k.Role)
	case c.JWT != nil:
		j := *c.JWT
		def(&j.Mount, "jwt")
		c.JWT = &j
		err = errors.Join(missing("jwt.role", j.Role), missing("jwt.file", j.File))
	case c.Certificate != nil:
		k := *c.Certificate
		def(&k.Mount, "cert")
		c.Certificate = &k
		err = errors.Join(missing("certificate.cert", k.CertFile), missing("certificate.key", k.KeyFile))
		if !strings.HasPrefix(c.Address, "https://") {
			err = errors.Join(err, fmt.Errorf("address: %q: a certificate login needs https", c.Address))
		}
	}
	def(&c.Mount, "secret")
	def(&c.SessionRole, "claviger-session")
	def(&c.MaxConcurrency, 16)
	def(&c.MaxQueue, 1024)
	def(&c.Timeout, 5*time.Second)
	def(&c.Logger, slog.New(slog.DiscardHandler))
	return err
}

func def[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Source gets secrets from one Vault. Several may share an address.
type Source struct {
	cfg    Config
	client *api.Client // without a token: each request brings its own
	idle   func()      // drops idle connections
	gate   *gate
	log    *slog.Logger
	kv2    sync.Map // mounts known to be KV v2

	token atomic.Pointer[string] // of the last login

	leftMu sync.Mutex
	left   []leftover // guarded by leftMu; only Run takes from it

	mu       sync.Mutex // serialises logins
	refused  refusal    // the last login that was; guarded by mu
	loggedIn time.Time  // when a refused request last led to a login; guarded by mu
	checked  time.Time  // when a refused request last led to a look at the token; guarded by mu
	verdict  error      // what came of that; guarded by mu
}

var (
	_ broker.LeasedSource = (*Source)(nil)
	_ broker.Versioner    = (*Source)(nil)
	_ broker.Rotator      = (*Source)(nil)
)

// New logs in. Run keeps the login alive.
func New(ctx context.Context, cfg Config) (*Source, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("vault %s: %w", cfg.Name, err)
	}
	s := &Source{cfg: cfg, log: cfg.Logger}
	s.gate = newGate(cfg.MaxConcurrency, cfg.MaxQueue, cfg.Timeout, s.answers)
	var err error
	if s.client, s.idle, err = newClient(cfg); err != nil {
		return nil, fmt.Errorf("vault %s: %w", cfg.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.login(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Stats are for metrics.
type Stats struct {
	Open     bool // Vault, or something behind it, does not answer, and is not asked for a while
	Down     bool // it is Vault itself
	Waiting  int  // requests that wait for their turn
	Requests uint64
	Left     int // what this broker made in Vault and could not end yet; it tries again
}

// Stats says how the connection to Vault does.
func (s *Source) Stats() Stats {
	out := s.gate.stats()
	out.Left = s.leftovers()
	return out
}

// Fetch implements broker.Source.
func (s *Source) Fetch(ctx context.Context, g *broker.Grant) (broker.Secret, error) {
	what, err := g.Redeem()
	if err != nil {
		return broker.Secret{}, err
	}
	out, err := s.fetch(ctx, what)
	return out, classify(err)
}

func (s *Source) fetch(ctx context.Context, what broker.Granted) (broker.Secret, error) {
	e := what.Entry
	switch e.Kind {
	case "", broker.KindKV:
		return s.fetchKV(ctx, e, what)
	case broker.KindWrapped:
		return s.fetchWrapped(ctx, e, what.TTL, what.Cap)
	case broker.KindDatabase:
		return s.fetchDatabase(ctx, e, what.Owner, what.Cap)
	case broker.KindDatabaseStatic:
		return s.fetchStatic(ctx, e)
	case broker.KindLogin:
		return s.fetchLogin(ctx, e, what.Owner, what.Cap)
	case broker.KindPKI:
		return s.fetchPKI(ctx, e, what.Input, what.Cap)
	case broker.KindTransitDecrypt:
		return s.fetchDecrypt(ctx, e, what.Input)
	case broker.KindTransitDatakey:
		return s.fetchDatakey(ctx, e)
	case broker.KindTransitExport:
		return s.fetchExport(ctx, e, what.PublicKey)
	}
	return broker.Secret{}, fmt.Errorf("vault: kind %q is not one of Vault's", e.Kind)
}

// CurrentVersion implements broker.Versioner, for the kinds that are watched.
func (s *Source) CurrentVersion(ctx context.Context, e broker.CatalogEntry) (string, error) {
	version, _, err := s.CurrentEdition(ctx, e)
	return version, err
}

// CurrentEdition implements broker.Editioner: of KV, when the version was made.
func (s *Source) CurrentEdition(ctx context.Context, e broker.CatalogEntry) (version, edition string, err error) {
	switch e.Kind {
	case "", broker.KindKV:
		return s.kvVersion(ctx, e)
	case broker.KindDatabaseStatic:
		version, err = s.staticVersion(ctx, e)
		return version, "", err
	}
	return "", "", fmt.Errorf("vault: kind %q has no versions", e.Kind)
}

// Rotate implements broker.Rotator.
func (s *Source) Rotate(ctx context.Context, e broker.CatalogEntry) (string, error) {
	switch {
	case !e.Rotatable:
	case (e.Kind == "" || e.Kind == broker.KindKV) && e.CreateBytes > 0:
		return s.rotateKV(ctx, e)
	case e.Kind == broker.KindDatabaseStatic:
		return s.rotateStatic(ctx, e)
	}
	return "", fmt.Errorf("vault: %s: %w", e.Key, broker.ErrNotRotatable)
}
