package rpc

import (
	"container/list"
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Limits bound what guests can make the broker do at a time.
type Limits struct {
	Concurrency int           // releases appraised at once
	Queue       int           // releases waiting beyond those
	QueueTime   time.Duration // longest wait
	PeerRate    float64       // requests per second per address, 0: no limit
	PeerBurst   int
}

// DefaultLimits suit two cores and a fleet that boots at once from many addresses.
func DefaultLimits() Limits {
	return Limits{Concurrency: 16, Queue: 1024, QueueTime: 5 * time.Second, PeerRate: 50, PeerBurst: 200}
}

// maxPeers bounds the memory for addresses; the least recently seen are forgotten.
const maxPeers = 65536

// Admission holds the limits.
type Admission struct {
	limits Limits
	slots  chan struct{}
	queue  chan struct{}

	mu    sync.Mutex
	peers map[string]*list.Element // guarded by mu
	lru   *list.List               // of peerLimit, the newest in front; guarded by mu
}

type peerLimit struct {
	addr string
	lim  *rate.Limiter
}

// NewAdmission makes an interceptor's state.
func NewAdmission(l Limits) *Admission {
	return &Admission{
		limits: l, slots: make(chan struct{}, l.Concurrency), queue: make(chan struct{}, l.Concurrency+l.Queue),
		peers: map[string]*list.Element{}, lru: list.New(),
	}
}

// Intercept refuses with RESOURCE_EXHAUSTED and RetryInfo what is over a limit.
func (a *Admission) Intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if d := a.peerDelay(ctx); d > 0 {
		return nil, retry(codes.ResourceExhausted, "too many requests from this address", d)
	}
	if info.FullMethod != pb.KeyBroker_Release_FullMethodName {
		return next(ctx, req)
	}
	select {
	case a.queue <- struct{}{}:
		defer func() { <-a.queue }()
	default:
		return nil, retry(codes.ResourceExhausted, "queue is full", a.limits.QueueTime)
	}
	timer := time.NewTimer(a.limits.QueueTime)
	defer timer.Stop()
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-timer.C:
		return nil, retry(codes.ResourceExhausted, "waited too long in the queue", a.limits.QueueTime)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return next(ctx, req)
}

// Waiting is how many releases are in the queue or running.
func (a *Admission) Waiting() int { return len(a.queue) }

func (a *Admission) peerDelay(ctx context.Context) time.Duration {
	if a.limits.PeerRate <= 0 {
		return 0
	}
	addr := "unknown"
	if p, ok := peer.FromContext(ctx); ok {
		addr = p.Addr.String()
		if host, _, err := net.SplitHostPort(addr); err == nil {
			addr = host
		}
	}
	r := a.limiter(addr).Reserve()
	d := r.Delay()
	if d > 0 {
		r.Cancel()
	}
	return d
}

func (a *Admission) limiter(addr string) *rate.Limiter {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e, ok := a.peers[addr]; ok {
		a.lru.MoveToFront(e)
		return e.Value.(peerLimit).lim
	}
	if a.lru.Len() >= maxPeers {
		old := a.lru.Back()
		delete(a.peers, old.Value.(peerLimit).addr)
		a.lru.Remove(old)
	}
	lim := rate.NewLimiter(rate.Limit(a.limits.PeerRate), a.limits.PeerBurst)
	a.peers[addr] = a.lru.PushFront(peerLimit{addr, lim})
	return lim
}
