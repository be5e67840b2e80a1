package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// failing answers challenges, and releases with an error or, if it has none, not at all.
type failing struct {
	pb.UnimplementedKeyBrokerServer
	err     error
	address string

	mu    sync.Mutex
	asked []time.Time // guarded by mu
}

func (f *failing) Challenge(context.Context, *pb.ChallengeRequest) (*pb.ChallengeResponse, error) {
	return &pb.ChallengeResponse{Nonce: []byte("nonce")}, nil
}

func (f *failing) Release(ctx context.Context, _ *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	f.mu.Lock()
	f.asked = append(f.asked, time.Now())
	f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (f *failing) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// cluster serves all at addresses of their own, and returns a client of them that starts with the first.
func cluster(t *testing.T, servers ...*failing) *Client {
	t.Helper()
	var all []pb.KeyBrokerServer
	for _, f := range servers {
		all = append(all, f)
	}
	c := clusterOf(t, all...)
	for i, e := range c.brokers.list {
		servers[i].address = e.address
	}
	return c
}

func clusterOf(t *testing.T, servers ...pb.KeyBrokerServer) *Client {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	var list string
	for i, f := range servers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})))
		pb.RegisterKeyBrokerServer(s, f)
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		if i > 0 {
			list += ","
		}
		list += l.Addr().String()
	}
	c, err := New(Config{Address: list, TLS: &tls.Config{RootCAs: roots}, Identity: []byte{1}, Device: noDevice{}, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.brokers.cur = 0
	return c
}

// TestRetryInfoOfOneBroker is kept to for that broker, while the others are asked.
func TestRetryInfoOfOneBroker(t *testing.T) {
	const rest = 800 * time.Millisecond
	s, err := status.New(codes.ResourceExhausted, "queue is full").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(rest)})
	if err != nil {
		t.Fatal(err)
	}
	busy, down := &failing{err: s.Err()}, &failing{err: status.Error(codes.Unavailable, "no etcd")}
	c := cluster(t, busy, down)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, _, err := c.Get(ctx, "a"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	asked, others := busy.times(), down.times()
	if len(asked) < 2 || len(others) < 2 {
		t.Fatalf("asked %d and %d times", len(asked), len(others))
	}
	for i := range asked[1:] {
		if d := asked[i+1].Sub(asked[i]); d < rest {
			t.Errorf("asked again after %s, wanted %s", d, rest)
		}
	}
	if d := others[0].Sub(asked[0]); d > rest/2 {
		t.Errorf("the other broker was asked only after %s", d)
	}
}

// TestDenialIsFinal whichever broker says it, and no other one is asked for a second opinion.
func TestDenialIsFinal(t *testing.T) {
	down, says, third := &failing{err: status.Error(codes.Unavailable, "x")}, &failing{err: status.Error(codes.PermissionDenied, "denied")}, &failing{err: status.Error(codes.Unavailable, "x")}
	c := cluster(t, down, says, third)
	if _, _, err := c.Get(t.Context(), "a"); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v", err)
	}
	if len(down.times()) != 1 || len(says.times()) != 1 || len(third.times()) != 0 {
		t.Errorf("asked %d, %d and %d times", len(down.times()), len(says.times()), len(third.times()))
	}
}

// TestHangsAtRelease: a broker that answers challenges and no more costs its patience, not the deadline.
func TestHangsAtRelease(t *testing.T) {
	hangs, says := &failing{}, &failing{err: status.Error(codes.PermissionDenied, "denied")}
	c := cluster(t, hangs, says)
	if c.brokers.patience != manyPatience {
		t.Errorf("patience %s", c.brokers.patience)
	}
	c.brokers.patience = 300 * time.Millisecond
	begun := time.Now()
	if _, _, err := c.Get(t.Context(), "a"); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begun); d > 5*time.Second || len(hangs.times()) != 1 {
		t.Errorf("took %s, asked %d times", d, len(hangs.times()))
	}
}

// TestFailuresOfAnother: what two callers saw of one broker says nothing about the one that is used by now.
func TestFailuresOfAnother(t *testing.T) {
	b := &brokers{list: []*endpoint{{address: "a"}, {address: "b"}}}
	now := time.Now()
	a, _ := b.pick(now)
	err := status.Error(codes.Unavailable, "x")
	b.failed(a, err, now)
	other, wait := b.pick(now)
	if other.address != "b" || wait != 0 {
		t.Fatalf("%s in %s", other.address, wait)
	}
	b.failed(a, err, now) // the second caller, late
	if again, wait := b.pick(now); again != other || wait != 0 {
		t.Errorf("%s in %s", again.address, wait)
	}
	b.worked(a)
	if again, _ := b.pick(now); again != other {
		t.Error("left a broker that works")
	}
}
