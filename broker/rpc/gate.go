package rpc

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// levels of networks. An IPv4 address is of level 0; of IPv6, where a host chooses
// among 2^64 addresses and a customer among many networks, level 0 is a /64,
// then come a /56 and a /48.
const levels = 3

// share is what a network of a level may have, in multiples of what one address may.
func (l Limits) share(level int) int {
	return [levels]int{1, max(1, l.Share56), max(1, l.Share48)}[level]
}

// networks are those that an address is counted in, by level. What has no
// address of TCP/IP is one network. An IPv4 address in an IPv6 one is IPv4.
func networks(a netip.Addr) []netip.Prefix {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
	}
	out := make([]netip.Prefix, 0, levels)
	for _, bits := range []int{64, 56, 48} {
		out = append(out, netip.PrefixFrom(a, bits).Masked())
	}
	return out
}

// Gate bounds what those cost who have not asked for anything yet: their
// connections, and their requests that have not arrived. What comes after is
// Admission's.
type Gate struct {
	limits      Limits
	opened      *budgets // of connections: each costs a handshake
	connections *census
	streams     *census
	open        *census // streams of those who prove nothing, for as long as they last

	mu     sync.Mutex
	silent int // guarded by mu: requests that did not arrive in time
}

// NewGate makes a gate for one or more listeners.
func NewGate(l Limits) *Gate {
	return &Gate{limits: l, opened: newBudgets(l),
		connections: newCensus(l, l.Connections, l.PeerConnections), streams: newCensus(l, l.Streams, l.PeerStreams), open: newCensus(l, l.Streams, l.PeerStreams)}
}

// GateStats are counts; Refused and Silent of all time.
type GateStats struct {
	Connections, Streams               int
	RefusedConnections, RefusedStreams int
	Silent                             int // requests that did not arrive in time
}

// Stats says what the gate did.
func (g *Gate) Stats() GateStats {
	var s GateStats
	s.Connections, s.RefusedConnections = g.connections.counts()
	s.Streams, s.RefusedStreams = g.streams.counts()
	_, more := g.open.counts()
	s.RefusedStreams += more
	g.mu.Lock()
	defer g.mu.Unlock()
	s.Silent = g.silent
	return s
}

// Listener closes each connection that is over a limit as it comes.
func (g *Gate) Listener(l net.Listener) net.Listener { return &gateListener{l, g} }

type gateListener struct {
	net.Listener
	g *Gate
}

// Accept implements net.Listener.
func (l *gateListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := addrOf(conn.RemoteAddr())
		leave, ok := l.g.connections.enter(addr)
		if ok && l.g.opened.take(addr) > 0 {
			leave()
			l.g.connections.refuse()
			ok = false
		}
		if !ok {
			conn.Close()
			continue
		}
		return &gateConn{Conn: conn, leave: leave}, nil
	}
}

type gateConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *gateConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// Options of a server behind the gate. Its requests are counted from their
// header until they have arrived, and ended if they do not arrive in time: no
// interceptor sees them before. They come before the server's other options: what
// waits in admission's queue has arrived.
func (g *Gate) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.InTapHandle(g.tap), grpc.ChainUnaryInterceptor(g.unary), grpc.ChainStreamInterceptor(g.stream),
	}
}

type arrivalKey struct{}

var errSilent = errors.New("the request did not arrive in time")

// tap is called with the header of each request. The context is the stream's
// own from then on: when it ends, so does whoever waits for the message.
func (g *Gate) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	leave, ok := g.streams.enter(peerAddr(ctx))
	if !ok {
		if _, timed := ctx.Deadline(); !timed {
			return ctx, status.Error(codes.ResourceExhausted, "too many requests that have not arrived")
		}
		// An error would leave the stream's own timer behind (grpc-go v1.85), and the
		// guest chooses how long that runs.
		ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
		context.AfterFunc(ctx, cancel)
		return ctx, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var timer *time.Timer
	if g.limits.Patience > 0 {
		timer = time.AfterFunc(g.limits.Patience, func() {
			g.mu.Lock()
			g.silent++
			g.mu.Unlock()
			cancel(errSilent)
		})
	}
	arrived := sync.OnceFunc(func() {
		if timer != nil {
			timer.Stop()
		}
		leave()
	})
	context.AfterFunc(ctx, func() { // also of a stream that ends before
		arrived()
		cancel(nil)
	})
	return context.WithValue(ctx, arrivalKey{}, arrived), nil
}

func arrived(ctx context.Context) {
	if f, ok := ctx.Value(arrivalKey{}).(func()); ok {
		f()
	}
}

func (g *Gate) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	arrived(ctx)
	return next(ctx, req)
}

// stream also counts streams that last though nothing is proven in them, as
// those of health and reflection. Watch is admission's.
func (g *Gate) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	counted := ss.Context().Value(arrivalKey{}) != nil // otherwise tap refused it, and it ends by itself
	if counted && info.FullMethod != pb.KeyBroker_Watch_FullMethodName {
		leave, ok := g.open.enter(peerAddr(ss.Context()))
		if !ok {
			return status.Error(codes.ResourceExhausted, "too many streams from this address")
		}
		defer leave()
	}
	return next(srv, arriving{ss})
}

type arriving struct{ grpc.ServerStream }

// RecvMsg implements grpc.ServerStream.
func (s arriving) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		arrived(s.Context())
	}
	return err
}

// maxPeers bounds the memory for networks of each level; the least recently seen are forgotten.
const maxPeers = 65536

// budgets are rates by network.
type budgets struct {
	limits Limits

	mu sync.Mutex
	by [levels]*simplelru.LRU[netip.Prefix, *rate.Limiter] // guarded by mu
}

func newBudgets(l Limits) *budgets {
	b := &budgets{limits: l}
	for i := range b.by {
		b.by[i], _ = simplelru.NewLRU[netip.Prefix, *rate.Limiter](maxPeers, nil) // an error only for a size below 1
	}
	return b
}

// take takes one from the budgets of an address's networks, and says how long it
// has to wait if one of them is used up. Then it takes from none.
func (b *budgets) take(a netip.Addr) time.Duration {
	if b.limits.PeerRate <= 0 {
		return 0
	}
	var taken []*rate.Reservation
	var wait time.Duration
	now := time.Now()
	for level, n := range networks(a) {
		r := b.limiter(level, n).ReserveN(now, 1)
		taken = append(taken, r)
		wait = max(wait, r.DelayFrom(now))
	}
	if wait > 0 {
		for _, r := range taken {
			r.CancelAt(now)
		}
	}
	return wait
}

func (b *budgets) limiter(level int, n netip.Prefix) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if lim, ok := b.by[level].Get(n); ok {
		return lim
	}
	share := b.limits.share(level)
	lim := rate.NewLimiter(rate.Limit(b.limits.PeerRate*float64(share)), b.limits.PeerBurst*share)
	b.by[level].Add(n, lim)
	return lim
}

// census counts by network, and in all.
type census struct {
	limits    Limits
	max, peer int // 0: no limit

	mu      sync.Mutex
	all     int // guarded by mu, as are the next two
	by      map[netip.Prefix]int
	refused int
}

func newCensus(l Limits, all, peer int) *census {
	return &census{limits: l, max: all, peer: peer, by: map[netip.Prefix]int{}}
}

// enter counts one until leave is called, which may be more than once.
func (c *census) enter(a netip.Addr) (leave func(), ok bool) {
	in := networks(a)
	if !a.IsValid() {
		in = nil // in-process
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	full := c.max > 0 && c.all >= c.max
	for level, n := range in {
		full = full || c.peer > 0 && c.by[n] >= c.peer*c.limits.share(level)
	}
	if full {
		c.refused++
		return nil, false
	}
	c.all++
	for _, n := range in {
		c.by[n]++
	}
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		for _, n := range in {
			if c.by[n]--; c.by[n] == 0 {
				delete(c.by, n)
			}
		}
	}), true
}

// refuse counts one that is refused for another reason.
func (c *census) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused++
}

func (c *census) counts() (now, refused int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all, c.refused
}

// addrOf is the address in a, or the zero value if it is none of TCP/IP.
func addrOf(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}
