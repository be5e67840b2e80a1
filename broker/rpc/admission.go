package rpc

import (
	"container/list"
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
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

// GuestPatience is how long an agent that knows other brokers waits for an
// answer of this one. Who waits longer in a queue than his guest does is served in vain.
const GuestPatience = 15 * time.Second

// maxPeers bounds the memory for addresses; the least recently seen are forgotten.
const maxPeers = 65536

// Admission holds the limits. Disk keys (entries with priority boot) go before
// everything else: machines that wait for them cannot do anything.
type Admission struct {
	limits Limits
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
	peers     map[string]*list.Element // guarded by mu
	lru       *list.List               // of peerLimit, the newest in front; guarded by mu
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

type peerLimit struct {
	addr string
	lim  *rate.Limiter
}

// NewAdmission makes an interceptor's state. isBoot says which resources are disk keys; nil: none.
func NewAdmission(l Limits, isBoot func(resource string) bool) *Admission {
	return &Admission{limits: l, boot: isBoot, waiting: [2]*list.List{list.New(), list.New()}, peers: map[string]*list.Element{}, lru: list.New()}
}

// Intercept refuses with RESOURCE_EXHAUSTED and RetryInfo what is over a limit.
func (a *Admission) Intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if d := a.peerDelay(ctx); d > 0 {
		return nil, retry(codes.ResourceExhausted, "too many requests from this address", d)
	}
	class := normal
	switch info.FullMethod {
	case pb.KeyBroker_Release_FullMethodName:
		if r, ok := req.(*pb.ReleaseRequest); ok {
			class = a.class(r.GetResources())
		}
	case pb.KeyBroker_ActivateTPM_FullMethodName: // the step before a machine's disk key
		class = boot
	case pb.KeyBroker_Attest_FullMethodName:
	default:
		return next(ctx, req)
	}
	release, err := a.slot(ctx, class)
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
	release, err := s.a.slot(s.Context(), normal)
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
	if a.running < a.limits.Concurrency && a.queued() == 0 {
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
	a.fill()
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

// fill gives free slots to those who wait: disk keys first, but not for ever. a.mu is held.
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

func (a *Admission) peerDelay(ctx context.Context) time.Duration {
	if a.limits.PeerRate <= 0 {
		return 0
	}
	addr := "unknown"
	if p, ok := peer.FromContext(ctx); ok {
		addr = p.Addr.String()
	}
	if ip := peerAddr(ctx); ip.IsValid() {
		addr = ip.String()
	}
	r := a.limiter(addr).Reserve()
	d := r.Delay()
	if d > 0 {
		r.Cancel()
	}
	return d
}

// peerAddr is the address of the connection's other end; the zero value if it is none of TCP/IP.
func peerAddr(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
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
