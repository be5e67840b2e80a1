package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/claviger/claviger/broker/reread"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// brokers are those of one cluster, with one identity. A client stays with one
// until that fails, and then goes on to the next that may be asked.
type brokers struct {
	list     []*endpoint
	patience time.Duration // for one answer, before another broker is worth a try

	mu  sync.Mutex
	cur int // guarded by mu
}

type endpoint struct {
	address  string
	conn     *grpc.ClientConn
	rpc      pb.KeyBrokerClient
	last     *lastError
	failures int       // guarded by brokers.mu, as is the next
	resting  time.Time // not to be asked before
}

const (
	connectTimeout = 5 * time.Second
	onePatience    = 30 * time.Second // where there is no other broker
	manyPatience   = 15 * time.Second
	pingAfter      = 15 * time.Second // the broker allows one every 10 s
	pingTimeout    = 8 * time.Second
)

// connect makes clients for addresses, separated by commas. A fleet starts at
// different ones, so that they share the load.
func connect(addresses string, cfg *tls.Config, roots func() *x509.CertPool, r *net.Resolver) (*brokers, error) {
	b := &brokers{patience: onePatience}
	for a := range strings.SplitSeq(addresses, ",") {
		a = strings.TrimSpace(a)
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			_ = b.close()
			return nil, fmt.Errorf("agent: broker %q is not host:port (an IPv6 address stands in brackets: [::1]:7443)", a)
		}
		cfg := cfg.Clone()
		if ip, _, ok := strings.Cut(host, "%"); ok && cfg.ServerName == "" {
			cfg.ServerName = ip // a zone is this machine's, and in nobody's certificate
		}
		creds := credentials.NewTLS(cfg)
		if roots != nil {
			creds = reread.Credentials(cfg, roots)
		}
		e := &endpoint{address: a, last: &lastError{}}
		dialer := net.Dialer{Resolver: r, Timeout: connectTimeout}
		// The name is looked up at each connection: at boot the first answer may be that there is no network yet.
		// The target is a URL, in which the % before the zone of an IPv6 address has a meaning.
		conn, err := grpc.NewClient("passthrough:///"+strings.ReplaceAll(a, "%", "%25"), grpc.WithTransportCredentials(&handshakes{creds, e.last}),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				c, err := dialer.DialContext(ctx, "tcp", addr)
				if err != nil {
					e.last.set(err)
				}
				return c, err
			}),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           grpcbackoff.Config{BaseDelay: firstWait, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 3 * time.Second},
				MinConnectTimeout: connectTimeout,
			}),
			// A peer that froze keeps its TCP connection: it is noticed by its silence.
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16*seal.MaxJWE+1<<20)))
		if err != nil {
			_ = b.close()
			return nil, fmt.Errorf("agent: %s: %w", a, err)
		}
		e.conn, e.rpc = conn, pb.NewKeyBrokerClient(conn)
		b.list = append(b.list, e)
	}
	if len(b.list) > 1 {
		b.patience = manyPatience
	}
	b.cur = rand.IntN(len(b.list))
	return b, nil
}

func (b *brokers) close() error {
	var errs []error
	for _, e := range b.list {
		errs = append(errs, e.conn.Close())
	}
	return errors.Join(errs...)
}

// current is the broker that was asked last.
func (b *brokers) current() *endpoint {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list[b.cur]
}

// pick is the broker to ask next, and how long to wait before: the one in use,
// or while it rests the one that may be asked first.
func (b *brokers) pick(now time.Time) (*endpoint, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	best := b.cur
	if b.list[best].resting.After(now) {
		for i := range b.list {
			if n := (b.cur + i) % len(b.list); b.list[n].resting.Before(b.list[best].resting) {
				best = n
			}
		}
	}
	b.cur = best
	return b.list[best], max(0, b.list[best].resting.Sub(now))
}

// failed lets a broker rest, as it asked or for longer after each failure. It
// says whether another attempt may help.
func (b *brokers) failed(e *endpoint, err error, now time.Time) (again bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wait, again := backoff(err, e.failures)
	e.failures++
	e.resting = now.Add(wait)
	return again
}

func (b *brokers) worked(e *endpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.failures, e.resting = 0, time.Time{}
}

// rest waits before a broker is asked, but no longer than its connection, which
// had failed, is broken: gRPC connects anew meanwhile. tick is called now and then.
func (e *endpoint) rest(ctx context.Context, wait time.Duration, tick func()) error {
	broken := e.conn.GetState() == connectivity.TransientFailure
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		if left <= 0 {
			return ctx.Err()
		}
		if broken && e.conn.GetState() == connectivity.Ready {
			return sleep(ctx, min(left, rand.N(firstWait))) // the fleet has just seen the same
		}
		if err := sleep(ctx, min(left, firstWait)); err != nil {
			return err
		}
		tick()
	}
}

// handshakes remembers why the last TLS handshake failed: gRPC passes on its text only.
type handshakes struct {
	credentials.TransportCredentials
	last *lastError
}

// lastError is why the last connection failed, or nil if it did not.
type lastError struct {
	mu  sync.Mutex
	err error // guarded by mu
}

func (l *lastError) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *lastError) get() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// ClientHandshake implements credentials.TransportCredentials.
func (h *handshakes) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, c)
	h.last.set(err)
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{h.TransportCredentials.Clone(), h.last}
}

// clockError tells a wrong clock from a wrong certificate, for a person at a
// console; nil if time has nothing to do with err. built is when this program
// was built: a clock before that is wrong. The error wraps ErrExpired if the
// clock looks right. A certificate that is not valid yet is more likely a clock
// that is slow, which may be set meanwhile.
func clockError(err error, now, built time.Time) error {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || invalid.Reason != x509.Expired || invalid.Cert == nil {
		return nil
	}
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch cert := invalid.Cert; {
	case now.Before(built):
		return fmt.Errorf("this machine's clock says %s, which is before claviger-agent was built (%s): set the clock, or see to its battery", at(now), at(built))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate of %q is not valid before %s, and this machine's clock says %s: is the clock slow?", cert.Subject.CommonName, at(cert.NotBefore), at(now))
	case now.After(cert.NotAfter):
		return fmt.Errorf("%w: that of %q on %s; this machine's clock says %s, which looks right", ErrExpired, cert.Subject.CommonName, at(cert.NotAfter), at(now))
	}
	return nil // the clock was set meanwhile
}

// expired says that no broker has a certificate that is still valid.
func (b *brokers) expired(now, built time.Time) bool {
	for _, e := range b.list {
		if !errors.Is(clockError(e.last.get(), now, built), ErrExpired) {
			return false
		}
	}
	return true
}
