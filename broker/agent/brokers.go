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
	"google.golang.org/grpc/credentials"

	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// brokers are those of one cluster, with one identity. A client stays with one
// until that fails, and then goes on to the next that may be asked.
type brokers struct {
	mu   sync.Mutex
	list []*endpoint
	cur  int // guarded by mu
}

type endpoint struct {
	address  string
	conn     *grpc.ClientConn
	rpc      pb.KeyBrokerClient
	creds    *handshakes
	failures int       // guarded by brokers.mu, as is the next
	resting  time.Time // not to be asked before
}

// connect makes clients for addresses, separated by commas. A fleet starts at
// different ones, so that they share the load.
func connect(addresses string, cfg *tls.Config, r *net.Resolver) (*brokers, error) {
	b := &brokers{}
	for a := range strings.SplitSeq(addresses, ",") {
		a = strings.TrimSpace(a)
		if _, _, err := net.SplitHostPort(a); err != nil {
			b.close()
			return nil, fmt.Errorf("agent: broker %q is not host:port", a)
		}
		e := &endpoint{address: a, creds: &handshakes{TransportCredentials: credentials.NewTLS(cfg), last: &lastError{}}}
		dialer := net.Dialer{Resolver: r, Timeout: 5 * time.Second}
		// The name is looked up at each connection: at boot the first answer may be that there is no network yet.
		conn, err := grpc.NewClient("passthrough:///"+a, grpc.WithTransportCredentials(e.creds),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: grpcbackoff.Config{BaseDelay: firstWait, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 3 * time.Second}, MinConnectTimeout: 5 * time.Second,
			}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16*seal.MaxJWE+1<<20)))
		if err != nil {
			b.close()
			return nil, fmt.Errorf("agent: %s: %w", a, err)
		}
		e.conn, e.rpc = conn, pb.NewKeyBrokerClient(conn)
		b.list = append(b.list, e)
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

// now is the broker in use.
func (b *brokers) now() *endpoint {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list[b.cur]
}

// next goes on to the broker that may be asked first, and says how long until then.
func (b *brokers) next(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.list {
		if n := (b.cur + i) % len(b.list); b.list[n].resting.Before(b.list[b.cur].resting) {
			b.cur = n
		}
	}
	return b.list[b.cur].resting.Sub(now)
}

// failed lets the broker in use rest, as it asked or for longer after each
// failure. It says for how long, or that another attempt would only repeat the error.
func (b *brokers) failed(err error, now time.Time) (wait time.Duration, again bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.list[b.cur]
	wait, again = backoff(err, e.failures)
	e.failures++
	e.resting = now.Add(wait)
	return wait, again
}

func (b *brokers) worked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list[b.cur].failures, b.list[b.cur].resting = 0, time.Time{}
}

// handshakes remembers why the last TLS handshake failed: gRPC passes on its text only.
type handshakes struct {
	credentials.TransportCredentials
	last *lastError
}

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
// console. built is when this program was built: a clock before that is wrong.
func clockError(err error, now, built time.Time) error {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || invalid.Reason != x509.Expired || invalid.Cert == nil {
		return nil
	}
	day := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch cert := invalid.Cert; {
	case now.Before(built):
		return fmt.Errorf("this machine's clock says %s, which is before claviger-agent was built (%s): the clock is wrong", day(now), day(built))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("this machine's clock says %s, before the certificate of %q begins (%s): the clock is wrong, or the certificate is not in force yet", day(now), cert.Subject.CommonName, day(cert.NotBefore))
	default:
		return fmt.Errorf("the certificate of %q expired on %s (this machine's clock says %s): the broker's operator has to renew it, unless the clock is wrong", cert.Subject.CommonName, day(cert.NotAfter), day(now))
	}
}
