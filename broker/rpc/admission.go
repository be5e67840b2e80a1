package rpc

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/claviger/claviger/broker/attest"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Limits bound what guests can make the broker do at a time.
type Limits struct {
	Concurrency int           // releases appraised at once
	Queue       int           // releases waiting beyond those
	QueueTime   time.Duration // longest wait
	PeerRate    float64       // requests, and connections, per second per address, 0: no limit
	PeerBurst   int
	// Share56 and Share48 are how many times an address's limits an IPv6 network of
	// that size has. An address of IPv6 is its /64.
	Share56, Share48 int

	// Of a listener: see Gate.
	Connections     int           // in all, 0: no limit
	PeerConnections int           // per address, 0: no limit
	Streams         int           // requests that have not arrived whole, in all, 0: no limit
	PeerStreams     int           // the same per address, 0: no limit
	Patience        time.Duration // until a request has arrived, 0: for ever

	// Releases that wait for a vendor's service, outside the slots.
	Away     int // in all, 0: no limit
	PeerAway int // per address, 0: no limit
}

// DefaultLimits suit two cores and a fleet that boots at once from many addresses.
func DefaultLimits() Limits {
	return Limits{
		Concurrency: 16, Queue: 1024, QueueTime: 5 * time.Second, PeerRate: 50, PeerBurst: 200, Share56: 4, Share48: 16,
		Connections: 32768, PeerConnections: 256, Streams: 2048, PeerStreams: 64, Patience: time.Minute,
		Away: 256, PeerAway: 16,
	}
}

// GuestPatience is how long an agent that knows other brokers waits for an
// answer of this one. Who waits longer in a queue than his guest does is served in vain.
const GuestPatience = 15 * time.Second

// Admission holds the limits. Disk keys (entries with priority boot) go before
// everything else: machines that wait for them cannot do anything.
type Admission struct {
	limits Limits
	peers  *budgets
	away   *census
	// boot says whether a resource is a disk key; nil: none is. It is asked before
	// anything is proven: a guest that names a disk key that is not its own gets
	// a denial sooner, within the rate of its address.
	boot func(resource string) bool
	// Waited is told how long each request waited for its slot, 0 included; nil: nobody is. Set it before use.
	Waited func(class string, d time.Duration)

	mu        sync.Mutex
	running   int           // guarded by mu, as are the next five
	waiting   [2]*list.List // of *waiter by class, the oldest in front
	streak    int           // boot requests that went before waiting normal ones
	took      time.Duration // how long a slot is held, smoothed
	back      [2]time.Time  // by class, when the last one that was refused has been asked to come back
	displaced int
}

// Classes of requests.
const (
	normal = iota
	boot
)

// Classes are their names, for metrics.
func Classes() []string { return []string{normal: "normal", boot: "boot"} }

// fair is how many boot requests may go before a normal one that waits: few
// normal ones, as their machines need a disk first, but not none for ever.
const fair = 63

type waiter struct {
	ready chan struct{} // closed when it has a slot, or err says why not
	err   error
}

// NewAdmission makes an interceptor's state. isBoot says which resources are disk keys; nil: none.
func NewAdmission(l Limits, isBoot func(resource string) bool) *Admission {
	return &Admission{limits: l, boot: isBoot, waiting: [2]*list.List{list.New(), list.New()}, peers: newBudgets(l), away: newCensus(l, l.Away, l.PeerAway)}
}

// Intercept refuses with RESOURCE_EXHAUSTED and RetryInfo what is over a limit.
func (a *Admission) Intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if d := a.peers.take(peerAddr(ctx)); d > 0 {
		return nil, retry(codes.ResourceExhausted, "too many requests from this address", d)
	}
	class := normal
	switch info.FullMethod {
	case pb.KeyBroker_Release_FullMethodName:
		r, _ := req.(*pb.ReleaseRequest)
		class = a.class(r.GetResources())
	case pb.KeyBroker_ActivateTPM_FullMethodName: // the step before a machine's disk key
		class = boot
	case pb.KeyBroker_Attest_FullMethodName:
	default:
		return next(ctx, req)
	}
	p := &place{a: a, class: class, addr: peerAddr(ctx)}
	if err := p.take(ctx); err != nil {
		return nil, err
	}
	defer p.leave()
	return next(attest.WithPlace(ctx, p), req)
}

// place is a request's slot, which it may give up and take again.
type place struct {
	a     *Admission
	class int
	addr  netip.Addr

	mu      sync.Mutex
	release func() // guarded by mu; nil: holds no slot
}

// take waits for a slot, in place of the one that is held, if any.
func (p *place) take(ctx context.Context) error {
	release, err := p.a.slot(ctx, p.class)
	if err != nil {
		return err
	}
	p.leave()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release = release
	return nil
}

func (p *place) leave() (held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.release == nil {
		return false
	}
	p.release()
	p.release = nil
	return true
}

// Leave implements attest.Place.
func (p *place) Leave() (back func(context.Context) error, err error) {
	out, ok := p.a.away.enter(p.addr)
	if !ok {
		return nil, errAway
	}
	held := p.leave()
	return func(ctx context.Context) error {
		out()
		if !held {
			return nil
		}
		if err := p.take(ctx); err != nil {
			return fmt.Errorf("take a turn again: %v", err) // not its gRPC status: the verifier's words around it are not the guest's
		}
		return nil
	}, nil
}

var errAway = errors.New("too many requests wait for a vendor's service")

// InterceptStream does the same for Watch: each message with evidence waits for a slot.
func (a *Admission) InterceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if info.FullMethod != pb.KeyBroker_Watch_FullMethodName {
		return next(srv, ss)
	}
	if d := a.peers.take(peerAddr(ss.Context())); d > 0 {
		return retry(codes.ResourceExhausted, "too many requests from this address", d)
	}
	p := &place{a: a, class: normal, addr: peerAddr(ss.Context())}
	st := &admitted{ServerStream: ss, ctx: attest.WithPlace(ss.Context(), p), place: p, messages: rate.NewLimiter(messageRate, messageBurst)}
	defer p.leave()
	return next(srv, st)
}

// A watcher says that it holds what it got, and attests again now and then.
const (
	messageRate  = 10 // a second
	messageBurst = 200
)

// admitted holds a slot from the arrival of evidence until it is answered.
type admitted struct {
	grpc.ServerStream
	ctx      context.Context
	place    *place
	messages *rate.Limiter
}

// Context implements grpc.ServerStream.
func (s *admitted) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *admitted) RecvMsg(m any) error {
	// Who says too much is heard later, not sent away: he may be running on what he holds.
	if err := s.messages.Wait(s.Context()); err != nil {
		return err
	}
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	r, ok := m.(*pb.WatchRequest)
	if !ok || r.GetSubscribe() == nil {
		return nil
	}
	return s.place.take(s.ctx) // and leaves that of a Subscribe that was never answered
}

// SendMsg implements grpc.ServerStream.
func (s *admitted) SendMsg(m any) error {
	s.place.leave()
	return s.ServerStream.SendMsg(m)
}

func (a *Admission) class(resources []string) int {
	if a.boot == nil || len(resources) == 0 {
		return normal
	}
	for _, r := range resources {
		if !a.boot(r) {
			return normal
		}
	}
	return boot
}

// slot waits for a place among the releases that are appraised at once.
func (a *Admission) slot(ctx context.Context, class int) (release func(), err error) {
	w, err := a.enter(class)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if w == nil {
		a.waited(class, 0)
		return func() { a.leave(began) }, nil
	}
	timer := time.NewTimer(a.limits.QueueTime)
	defer timer.Stop()
	select {
	case <-w.ready:
	case <-timer.C:
		if a.forget(w, class) {
			return nil, retry(codes.ResourceExhausted, "waited too long in the queue", a.retryAfter(class))
		}
	case <-ctx.Done():
		if a.forget(w, class) {
			return nil, ctx.Err()
		}
	}
	<-w.ready // it had been given a slot, or refused, meanwhile
	if w.err != nil {
		return nil, w.err
	}
	a.waited(class, time.Since(began))
	began = time.Now()
	return func() { a.leave(began) }, nil
}

// enter takes a slot (nil waiter) or a place in the queue. Where that is full a
// disk key takes the place of the normal request that came last.
func (a *Admission) enter(class int) (*waiter, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running < a.limits.Concurrency { // then nobody waits: see fill
		a.running++
		return nil, nil
	}
	if a.queued() >= a.limits.Queue {
		youngest := a.waiting[normal].Back()
		if class != boot || youngest == nil {
			return nil, retry(codes.ResourceExhausted, "queue is full", a.wait(class))
		}
		d := a.waiting[normal].Remove(youngest).(*waiter)
		d.err = retry(codes.ResourceExhausted, "queue is full", a.wait(normal))
		close(d.ready)
		a.displaced++
	}
	w := &waiter{ready: make(chan struct{})}
	a.waiting[class].PushBack(w)
	return w, nil
}

// leave gives a slot back.
func (a *Admission) leave(began time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running--
	a.took += (time.Since(began) - a.took) / 16
	a.fill()
}

// fill gives a slot that became free to who waits: disk keys first, but not for ever. a.mu is held.
func (a *Admission) fill() {
	for a.running < a.limits.Concurrency && a.queued() > 0 {
		class := boot
		if a.waiting[boot].Len() == 0 || a.streak >= fair && a.waiting[normal].Len() > 0 {
			class = normal
		}
		if class == boot && a.waiting[normal].Len() > 0 {
			a.streak++
		} else {
			a.streak = 0
		}
		w := a.waiting[class].Remove(a.waiting[class].Front()).(*waiter)
		a.running++
		close(w.ready)
	}
}

// forget takes a waiter out of the queue, unless it is out already.
func (a *Admission) forget(w *waiter, class int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for e := a.waiting[class].Back(); e != nil; e = e.Prev() {
		if e.Value == w {
			a.waiting[class].Remove(e)
			return true
		}
	}
	return false
}

// queued is how many wait. a.mu is held.
func (a *Admission) queued() int { return a.waiting[normal].Len() + a.waiting[boot].Len() }

const (
	minBack = time.Second
	maxBack = time.Minute
)

// wait is when a request that found no place should come back: when those who
// wait will have been served and those who were refused before it will have
// come back, one for each slot that becomes free. Were all told the same, a
// fleet would come back at once and be refused again. Who would stand in that
// line for longer than maxBack comes back before, at a moment by chance. a.mu is held.
func (a *Admission) wait(class int) time.Duration {
	now, turn := time.Now(), a.took/time.Duration(a.limits.Concurrency)
	back := now.Add(max(turn*time.Duration(a.queued()+a.running), minBack))
	if next := a.back[class].Add(turn); next.After(back) {
		back = next
	}
	if latest := now.Add(maxBack); back.After(latest) {
		back = latest
		a.back[class] = back
		return maxBack/2 + rand.N(maxBack/2)
	}
	a.back[class] = back
	return back.Sub(now) + rand.N(minBack/4)
}

func (a *Admission) retryAfter(class int) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wait(class)
}

func (a *Admission) waited(class int, d time.Duration) {
	if a.Waited != nil {
		a.Waited(Classes()[class], d)
	}
}

// Waiting is how many releases are in the queue or running.
func (a *Admission) Waiting() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.queued() + a.running
}

// Away is how many wait for a vendor's service.
func (a *Admission) Away() int {
	n, _ := a.away.counts()
	return n
}

// Queued is how many of a class are in the queue, by its name.
func (a *Admission) Queued(class string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.waiting[slices.Index(Classes(), class)].Len()
}

// Displaced is how many lost their place in the queue to a disk key, ever.
func (a *Admission) Displaced() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.displaced
}

// peerAddr is the address of the connection's other end; the zero value if it is none of TCP/IP.
func peerAddr(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	return addrOf(p.Addr)
}
