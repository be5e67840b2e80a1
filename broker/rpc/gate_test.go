package rpc

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestNetworks: which networks an address is counted in.
func TestNetworks(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1":             "[192.0.2.1/32]",
		"::ffff:192.0.2.1":      "[192.0.2.1/32]",
		"2001:db8:1:2:3:4:5:6":  "[2001:db8:1:2::/64 2001:db8:1::/56 2001:db8:1::/48]",
		"2001:db8:1:1f2::1":     "[2001:db8:1:1f2::/64 2001:db8:1:100::/56 2001:db8:1::/48]",
		"fe80::1%eth0":          "[fe80::/64 fe80::/56 fe80::/48]",
		"::1":                   "[::/64 ::/56 ::/48]",
		"::ffff:192.0.2.1%eth0": "[192.0.2.1/32]",
	} {
		if got := fmt.Sprint(networks(netip.MustParseAddr(addr))); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// TestIPv6Rate: who changes addresses within a network does not escape its rate.
func TestIPv6Rate(t *testing.T) {
	served := func(a *Admission, addr string) bool {
		_, err := a.Intercept(from(addr), &pb.ChallengeRequest{}, &grpc.UnaryServerInfo{FullMethod: pb.KeyBroker_Challenge_FullMethodName}, func(context.Context, any) (any, error) { return nil, nil })
		return err == nil
	}
	for name, tc := range map[string]struct {
		addr func(i int) string
		want int // of 10000
	}{
		"one address":         {func(int) string { return "2001:db8::1" }, 10},
		"IPv4 in IPv6":        {func(i int) string { return []string{"192.0.2.1", "::ffff:192.0.2.1"}[i%2] }, 10},
		"a /64":               {func(i int) string { return fmt.Sprintf("2001:db8:1:2:%x::1", i) }, 10},
		"a /56":               {func(i int) string { return fmt.Sprintf("2001:db8:1:ab%02x::%x", i&0xff, i) }, 40},
		"a /48":               {func(i int) string { return fmt.Sprintf("2001:db8:1:%x::1", i) }, 160},
		"many /48":            {func(i int) string { return fmt.Sprintf("2001:db8:%x::1", i) }, 10000},
		"many IPv4 addresses": {func(i int) string { return fmt.Sprintf("10.0.%d.%d", i>>8, i&0xff) }, 10000},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := NewAdmission(Limits{Concurrency: 1, PeerRate: 1, PeerBurst: 10, Share56: 4, Share48: 16}, nil)
			n := 0
			for i := range 10000 {
				if served(a, tc.addr(i)) {
					n++
				}
			}
			if n != tc.want {
				t.Errorf("%s: %d of 10000 were served, want %d", name, n, tc.want)
			}
			time.Sleep(time.Second)
			if !served(a, tc.addr(0)) {
				t.Errorf("%s: refused a second later: what was refused has been counted", name)
			}
		})
	}
}

// TestCensus: by address and network, and in all.
func TestCensus(t *testing.T) {
	c := newCensus(Limits{Share56: 4, Share48: 16}, 50, 2)
	var leave []func()
	for _, tc := range []struct {
		format string
		want   int // of 100
	}{
		{"2001:db8:1:2::%x", 2},      // a /64
		{"2001:db8:2:1%02x::1", 8},   // a /56, of which each takes 1 of a /64
		{"2001:db8:3:%02x00::1", 32}, // a /48
		{"2001:db8:3:ff00::%x", 0},   // the same
		{"10.0.0.%d", 8},             // in all, 50
		{"2001:db8:4::%x", 0},
	} {
		in := 0
		for i := range 100 {
			if f, ok := c.enter(netip.MustParseAddr(fmt.Sprintf(tc.format, i))); ok {
				leave, in = append(leave, f), in+1
			}
		}
		if in != tc.want {
			t.Errorf("%s: %d entered, want %d", tc.format, in, tc.want)
		}
	}
	for _, f := range leave {
		f()
		f()
	}
	if n, refused := c.counts(); n != 0 || refused != 550 || len(c.by) != 0 {
		t.Errorf("%d are in after all have left, %d refused, %d networks are remembered", n, refused, len(c.by))
	}
}

// gated serves health behind a gate, on loopback.
func gated(t *testing.T, l Limits) (*Gate, string) {
	t.Helper()
	return serveGated(t, l, func(s *grpc.Server) { healthpb.RegisterHealthServer(s, health.NewServer()) })
}

func serveGated(t *testing.T, l Limits, register func(*grpc.Server), more ...grpc.UnaryServerInterceptor) (*Gate, string) {
	t.Helper()
	g := NewGate(l)
	opts, err := ServerOptions(slog.New(slog.DiscardHandler), more...)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(g.Options(), opts...)...)
	register(s)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(g.Listener(lis)) }()
	t.Cleanup(s.Stop)
	return g, lis.Addr().String()
}

func connect(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// TestSilentRequests: a request of which only the header comes is ended, and
// there are only so many of them at a time.
func TestSilentRequests(t *testing.T) {
	g, addr := gated(t, Limits{Streams: 100, PeerStreams: 5, Patience: time.Second})
	conn := connect(t, addr)
	timed, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	n := 0
	silent := func(method string) grpc.ClientStream {
		ctx := t.Context()
		if n++; n%2 == 0 {
			ctx = timed
		}
		st, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	for _, method := range []string{healthpb.Health_Check_FullMethodName, healthpb.Health_Watch_FullMethodName} {
		before := g.Stats()
		var wg sync.WaitGroup
		for range 20 {
			st := silent(method)
			wg.Go(func() {
				if err := st.RecvMsg(new(healthpb.HealthCheckResponse)); status.Code(err) == codes.OK || err == io.EOF {
					t.Errorf("%s: %v", method, err)
				}
			})
		}
		wg.Wait()
		s := g.Stats()
		if n := s.RefusedStreams - before.RefusedStreams; n < 1 || s.Silent-before.Silent < 5 || n+s.Silent-before.Silent != 20 {
			t.Errorf("%s: %+v after %+v, want 20 ended, 5 at a time", method, s, before)
		}
		eventually(t, "nobody is counted", func() bool { return g.Stats().Streams == 0 })
	}
	// One that arrived stays.
	w, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is not counted", func() bool { return g.Stats().Streams == 0 })
	before := g.Stats().Silent
	st := silent(healthpb.Health_Check_FullMethodName)
	_ = st.RecvMsg(new(healthpb.HealthCheckResponse)) // has had its time, and so has the other
	if n := g.Stats().Silent - before; n != 1 {
		t.Errorf("%d requests were ended, want the silent one", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.Context().Err(); err != nil {
		t.Errorf("the stream that had arrived: %v", err)
	}
	<-ctx.Done()
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("a whole request: %v", err)
	}
}

// slow answers nobody before it may.
type slow struct {
	pb.UnimplementedKeyBrokerServer
	may chan struct{}
}

func (s slow) Release(context.Context, *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	<-s.may
	return &pb.ReleaseResponse{}, nil
}

// TestQueueIsNotArriving: what waits in the queue has arrived, and is not counted with what has not.
func TestQueueIsNotArriving(t *testing.T) {
	l := Limits{Concurrency: 1, Queue: 10, QueueTime: time.Minute, PeerStreams: 2, Patience: time.Second}
	a, broker := NewAdmission(l, nil), slow{may: make(chan struct{})}
	g, addr := serveGated(t, l, func(s *grpc.Server) { pb.RegisterKeyBrokerServer(s, broker) }, a.Intercept)
	client := pb.NewKeyBrokerClient(connect(t, addr))
	req := goodRequest(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if _, err := client.Release(t.Context(), req); err != nil {
				t.Errorf("request %d: %v", i, err)
			}
		})
		eventually(t, "it holds or wants the slot", func() bool { return a.Waiting() == i+1 })
	}
	if s := g.Stats(); s.Streams != 0 {
		t.Errorf("%d requests are arriving", s.Streams)
	}
	close(broker.may)
	wg.Wait()
}

// TestConnectionsPerAddress: what is over the limit is closed at once, and
// makes room again when it goes.
func TestConnectionsPerAddress(t *testing.T) {
	g, addr := gated(t, Limits{Connections: 100, PeerConnections: 3})
	var conns []net.Conn
	for range 10 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns = append(conns, c)
	}
	eventually(t, "7 are refused", func() bool { s := g.Stats(); return s.Connections == 3 && s.RefusedConnections == 7 })
	for _, c := range conns[3:] {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("a connection over the limit: %v", err)
		}
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "all have left", func() bool { return g.Stats().Connections == 0 })
	if _, err := healthpb.NewHealthClient(connect(t, addr)).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
}

// TestConnectionRate: each connection costs a handshake, closed or not.
func TestConnectionRate(t *testing.T) {
	g, addr := gated(t, Limits{PeerRate: 0.001, PeerBurst: 5})
	for range 20 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	eventually(t, "15 are refused, and nobody is counted", func() bool { s := g.Stats(); return s.Connections == 0 && s.RefusedConnections == 15 })
}

// TestLastingStreams: streams that prove nothing are few, though each has said something.
func TestLastingStreams(t *testing.T) {
	g, addr := gated(t, Limits{Streams: 100, PeerStreams: 5, Patience: time.Minute})
	client := healthpb.NewHealthClient(connect(t, addr))
	var last context.CancelFunc
	for i := range 8 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); i < 5 && err != nil || i >= 5 && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("stream %d: %v", i, err)
		}
		if i < 5 {
			last = cancel
		}
	}
	if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("a request beside them: %v", err)
	}
	last()
	eventually(t, "there is room again", func() bool { n, _ := g.open.counts(); return n == 4 })
}

// TestHeaderList: headers are bounded.
func TestHeaderList(t *testing.T) {
	_, addr := gated(t, Limits{})
	client := healthpb.NewHealthClient(connect(t, addr))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-filler", strings.Repeat("x", 64<<10))
	if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err == nil {
		t.Error("64 KiB of headers are taken")
	}
}

// chatter is a stream that always has another message.
type chatter struct {
	grpc.ServerStream
	ctx context.Context
}

func (c chatter) Context() context.Context { return c.ctx }
func (c chatter) RecvMsg(any) error        { return nil }

// TestMessageRate: a watcher that says too much is heard later.
func TestMessageRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		n := 0
		err := a.InterceptStream(nil, chatter{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: pb.KeyBroker_Watch_FullMethodName}, func(_ any, ss grpc.ServerStream) error {
			for {
				if err := ss.RecvMsg(&pb.WatchRequest{}); err != nil {
					return err
				}
				n++
			}
		})
		if want := messageBurst + 10*messageRate; err == nil || n < want-1 || n > want+1 {
			t.Errorf("%d messages in 10 s, want %d; %v", n, want, err)
		}
	})
}
