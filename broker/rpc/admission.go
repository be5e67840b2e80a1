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
	switch info.FullMethod {
	case pb.KeyBroker_Release_FullMethodName, pb.KeyBroker_Attest_FullMethodName, pb.KeyBroker_ActivateTPM_FullMethodName:
	default:
		return next(ctx, req)
	}
	release, err := a.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return next(ctx, req)
}

// InterceptStream does the same for Watch: each message with evidence waits for a slot.
func (a *Admission) InterceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if info.FullMethod != pb.KeyBroker_Watch_FullMethodName {
		return next(srv, ss)
	}
	if d := a.peerDelay(ss.Context()); d > 0 {
		return retry(codes.ResourceExhausted, "too many requests from this address", d)
	}
	st := &admitted{ServerStream: ss, a: a}
	defer st.leave()
	return next(srv, st)
}

// admitted holds a slot from the arrival of evidence until it is answered.
type admitted struct {
	grpc.ServerStream
	a *Admission

	mu      sync.Mutex
	release func() // guarded by mu; nil: holds no slot
}

// RecvMsg implements grpc.ServerStream.
func (s *admitted) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	r, ok := m.(*pb.WatchRequest)
	if !ok || r.GetSubscribe() == nil {
		return nil
	}
	release, err := s.a.slot(s.Context())
	if err != nil {
		return err
	}
	s.leave() // of a Subscribe that was never answered
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release = release
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s *admitted) SendMsg(m any) error {
	s.leave()
	return s.ServerStream.SendMsg(m)
}

func (s *admitted) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

// slot waits for a place among the releases that are appraised at once.
func (a *Admission) slot(ctx context.Context) (release func(), err error) {
	select {
	case a.queue <- struct{}{}:
	default:
		return nil, retry(codes.ResourceExhausted, "queue is full", a.limits.QueueTime)
	}
	timer := time.NewTimer(a.limits.QueueTime)
	defer timer.Stop()
	select {
	case a.slots <- struct{}{}:
		return func() { <-a.slots; <-a.queue }, nil
	case <-timer.C:
		err = retry(codes.ResourceExhausted, "waited too long in the queue", a.limits.QueueTime)
	case <-ctx.Done():
		err = ctx.Err()
	}
	<-a.queue
	return nil, err
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
