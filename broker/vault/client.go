package vault

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/reread"
)

const maxResponse = 4 << 20 // of Vault's answers; KV v2 allows 1 MiB a secret

// newClient also returns a function that drops idle connections. Only the
// configuration counts, nothing of the environment: the client's own defaults
// would take VAULT_SKIP_VERIFY and VAULT_TOKEN from whoever starts the broker.
func newClient(cfg Config) (*api.Client, func(), error) {
	t := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		Proxy:           http.ProxyFromEnvironment,
		// A certificate login goes by the certificate of its connection. With HTTP/1.1 a new login gets a new one.
		ForceAttemptHTTP2:   cfg.Certificate == nil,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: cfg.Timeout}, // a dead peer is noticed
		TLSHandshakeTimeout: cfg.Timeout,
		MaxIdleConnsPerHost: cfg.MaxConcurrency,
		IdleConnTimeout:     time.Minute,
	}
	roots := func() *x509.CertPool { return nil }
	if cfg.CAFile != "" {
		told := func(err error) {
			if err != nil {
				cfg.Logger.Error("vault's CA file is not in force, the one before stays", "source", cfg.Name, "error", err)
			}
		}
		ca, err := reread.Open(told, func(b [][]byte) (*x509.CertPool, error) { return pemfile.Pool(b[0]) }, cfg.CAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("ca: %s: %w", cfg.CAFile, err)
		}
		roots = ca.Get
	}
	if k := cfg.Certificate; k != nil {
		t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(k.CertFile, k.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("certificate: %w", err)
			}
			return &pair, nil
		}
	}
	rt := &rooted{roots: roots, t: t, from: t.TLSClientConfig}
	c, err := api.NewClient(&api.Config{
		Address: cfg.Address,
		HttpClient: &http.Client{
			Transport:     bounded{rt},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxRetries: 0, // the guest retries; we do not multiply load
	})
	if err != nil {
		return nil, nil, err
	}
	c.ClearToken()
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if cfg.Namespace != "" {
		c.SetNamespace(cfg.Namespace)
	}
	return c, rt.CloseIdleConnections, nil
}

// rooted is a transport that believes the roots of today: those of an
// http.Transport stay as they were at its first request.
type rooted struct {
	roots func() *x509.CertPool

	mu   sync.Mutex
	t    *http.Transport // guarded by mu
	from *tls.Config     // guarded by mu; of t, before it
}

func (r *rooted) transport() *http.Transport {
	r.mu.Lock()
	defer r.mu.Unlock()
	if roots := r.roots(); roots != r.from.RootCAs {
		r.t.CloseIdleConnections()
		r.t, r.from = r.t.Clone(), r.from.Clone()
		r.from.RootCAs = roots
		r.t.TLSClientConfig = r.from.Clone()
	}
	return r.t
}

// RoundTrip implements http.RoundTripper.
func (r *rooted) RoundTrip(q *http.Request) (*http.Response, error) {
	return r.transport().RoundTrip(q)
}

// CloseIdleConnections drops idle connections.
func (r *rooted) CloseIdleConnections() { r.transport().CloseIdleConnections() }

// bounded limits what is read of an answer.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxResponse), resp.Body}
	}
	return resp, err
}

// request is one call of Vault's API. An empty method reads.
type request struct {
	method  string
	mount   string // the engine
	path    string // below the mount
	query   url.Values
	body    map[string]any
	wrapTTL string

	// what can fail by itself, if it is not mount and path; see scope.
	what string
	// alone says that something other than Vault stands behind the path, which fails by itself.
	alone bool
	// guest says that a guest's input goes with the request: that Vault fails over it says nothing about others'.
	guest bool
	// cleanup ends what was made: no trouble stops it.
	cleanup bool
}

// scope is what the request can fail of. What is broken in one does not stop the others.
func (r request) scope() scope {
	s := scope{what: cmp.Or(r.what, r.mount+"/"+r.path)}
	if !r.alone && r.mount != "auth" && r.mount != "sys" {
		s.mount = r.mount
	}
	return s
}

func read(mount, path string) request { return request{mount: mount, path: path} }
func write(mount, path string, body map[string]any) request {
	return request{method: http.MethodPut, mount: mount, path: path, body: body}
}

// call makes a request with the broker's own token. A token that is not good
// any more looks like a denial; then there is a fresh login and a second try.
func (s *Source) call(ctx context.Context, r request) (*api.Secret, error) {
	token := *s.token.Load()
	got, err := s.do(ctx, token, r)
	if status(err) != http.StatusForbidden {
		return got, err
	}
	if fresh, lerr := s.loginAfter(ctx, token); lerr != nil {
		return nil, errors.Join(err, lerr)
	} else if !fresh {
		return nil, err
	}
	return s.do(ctx, *s.token.Load(), r)
}

// do makes a request as token. The answer is nil where Vault says 404 and nothing more.
func (s *Source) do(ctx context.Context, token string, r request) (*api.Secret, error) {
	c := s.client.WithRequestCallbacks(func(q *api.Request) { q.ClientToken, q.WrapTTL = token, r.wrapTTL })
	path := r.mount + "/" + r.path
	got, err := s.through(ctx, r, func(ctx context.Context) (*api.Secret, error) {
		switch r.method {
		case http.MethodPut:
			return c.Logical().WriteWithContext(ctx, path, r.body)
		case http.MethodDelete:
			return c.Logical().DeleteWithContext(ctx, path)
		}
		return c.Logical().ReadWithDataWithContext(ctx, path, r.query)
	})
	if err != nil {
		return nil, fmt.Errorf("vault: %s: %w", path, err)
	}
	return got, nil
}

// through makes a request when it is its turn, and tells the gate how it went.
// An error that is not an answer wraps errNoAnswer.
func (s *Source) through(ctx context.Context, r request, call func(context.Context) (*api.Secret, error)) (got *api.Secret, err error) {
	leave := func(outcome, error) {}
	if r.cleanup {
		done, err := s.gate.enterCleanup(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
	} else if leave, err = s.gate.enter(ctx, r.scope()); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAsked, err)
	}
	timed, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	defer func() {
		switch code := status(err); {
		case err == nil || code != 0 && code < 500:
			leave(answered, nil)
			return
		case ctx.Err() != nil: // a guest that hangs up says nothing about Vault
			leave(unknown, nil)
		case r.guest && code != 0 && code != http.StatusBadGateway && code != http.StatusServiceUnavailable && code != http.StatusGatewayTimeout:
			leave(unknown, nil)
		default:
			leave(failed, err)
		}
		err = fmt.Errorf("%w: %w", errNoAnswer, err)
	}()
	return call(timed)
}

// errNoAnswer: Vault did not answer, or says that it or what is behind it cannot for now.
var errNoAnswer = errors.New("no answer")

// errNotAsked: nor was it asked.
var errNotAsked = fmt.Errorf("%w", errNoAnswer)

// classify says what an error of Fetch means for copies. Whatever is not known to be no answer is one.
func classify(err error) error {
	switch code := status(err); {
	case err == nil, errors.Is(err, errNoAnswer), errors.Is(err, broker.ErrNoSecret), errors.Is(err, broker.ErrInput), errors.Is(err, broker.ErrUnavailable):
		return err
	case code == http.StatusTooManyRequests, code == http.StatusPreconditionFailed, errors.Is(err, errBusy),
		says(err, "Upgrading from non-versioned"), says(err, "Waiting for the primary to upgrade"): // 400, of a KV v2 engine that starts
		return fmt.Errorf("%w: %w", broker.ErrBusy, err)
	}
	return fmt.Errorf("%w: %w", broker.ErrWithheld, err)
}

// errBusy: another writer was quicker, again and again.
var errBusy = errors.New("others keep changing it")

// status is Vault's HTTP status, or 0 where it did not answer.
func status(err error) int {
	if r, ok := errors.AsType[*api.ResponseError](err); ok {
		return r.StatusCode
	}
	return 0
}

// says looks for a text in Vault's own words.
func says(err error, text string) bool {
	r, ok := errors.AsType[*api.ResponseError](err)
	return ok && strings.Contains(strings.Join(r.Errors, " "), text)
}
