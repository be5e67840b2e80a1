package rpc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestStatus is the table of errors. Whatever stands around a sentinel stays
// inside, except for a request that breaks the protocol.
func TestStatus(t *testing.T) {
	for _, c := range []struct {
		sentinel error
		code     codes.Code
		text     string
		retry    bool
	}{
		{broker.ErrChallenge, codes.FailedPrecondition, broker.ErrChallenge.Error(), false},
		{broker.ErrDenied, codes.PermissionDenied, broker.ErrDenied.Error(), false},
		{broker.ErrUnavailable, codes.Unavailable, broker.ErrUnavailable.Error(), true},
		{broker.ErrTooLarge, codes.OutOfRange, broker.ErrTooLarge.Error(), false},
		{errors.New("something else"), codes.Unavailable, broker.ErrUnavailable.Error(), true},
		{context.Canceled, codes.Unavailable, broker.ErrUnavailable.Error(), true},
		{broker.ErrSpent, codes.Unavailable, broker.ErrUnavailable.Error(), true},
		{broker.ErrNoSecret, codes.Unavailable, broker.ErrUnavailable.Error(), true},
		{status.Error(codes.OK, "hvs.CAESIJ"), codes.Unavailable, broker.ErrUnavailable.Error(), true},
	} {
		for _, inside := range []string{"hvs.CAESIJ", "db/orders", "chip 00ff", "measurement_unknown", "10.1.2.3:2379", "%s%!w(<nil>)"} {
			for name, err := range map[string]error{
				"before": fmt.Errorf("%s: %w", inside, c.sentinel),
				"after":  fmt.Errorf("%w: %s", c.sentinel, inside),
				"joined": errors.Join(errors.New(inside), c.sentinel),
				"two":    fmt.Errorf("%w: %w", c.sentinel, attest.Errorf("x", attest.ReasonRevoked, "%s", inside)),
				// Of a server that we asked, such as etcd.
				"a status":    fmt.Errorf("%w: %w", c.sentinel, status.Error(codes.ResourceExhausted, inside)),
				"another one": fmt.Errorf("%w: %w", status.Error(codes.InvalidArgument, inside), c.sentinel),
			} {
				s := status.Convert(Status(err))
				if s.Code() != c.code || s.Message() != c.text {
					t.Errorf("%s %v: %s %q, want %s %q", name, c.sentinel, s.Code(), s.Message(), c.code, c.text)
				}
				wire, merr := proto.Marshal(s.Proto())
				if merr != nil || bytes.Contains(wire, []byte(inside)) {
					t.Errorf("%s %v: %q is on the wire", name, c.sentinel, inside)
				}
				if got := retryDelay(s); (got > 0) != c.retry {
					t.Errorf("%v: RetryInfo %s", c.sentinel, got)
				}
			}
		}
	}
	s := status.Convert(Status(fmt.Errorf("%w: nonce: want 48 bytes", broker.ErrInvalid)))
	if s.Code() != codes.InvalidArgument || !strings.Contains(s.Message(), "nonce: want 48 bytes") {
		t.Errorf("got %v", s)
	}
	s = status.Convert(Status(fmt.Errorf("%w: %s", broker.ErrInvalid, strings.Repeat("x", 5<<10)))) // a guest's words come back to it, but not all
	if n := len(s.Message()); n != 1024 {
		t.Errorf("a message of %d bytes", n)
	}
	// Our own words about a message of a stream reach the guest; those of other codes do not.
	for code, own := range map[codes.Code]bool{codes.InvalidArgument: true, codes.ResourceExhausted: true, codes.Internal: false, codes.NotFound: false} {
		if s := status.Convert(Status(status.Error(code, "in our words"))); (s.Code() == code && s.Message() == "in our words") != own || !own && s.Code() != codes.Unavailable {
			t.Errorf("%s: %v", code, s)
		}
	}
}

func retryDelay(s *status.Status) time.Duration {
	for _, d := range s.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// fakeBroker runs a function in place of a release.
type fakeBroker struct {
	release  func(context.Context, broker.Request) (broker.Response, error)
	watch    func(broker.Stream) error
	activate func(attest.TPMActivation) (attest.TPMChallenge, error)
	down     error // of Challenge
}

func (f fakeBroker) Challenge() ([]byte, time.Time, error) {
	return []byte("nonce"), time.Unix(1000, 0), f.down
}
func (f fakeBroker) Release(ctx context.Context, r broker.Request) (broker.Response, error) {
	return f.release(ctx, r)
}
func (f fakeBroker) ActivateTPM(_ context.Context, a attest.TPMActivation) (attest.TPMChallenge, error) {
	return f.activate(a)
}

func (f fakeBroker) Attest(ctx context.Context, r broker.Request) (broker.Response, error) {
	return f.Release(ctx, r)
}
func (f fakeBroker) Watch(_ context.Context, st broker.Stream) error { return f.watch(st) }
func (fakeBroker) Identity() []byte                                  { return []byte("identity") }
func (fakeBroker) EvidenceTypes() []attest.Type {
	return []attest.Type{attest.TypeSNP, attest.TypeTDX}
}
func (fakeBroker) AcceptsSimulated() bool { return true }

// serve runs a server on loopback and returns its address.
func serve(t *testing.T, register func(*grpc.Server), opts ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(opts...)
	register(s)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func dial(t *testing.T, addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func workload(t *testing.T, log *slog.Logger, b fakeBroker, more ...grpc.UnaryServerInterceptor) pb.KeyBrokerClient {
	t.Helper()
	opts, err := ServerOptions(log, more...)
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, func(s *grpc.Server) { pb.RegisterKeyBrokerServer(s, &Workload{Broker: b}) }, opts...)
	return pb.NewKeyBrokerClient(dial(t, addr, insecure.NewCredentials()))
}

func goodRequest(t *testing.T) *pb.ReleaseRequest {
	t.Helper()
	key, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		t.Fatal(err)
	}
	return &pb.ReleaseRequest{
		Nonce: make([]byte, 48), KeyAlgorithm: string(seal.Hybrid), PublicKey: key.Public(), OfferedSuites: []string{string(seal.Hybrid)},
		Resources: []string{"db/orders"}, Evidence: []*pb.Evidence{{Type: "sev-snp", Report: make([]byte, 1184)}},
	}
}

func TestFieldRules(t *testing.T) {
	released := 0
	c := workload(t, slog.New(slog.DiscardHandler), fakeBroker{release: func(context.Context, broker.Request) (broker.Response, error) {
		released++
		return broker.Response{}, broker.ErrDenied
	}, watch: func(st broker.Stream) error {
		_, err := st.Recv()
		return err
	}})
	if _, err := c.Release(t.Context(), goodRequest(t)); status.Code(err) != codes.PermissionDenied || released != 1 {
		t.Fatalf("a good request: %v", err)
	}
	for field, spoil := range map[string]func(*pb.ReleaseRequest){
		"nonce":      func(r *pb.ReleaseRequest) { r.Nonce = r.Nonce[:15] },
		"public_key": func(r *pb.ReleaseRequest) { r.PublicKey = nil },
		"resources":  func(r *pb.ReleaseRequest) { r.Resources = nil },
		"evidence":   func(r *pb.ReleaseRequest) { r.Evidence = nil },
	} {
		r := goodRequest(t)
		spoil(r)
		_, err := c.Release(t.Context(), r)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), field) {
			t.Errorf("%s: %v", field, err)
		}
		st, err := c.Watch(t.Context()) // the messages of a stream obey them as well
		if err != nil {
			t.Fatal(err)
		}
		_ = st.Send(&pb.WatchRequest{Message: &pb.WatchRequest_Subscribe{Subscribe: &pb.Subscribe{Request: r}}})
		if _, err := st.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), field) {
			t.Errorf("%s in a stream: %v", field, err)
		}
	}
	r := goodRequest(t)
	r.Evidence[0].Report = make([]byte, 2*MaxRequest)
	if _, err := c.Release(t.Context(), r); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a huge request: %v", err)
	}
	if released != 1 {
		t.Errorf("%d requests reached the broker", released)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestPanic: a bug costs one request, is logged, and the guest learns nothing of it.
func TestPanic(t *testing.T) {
	log := &lockedBuffer{}
	c := workload(t, slog.New(slog.NewTextHandler(log, nil)), fakeBroker{
		release: func(context.Context, broker.Request) (broker.Response, error) { panic("index out of hvs.CAESIJ") },
		watch:   func(broker.Stream) error { panic("slice of hvs.CAESIJ") },
	})
	for range 2 {
		_, err := c.Release(t.Context(), goodRequest(t))
		st, serr := c.Watch(t.Context())
		if serr != nil {
			t.Fatal(serr)
		}
		_, serr = st.Recv()
		for _, err := range []error{err, serr} {
			s := status.Convert(err)
			if s.Code() != codes.Unavailable || s.Message() != broker.ErrUnavailable.Error() || retryDelay(s) == 0 {
				t.Fatalf("got %v", err)
			}
		}
	}
	for _, want := range []string{"level=ERROR", "KeyBroker/Release", "index out of", "KeyBroker/Watch", "slice of", "rpc_test.go"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
}

// TestWorkload: what the broker says reaches the guest, and what the guest sends the broker, each in its place.
func TestWorkload(t *testing.T) {
	var asked broker.Request
	var activation attest.TPMActivation
	b := fakeBroker{release: func(_ context.Context, r broker.Request) (broker.Response, error) {
		asked = r
		return broker.Response{Receipt: broker.Receipt{Promise: "promise", LogIndex: 7}, Secrets: []broker.Wrapped{{Resource: "db/orders", JWE: "jwe"}, {Resource: "db/users", JWE: "other"}}}, nil
	}, activate: func(a attest.TPMActivation) (attest.TPMChallenge, error) {
		activation = a
		return attest.TPMChallenge{CredentialBlob: []byte("blob"), EncryptedSecret: []byte("secret"), Ticket: []byte("ticket"), Expires: time.Unix(1000, 0)}, nil
	}}
	w := &Workload{Broker: b, BrokerID: [32]byte{1}, Version: "1.2", Prove: func(_ context.Context, index uint64) (Proof, bool, error) {
		return Proof{Checkpoint: []byte("checkpoint"), LeafHash: []byte("leaf"), Path: [][]byte{{byte(index)}}}, true, nil
	}}
	opts, err := ServerOptions(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c := pb.NewKeyBrokerClient(dial(t, serve(t, func(s *grpc.Server) { pb.RegisterKeyBrokerServer(s, w) }, opts...), insecure.NewCredentials()))

	caps, err := c.GetCapabilities(t.Context(), &pb.GetCapabilitiesRequest{})
	if err != nil || !bytes.Equal(caps.GetBrokerId(), w.BrokerID[:]) || string(caps.GetIdentityKey()) != "identity" || caps.GetVersion() != "1.2" || !caps.GetSimulated() ||
		fmt.Sprint(caps.GetEvidenceTypes()) != "[sev-snp tdx]" || fmt.Sprint(caps.GetSuites()) != fmt.Sprint(seal.Suites()) {
		t.Errorf("capabilities %v, %v", caps, err)
	}
	ch, err := c.Challenge(t.Context(), &pb.ChallengeRequest{})
	if err != nil || string(ch.GetNonce()) != "nonce" || !ch.GetExpiresAt().AsTime().Equal(time.Unix(1000, 0)) || !bytes.Equal(ch.GetBrokerId(), w.BrokerID[:]) {
		t.Errorf("challenge %v, %v", ch, err)
	}
	req := goodRequest(t)
	rel, err := c.Release(t.Context(), req)
	if err != nil || rel.GetReceipt().GetPromise() != "promise" || rel.GetReceipt().GetLogIndex() != 7 || len(rel.GetSecrets()) != 2 ||
		rel.GetSecrets()[0].GetResource() != "db/orders" || rel.GetSecrets()[0].GetJwe() != "jwe" || rel.GetSecrets()[1].GetJwe() != "other" {
		t.Errorf("release %v, %v", rel, err)
	}
	if !bytes.Equal(asked.PublicKey, req.GetPublicKey()) || asked.Peer.String() != "127.0.0.1" {
		t.Errorf("asked %+v", asked)
	}
	act, err := c.ActivateTPM(t.Context(), &pb.ActivateTPMRequest{EkCertificates: [][]byte{[]byte("ek")}, EkPublic: []byte("public"), AkPublic: []byte("ak")})
	if err != nil || string(act.GetCredentialBlob()) != "blob" || string(act.GetEncryptedSecret()) != "secret" || string(act.GetTicket()) != "ticket" || !act.GetExpiresAt().AsTime().Equal(time.Unix(1000, 0)) {
		t.Errorf("activation %v, %v", act, err)
	}
	if len(activation.EKCertificates) != 1 || string(activation.EKCertificates[0]) != "ek" || string(activation.EKPublic) != "public" || string(activation.AKPublic) != "ak" {
		t.Errorf("asked to activate %+v", activation)
	}
	proof, err := c.ProveInclusion(t.Context(), &pb.ProveInclusionRequest{LogIndex: 9})
	if err != nil || string(proof.GetCheckpoint()) != "checkpoint" || string(proof.GetLeafHash()) != "leaf" || len(proof.GetProof()) != 1 || proof.GetProof()[0][0] != 9 {
		t.Errorf("proof %v, %v", proof, err)
	}
}

// TestWorkloadFails: each call answers with the table's codes.
func TestWorkloadFails(t *testing.T) {
	log := &lockedBuffer{}
	w := &Workload{Log: slog.New(slog.NewTextHandler(log, nil)), Broker: fakeBroker{
		down: errors.New("no nonces"),
		activate: func(attest.TPMActivation) (attest.TPMChallenge, error) {
			return attest.TPMChallenge{}, broker.ErrDenied
		},
	}}
	pinned := metadata.NewIncomingContext(t.Context(), metadata.Pairs("claviger-broker-id", strings.Repeat("02", 32)))
	if r, err := w.Challenge(pinned, nil); status.Code(err) != codes.Unavailable || r != nil || !strings.Contains(log.String(), "pins the identity of another broker") {
		t.Errorf("challenge: %v; logged %s", err, log)
	}
	if r, err := w.ActivateTPM(t.Context(), &pb.ActivateTPMRequest{}); status.Code(err) != codes.PermissionDenied || r != nil {
		t.Errorf("activation: %v", err)
	}
	req := goodRequest(t)
	req.Inputs = []*pb.ResourceInput{{Resource: "db/other", Input: []byte("x")}}
	if r, err := w.Release(t.Context(), req); status.Code(err) != codes.InvalidArgument || r != nil {
		t.Errorf("a request that is none: %v", err)
	}
}

// TestDenialTrailer: the statement goes with a denial, and with nothing else.
func TestDenialTrailer(t *testing.T) {
	if md := denialTrailer(fmt.Errorf("release: %w", &broker.Denial{Statement: "signed"})); len(md) != 1 || len(md.Get(DenialTrailer)) != 1 || md.Get(DenialTrailer)[0] != "signed" {
		t.Errorf("trailer %v", md)
	}
	if md := denialTrailer(broker.ErrDenied); md != nil {
		t.Errorf("trailer %v", md)
	}
}

func TestProveNotYet(t *testing.T) {
	w := &Workload{Prove: func(context.Context, uint64) (Proof, bool, error) { return Proof{}, false, nil }}
	_, err := w.ProveInclusion(t.Context(), &pb.ProveInclusionRequest{})
	if s := status.Convert(err); s.Code() != codes.Unavailable || retryDelay(s) != 250*time.Millisecond {
		t.Errorf("got %v", err)
	}
	w.Prove = func(context.Context, uint64) (Proof, bool, error) {
		return Proof{}, true, errors.New("read /var/lib/claviger")
	}
	_, err = w.ProveInclusion(t.Context(), &pb.ProveInclusionRequest{})
	if s := status.Convert(err); s.Code() != codes.Unavailable || strings.Contains(s.Message(), "/var") {
		t.Errorf("got %v", err)
	}
}

func from(addr string) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(addr), Port: 1}})
}

var releaseInfo = &grpc.UnaryServerInfo{FullMethod: pb.KeyBroker_Release_FullMethodName}

// TestQueue: what is over the limits is refused at once, or after the queue time, and asked to come back.
func TestQueue(t *testing.T) {
	a := NewAdmission(Limits{Concurrency: 2, Queue: 3, QueueTime: 100 * time.Millisecond}, nil)
	hold, entered := make(chan struct{}), make(chan struct{}, 8)
	slow := func(context.Context, any) (any, error) {
		entered <- struct{}{}
		<-hold
		return "done", nil
	}
	results := make(chan error, 16)
	call := func() {
		_, err := a.Intercept(t.Context(), nil, releaseInfo, slow)
		results <- err
	}
	for range 2 {
		go call()
		<-entered
	}
	for range 3 {
		go call()
	}
	for a.Waiting() < 5 {
		time.Sleep(time.Millisecond)
	}
	refused := func(err error, text string) {
		t.Helper()
		s := status.Convert(err)
		if s.Code() != codes.ResourceExhausted || s.Message() != text || retryDelay(s) == 0 {
			t.Errorf("got %v, want %q with RetryInfo", err, text)
		}
	}
	_, err := a.Intercept(t.Context(), nil, releaseInfo, slow)
	refused(err, "queue is full")
	// Challenges do not queue behind releases.
	if _, err := a.Intercept(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: pb.KeyBroker_Challenge_FullMethodName},
		func(context.Context, any) (any, error) { return nil, nil }); err != nil {
		t.Errorf("challenge: %v", err)
	}
	for range 3 {
		refused(<-results, "waited too long in the queue")
	}
	// Who gives up leaves the queue.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Intercept(ctx, nil, releaseInfo, slow); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(hold)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if a.Waiting() != 0 {
		t.Errorf("%d still counted", a.Waiting())
	}
	if _, err := a.Intercept(t.Context(), nil, releaseInfo, slow); err != nil {
		t.Errorf("after the rush: %v", err)
	}
}

// TestPeerRate: one address cannot take what others need.
func TestPeerRate(t *testing.T) {
	a := NewAdmission(Limits{Concurrency: 1, PeerRate: 1, PeerBurst: 3, QueueTime: time.Second}, nil)
	next := func(context.Context, any) (any, error) { return nil, nil }
	for range 3 {
		if _, err := a.Intercept(from("10.0.0.1"), nil, releaseInfo, next); err != nil {
			t.Fatalf("within the burst: %v", err)
		}
	}
	for range 10 { // a refusal must not push the next one further away
		_, err := a.Intercept(from("10.0.0.1"), nil, releaseInfo, next)
		s := status.Convert(err)
		if d := retryDelay(s); s.Code() != codes.ResourceExhausted || d <= 0 || d > time.Second {
			t.Fatalf("over the burst: %v, retry after %s", err, d)
		}
	}
	if _, err := a.Intercept(from("10.0.0.2"), nil, releaseInfo, next); err != nil {
		t.Errorf("another address: %v", err)
	}
	off := NewAdmission(Limits{Concurrency: 1, QueueTime: time.Second}, nil)
	for range 100 {
		if _, err := off.Intercept(from("10.0.0.1"), nil, releaseInfo, next); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPeersBounded: an attacker with many addresses does not fill the memory.
func TestPeersBounded(t *testing.T) {
	a := NewAdmission(Limits{Concurrency: 1, PeerRate: 1, PeerBurst: 1}, nil)
	peer := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	for i := range maxPeers + 1000 {
		a.peers.limiter(0, peer(i))
	}
	if n := a.peers.by[0].Len(); n != maxPeers {
		t.Errorf("%d are remembered", n)
	}
	if a.peers.by[0].Contains(peer(0)) {
		t.Error("the least recently seen is still there")
	}
}

// TestEveryMethodHasARole: a method that is missing in the table can be called by nobody.
func TestEveryMethodHasARole(t *testing.T) {
	known := map[string]bool{}
	for _, m := range pb.Admin_ServiceDesc.Methods {
		name := "/" + pb.Admin_ServiceDesc.ServiceName + "/" + m.MethodName
		known[name] = true
		want := Operator
		if strings.HasPrefix(m.MethodName, "Get") || strings.HasPrefix(m.MethodName, "List") || m.MethodName == "BlastRadius" {
			want = Viewer
		}
		if needs[name] != want {
			t.Errorf("%s needs %q, want %q", name, needs[name], want)
		}
	}
	for name := range needs {
		if !known[name] {
			t.Errorf("%s is not a method", name)
		}
	}
	if n := len(pb.Admin_ServiceDesc.Streams); n != 0 {
		t.Errorf("%d streams, which no interceptor authorises", n)
	}
}

// authority issues certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := authority{key: key}
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der := a.sign(t, a.cert, &key.PublicKey)
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a authority) sign(t *testing.T, tmpl *x509.Certificate, pub any) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (a authority) issue(t *testing.T, cn string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestAuthorise: over real mTLS, who is let in and to what.
func TestAuthorise(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	log := &lockedBuffer{}
	count := &Refusals{}
	ops := Operators{"vera": Viewer, "olga": Operator, "nobody": ""}
	opts, err := ServerOptions(slog.New(slog.DiscardHandler), ops.Authorise(slog.New(slog.NewTextHandler(log, nil)), count))
	if err != nil {
		t.Fatal(err)
	}
	admin := func(clientAuth tls.ClientAuthType) string {
		creds := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ca.issue(t, "localhost")}, ClientAuth: clientAuth, ClientCAs: pool})
		return serve(t, func(s *grpc.Server) { pb.RegisterAdminServer(s, pb.UnimplementedAdminServer{}) }, append(opts, grpc.Creds(creds))...)
	}
	addr := admin(tls.RequireAndVerifyClientCert)
	call := func(addr string, cert *tls.Certificate, method string) codes.Code {
		t.Helper()
		cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		// GetStatusRequest is empty, and so parses as any request.
		return status.Code(dial(t, addr, credentials.NewTLS(cfg)).Invoke(ctx, method, &pb.GetStatusRequest{}, &pb.GetStatusResponse{}))
	}
	cert := func(a authority, cn string) *tls.Certificate { c := a.issue(t, cn); return &c }
	for _, c := range []struct {
		who  string
		cert *tls.Certificate
		// Unimplemented: let in, and no more. InvalidArgument: let in, and the empty request refused.
		view, change codes.Code
	}{
		{"viewer", cert(ca, "vera"), codes.Unimplemented, codes.PermissionDenied},
		{"operator", cert(ca, "olga"), codes.Unimplemented, codes.Unimplemented},
		{"unknown name", cert(ca, "mallory"), codes.Unauthenticated, codes.Unauthenticated},
		{"no name", cert(ca, ""), codes.Unauthenticated, codes.Unauthenticated},
		{"other case", cert(ca, "Olga"), codes.Unauthenticated, codes.Unauthenticated},
		{"another CA", cert(stranger, "olga"), codes.Unavailable, codes.Unavailable},
		{"no certificate", nil, codes.Unavailable, codes.Unavailable},
	} {
		t.Run(c.who, func(t *testing.T) {
			if got := call(addr, c.cert, pb.Admin_GetStatus_FullMethodName); got != c.view {
				t.Errorf("GetStatus: %s, want %s", got, c.view)
			}
			if got := call(addr, c.cert, pb.Admin_ActivatePolicy_FullMethodName); got != c.change {
				t.Errorf("ActivatePolicy: %s, want %s", got, c.change)
			}
		})
	}
	// Were the listener set up without demanding a certificate, the name still would not count.
	loose := admin(tls.RequestClientCert)
	for who, c := range map[string]*tls.Certificate{"no certificate": nil, "another CA": cert(stranger, "olga")} {
		if got := call(loose, c, pb.Admin_GetStatus_FullMethodName); got != codes.Unauthenticated {
			t.Errorf("unverified, %s: %s", who, got)
		}
	}
	// Every method, for who has no rights to change.
	for name, need := range needs {
		if got := call(addr, cert(ca, "vera"), name); (got == codes.PermissionDenied) != (need == Operator) {
			t.Errorf("viewer on %s: %s", name, got)
		}
		if got := call(addr, cert(ca, "nobody"), name); need == Operator && got != codes.PermissionDenied {
			t.Errorf("a name without a role on %s: %s", name, got)
		}
	}
	said := map[string]bool{}
	for line := range strings.Lines(log.String()) {
		for _, who := range []string{"olga", "vera", "mallory"} {
			for _, what := range []string{"operator action", "operator refused"} {
				said[who+": "+what] = said[who+": "+what] || strings.Contains(line, "operator="+who) && strings.Contains(line, what)
			}
		}
	}
	if !said["olga: operator action"] || said["vera: operator action"] || said["mallory: operator action"] || !said["vera: operator refused"] || !said["mallory: operator refused"] {
		t.Errorf("log of changes and refusals:\n%s", log)
	}
	if lines := int64(strings.Count(log.String(), "operator refused")); count.Unknown.Load()+count.Role.Load() != lines || count.Unknown.Load() == 0 || count.Role.Load() == 0 {
		t.Errorf("counted %d of unknown names and %d of roles, and logged %d", count.Unknown.Load(), count.Role.Load(), lines)
	}
}

// TestMethodNotInTable: forgetting a method closes it.
func TestMethodNotInTable(t *testing.T) {
	i := Operators{"olga": Operator}.Authorise(slog.New(slog.DiscardHandler), &Refusals{})
	ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
		VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: "olga"}}}},
	}}})
	next := func(context.Context, any) (any, error) { return nil, nil }
	if _, err := i(ctx, nil, &grpc.UnaryServerInfo{FullMethod: pb.Admin_Revoke_FullMethodName}, next); err != nil {
		t.Fatal(err)
	}
	if _, err := i(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/claviger.v1.Admin/DumpSecrets"}, next); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
	if _, err := i(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: pb.Admin_Revoke_FullMethodName}, next); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a peer: %v", err)
	}
}

// TestWrongPinIsLogged: an operator hears of guests that pin another broker, and not for each of their requests.
func TestWrongPinIsLogged(t *testing.T) {
	other, own := strings.Repeat("02", 32), hex.EncodeToString(append([]byte{1}, make([]byte, 31)...))
	says := func(w *Workload, ids ...string) {
		md := metadata.MD{}
		md.Append("claviger-broker-id", ids...)
		w.wrongPin(metadata.NewIncomingContext(t.Context(), md))
	}
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		guest := func() *Workload {
			out.Reset()
			return &Workload{BrokerID: [32]byte{1}, Log: slog.New(slog.NewTextHandler(&out, nil))}
		}
		w := guest()
		for _, c := range []struct {
			after time.Duration
			lines int
		}{{0, 1}, {0, 1}, {9 * time.Second, 1}, {time.Second, 2}} {
			time.Sleep(c.after)
			says(w, other)
			if got := out.String(); strings.Count(got, "pinned_id="+other) != c.lines {
				t.Errorf("%s later: want %d lines, logged %s", c.after, c.lines, got)
			}
		}
		for _, ids := range [][]string{{own}, {"zz"}, {"02"}, {other + "0"}, {other + "zz"}, {}, {other, other}} {
			says(guest(), ids...)
			if out.Len() > 0 {
				t.Errorf("of %q logged %s", ids, out.String())
			}
		}
	})
	says(&Workload{BrokerID: [32]byte{1}}, other) // no log: nothing happens
}
