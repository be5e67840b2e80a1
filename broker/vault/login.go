package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"

	"github.com/claviger/claviger/broker/reread"
)

const (
	// checkEvery limits how often refused requests make us look at our token.
	checkEvery = 2 * time.Second
	// loginEvery limits how often they make us log in although the token is
	// good: a fresh login has the role's new policies, but one path that stays
	// forbidden must not make tokens without end.
	loginEvery = 5 * time.Minute
	// maxRest is between looks at a token that cannot be renewed.
	maxRest = 15 * time.Second
)

// refusal is a login that did not work. The same credential is not tried again
// soon: Vault locks out a role, and with it whoever else uses it, after a few
// failures (five within 15 minutes, unless configured otherwise).
type refusal struct {
	with  reread.Digest // of the files that the credential is in
	err   error         // nil: none was refused since one worked
	times int
	until time.Time
}

const (
	firstRest = 30 * time.Second // after a credential that was refused
	longRest  = 20 * time.Minute // beyond the time in which Vault counts
	shortRest = 15 * time.Second // where Vault did not answer
)

// credential is the files that a login reads.
func (s *Source) credential() reread.Digest {
	switch c := s.cfg; {
	case c.TokenFile != "":
		return reread.DigestOf(c.TokenFile)
	case c.AppRole != nil:
		return reread.DigestOf(c.AppRole.SecretIDFile)
	case c.Kubernetes != nil:
		return reread.DigestOf(c.Kubernetes.File)
	case c.JWT != nil:
		return reread.DigestOf(c.JWT.File)
	default:
		return reread.DigestOf(c.Certificate.CertFile, c.Certificate.KeyFile)
	}
}

// refuse notes that a login failed, and says so.
func (r *refusal) refuse(with reread.Digest, err error) {
	if r.err == nil || r.with != with {
		r.times = 0
	}
	rest := min(time.Second<<min(r.times, 10), shortRest)
	if code := status(err); code >= 400 && code < 500 && code != http.StatusTooManyRequests {
		rest = firstRest
		if r.times > 0 {
			rest = longRest
		}
	}
	*r = refusal{with: with, err: err, times: r.times + 1, until: time.Now().Add(rest + mathrand.N(rest/4))}
}

// login replaces the token. The old one stays good for whoever still uses it. mu is held.
func (s *Source) login(ctx context.Context) error {
	with := s.credential()
	if r := s.refused; r.err != nil && r.with == with && time.Now().Before(r.until) {
		return r.err
	}
	err := s.loginNow(ctx)
	if err != nil {
		s.refused.refuse(with, err)
		return err
	}
	s.refused = refusal{}
	return nil
}

func (s *Source) loginNow(ctx context.Context) error {
	var secret *api.Secret
	var err error
	method := ""
	switch {
	case s.cfg.TokenFile != "":
		method = "token_file"
		secret, err = s.loginToken(ctx, s.cfg.TokenFile)
	case s.cfg.AppRole != nil:
		method = "approle"
		secret, err = s.loginAppRole(ctx, s.cfg.AppRole)
	case s.cfg.Kubernetes != nil:
		method = "kubernetes"
		secret, err = s.loginJWT(ctx, s.cfg.Kubernetes)
	case s.cfg.JWT != nil:
		method = "jwt"
		secret, err = s.loginJWT(ctx, s.cfg.JWT)
	case s.cfg.Certificate != nil:
		method = "certificate"
		s.idle() // the login counts the certificate of its connection: a new handshake reads the files again
		k := s.cfg.Certificate
		body := map[string]any{}
		if k.Role != "" {
			body["name"] = k.Role
		}
		secret, err = s.do(ctx, "", write("auth", k.Mount+"/login", body))
	}
	if err != nil {
		return fmt.Errorf("vault %s: %s login: %w", s.cfg.Name, method, err)
	}
	if secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "" {
		return fmt.Errorf("vault %s: %s login: the answer has no token", s.cfg.Name, method)
	}
	s.token.Store(&secret.Auth.ClientToken)
	return nil
}

func (s *Source) loginToken(ctx context.Context, file string) (*api.Secret, error) {
	token, err := readFile(file)
	if err != nil {
		return nil, err
	}
	if _, err := s.do(ctx, token, read("auth", "token/lookup-self")); err != nil {
		return nil, err
	}
	return &api.Secret{Auth: &api.SecretAuth{ClientToken: token}}, nil
}

// loginJWT is the login of both auth/kubernetes and auth/jwt: they take the same body.
func (s *Source) loginJWT(ctx context.Context, j *JWT) (*api.Secret, error) {
	jwt, err := readFile(j.File)
	if err != nil {
		return nil, err
	}
	return s.do(ctx, "", write("auth", j.Mount+"/login", map[string]any{"role": j.Role, "jwt": jwt}))
}

func (s *Source) loginAppRole(ctx context.Context, a *AppRole) (*api.Secret, error) {
	opts := []approle.LoginOption{approle.WithMountPath(a.Mount)}
	if a.Wrapped {
		opts = append(opts, approle.WithWrappingToken())
	}
	auth, err := approle.NewAppRoleAuth(a.RoleID, &approle.SecretID{FromFile: a.SecretIDFile}, opts...)
	if err != nil {
		return nil, err
	}
	secret, err := s.through(ctx, request{mount: "auth", path: a.Mount + "/login"}, func(ctx context.Context) (*api.Secret, error) {
		return auth.Login(ctx, s.client.WithRequestCallbacks()) // a copy: unwrapping sets its token
	})
	if status(err) == http.StatusBadRequest {
		if a.Wrapped {
			return nil, fmt.Errorf("the wrapped secret id in %s was used or has expired, or role_id is wrong; put a new one there: %w", a.SecretIDFile, err)
		}
		return nil, fmt.Errorf("the secret id in %s has expired, is used up or was revoked, or role_id is wrong; put a new one there: %w", a.SecretIDFile, err)
	}
	return secret, err
}

func readFile(name string) (string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("read token: %s is empty", name)
	}
	return token, nil
}

// loginAfter is called when Vault refused a request made with the token. It
// says whether there is another token now, worth a second try.
func (s *Source) loginAfter(ctx context.Context, refused string) (fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *s.token.Load() != refused {
		return true, nil
	}
	if time.Since(s.checked) < checkEvery {
		return false, s.verdict // of a moment ago: a token that Vault could not be asked about was not refused
	}
	s.checked = time.Now()
	defer func() { s.verdict = err }()
	// All requests wait for this login: it must not die with the one that came first.
	ctx = context.WithoutCancel(ctx)
	_, err = s.do(ctx, refused, read("auth", "token/lookup-self"))
	switch {
	case err == nil && time.Since(s.loggedIn) < loginEvery:
		return false, nil
	case err != nil && status(err) != http.StatusForbidden:
		return false, err
	}
	s.loggedIn = time.Now()
	if err := s.login(ctx); err != nil {
		return false, err
	}
	s.log.InfoContext(ctx, "vault refused a request, logged in again", "source", s.cfg.Name)
	return *s.token.Load() != refused, nil
}

// errExpiring: the token is good, but cannot be made to last.
var errExpiring = errors.New("token cannot be renewed for long")

// Run renews the token until ctx ends, and logs in again when it cannot be renewed any more.
// It ends what could not be ended when it should have been.
func (s *Source) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.clean(ctx) })
	told := ""
	tell := func(level slog.Level, what string, err error) {
		if text := what + err.Error(); text != told {
			told = text
			s.log.Log(ctx, level, what, "source", s.cfg.Name, "error", err)
		}
	}
	for failures := 0; ctx.Err() == nil; {
		token := *s.token.Load()
		err := s.renew(ctx, token)
		if err == nil || ctx.Err() != nil {
			failures, told = 0, ""
			continue
		}
		// A Vault that does not answer says nothing about the token, and a login may cost a secret id.
		code := status(err)
		if errors.Is(err, errExpiring) || code >= 400 && code < 500 {
			s.mu.Lock()
			if *s.token.Load() == token { // nobody else has
				if lerr := s.login(ctx); lerr != nil {
					tell(slog.LevelError, "cannot log in to vault; a credential that was refused is not tried again soon, one that is new at once", lerr)
				}
			}
			s.mu.Unlock()
		} else {
			tell(slog.LevelWarn, "vault token is not renewed", err)
		}
		s.rest(ctx, token, failures)
		failures++
	}
	return ctx.Err()
}

// rest waits before the token is looked at again: ever longer, but not beyond
// another token or a new credential.
func (s *Source) rest(ctx context.Context, token string, failures int) {
	end := time.Now().Add(min(time.Second<<min(failures, 10), maxRest))
	before := s.credential()
	for wait := time.Second; wait > 0 && *s.token.Load() == token && s.credential() == before; wait = min(time.Second, time.Until(end)) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// renew waits for half the token's life and renews it.
func (s *Source) renew(ctx context.Context, token string) error {
	self, err := s.do(ctx, token, read("auth", "token/lookup-self"))
	if err != nil {
		return fmt.Errorf("look up token: %w", err)
	}
	ttl, err := self.TokenTTL()
	if err != nil {
		return fmt.Errorf("read token's lifetime: %w", err)
	}
	renewable, err := self.TokenIsRenewable()
	if err != nil {
		return fmt.Errorf("read whether token is renewable: %w", err)
	}
	wait := ttl / 2
	// A root or other token without an end. (A lifetime of 0 says little: Vault counts in whole seconds.)
	if self.Data["expire_time"] == nil {
		wait = time.Hour
	}
	select {
	case <-time.After(max(wait, 200*time.Millisecond)):
	case <-ctx.Done():
		return ctx.Err()
	}
	switch {
	case self.Data["expire_time"] == nil:
		return nil
	case *s.token.Load() != token:
		return nil // it is somebody else's turn to be renewed
	case !renewable:
		return fmt.Errorf("%w: it is not renewable", errExpiring)
	}
	renewed, err := s.do(ctx, token, write("auth", "token/renew-self", nil)) // by the role's own period
	if err != nil {
		return fmt.Errorf("renew token: %w", err)
	}
	// At its maximum lifetime Vault "renews" for ever less: then it is time for a new one.
	if got := lifetime(renewed); got <= wait/2 {
		return fmt.Errorf("%w: its maximum lifetime is near, %s left", errExpiring, got)
	}
	return nil
}

func lifetime(s *api.Secret) time.Duration {
	switch {
	case s == nil:
		return 0
	case s.Auth != nil:
		return time.Duration(s.Auth.LeaseDuration) * time.Second
	}
	return time.Duration(s.LeaseDuration) * time.Second
}
