package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// errMoved ends a stream that another broker, or this one later, goes on with.
var errMoved = errors.New("the broker ended the stream")

// healthy is how long a stream must have lasted for the next failure to count as the first.
const healthy = 30 * time.Second

// Watch attests once and calls on with each new version of each resource,
// until ctx ends or the broker says no. It re-attests when asked, and comes
// back with jitter when the stream breaks, going on where it was: no version is
// lost, none is given twice. on runs on one goroutine per resource; the version
// is acknowledged when it returns nil, and given again after a while if it
// returns an error. The secret is wiped when on returns. An error of Watch is
// final: it wraps ErrDenied, ErrRefused or ErrNotOurBroker, or is ctx's.
func (c *Client) Watch(ctx context.Context, resources []string, on func(context.Context, Secret) error) error {
	key := c.cfg.Key
	if key == nil {
		var err error
		if key, err = seal.GenerateKey(c.cfg.Suite); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
	}
	w := &watcher{c: c, key: key, resources: resources, on: on, held: map[string]string{}}
	c.cfg.Missing(nil)
	for {
		e, wait := c.brokers.pick(time.Now())
		if err := e.rest(ctx, wait, func() { c.cfg.Missing(e.last.get()) }); err != nil {
			return err
		}
		start := c.cfg.Now()
		err := w.stream(ctx, e)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if c.cfg.Now().Sub(start) > healthy {
			c.brokers.worked(e)
		}
		if !c.brokers.failed(e, err, time.Now()) {
			return final(err)
		}
		c.cfg.Logf("stream of %s ended: %v; coming back", e.address, c.explain(e, err))
	}
}

// watcher is a session, over one stream after the other.
type watcher struct {
	c         *Client
	key       *seal.PrivateKey // the same for the whole session: the broker knows it again by it
	resources []string
	on        func(context.Context, Secret) error

	session  string
	sequence uint64 // the highest accepted: an older version sent again is refused
	nonce    []byte // of the evidence that the broker last accepted

	mu   sync.Mutex
	held map[string]string // guarded by mu; acknowledged version by resource
}

// line is one stream.
type line struct {
	*watcher
	st    grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
	mu    sync.Mutex // serialises sends
	slots map[string]chan Secret
}

func (w *watcher) stream(ctx context.Context, e *endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := e.challenge(ctx)
	if err != nil {
		return err
	}
	st, err := e.rpc.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	l := &line{watcher: w, st: st, slots: map[string]chan Secret{}}
	sub, err := w.subscription(ctx, e, ch.GetNonce())
	if err != nil {
		return err
	}
	if err := l.send(&pb.WatchRequest{Message: &pb.WatchRequest_Subscribe{Subscribe: sub}}); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	for _, r := range w.resources {
		slot := make(chan Secret, 1)
		l.slots[r] = slot
		workers.Go(func() { l.work(ctx, slot) })
	}
	asked := ch.GetNonce() // answered by the next SessionStarted
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return errMoved
		} else if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		switch {
		case m.GetSession() != nil:
			w.session, w.nonce = m.GetSession().GetSessionId(), asked
		case m.GetSecret() != nil:
			s, err := w.open(m.GetSecret())
			if err != nil {
				return permanent{fmt.Errorf("%w: %w", ErrNotOurBroker, err)}
			}
			l.deliver(s)
		case m.GetReattest() != nil:
			asked = m.GetReattest().GetNonce()
			sub, err := w.subscription(ctx, e, asked)
			if err != nil {
				return err
			}
			if err := l.send(&pb.WatchRequest{Message: &pb.WatchRequest_Subscribe{Subscribe: sub}}); err != nil {
				return fmt.Errorf("re-attest: %w", err)
			}
		case m.GetEnded() != nil:
			switch m.GetEnded().GetReason() {
			case pb.EndReason_END_REASON_DENIED:
				return status.Error(codes.PermissionDenied, "the session was denied")
			case pb.EndReason_END_REASON_EXPIRED:
				w.session = ""
			}
			return errMoved
		}
	}
}

// subscription makes evidence over the nonce.
func (w *watcher) subscription(ctx context.Context, e *endpoint, nonce []byte) (*pb.Subscribe, error) {
	c := w.c
	offered := []string{string(c.cfg.Suite)}
	ev, err := c.evidence(ctx, e, attest.Transcript{
		Nonce: nonce, BrokerID: sha256.Sum256(c.cfg.Identity), KeyAlgorithm: string(c.cfg.Suite), PublicKey: w.key.Public(),
		OfferedSuites: offered, Resources: w.resources,
	})
	if err != nil {
		return nil, err
	}
	sub := &pb.Subscribe{
		SessionId: w.session, Sequence: w.sequence,
		Request: &pb.ReleaseRequest{
			Nonce: nonce, KeyAlgorithm: string(c.cfg.Suite), PublicKey: w.key.Public(), OfferedSuites: offered, Resources: w.resources,
			Evidence: ev,
		},
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for r, v := range w.held {
		sub.Held = append(sub.Held, &pb.Held{Resource: r, Version: v})
	}
	return sub, nil
}

// open believes the pinned broker only, for this key and the last evidence, and nothing twice.
func (w *watcher) open(m *pb.SecretVersion) (Secret, error) {
	resource := m.GetSecret().GetResource()
	if !slices.Contains(w.resources, resource) {
		return Secret{}, fmt.Errorf("%q was not asked for", resource)
	}
	st, err := seal.Open(w.key, m.GetSecret().GetJwe(), seal.Expect{
		Identity: w.c.cfg.Identity, Resource: resource, Nonce: w.nonce, Now: w.c.cfg.Now(), Skew: w.c.cfg.Skew,
	})
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", resource, err)
	}
	s := secretOf(st)
	if st.Sequence <= w.sequence {
		s.Wipe()
		return Secret{}, fmt.Errorf("%s: an older version was sent again", resource)
	}
	if _, err := w.c.receipt(m.GetReceipt(), st.Decision); err != nil {
		s.Wipe()
		return Secret{}, fmt.Errorf("%s: receipt: %w", resource, err)
	}
	w.sequence = st.Sequence
	if t := m.GetPreviousRetiresAt(); t != nil {
		s.PreviousRetires = t.AsTime()
	}
	return s, nil
}

// deliver hands the version to the resource's worker, in place of one that it has not taken yet.
func (l *line) deliver(s Secret) {
	slot := l.slots[s.Resource]
	for {
		select {
		case slot <- s:
			return
		default:
		}
		select {
		case old := <-slot:
			old.Wipe()
		default:
		}
	}
}

// work gives one resource's versions to the callback.
func (l *line) work(ctx context.Context, slot chan Secret) {
	for {
		var s Secret
		select {
		case s = <-slot:
		case <-ctx.Done():
			return
		}
		for attempt := 0; ; attempt++ {
			err := l.on(ctx, s)
			if err == nil {
				break
			}
			wait, _ := backoff(status.Error(codes.Unavailable, ""), attempt)
			l.c.cfg.Logf("%s version %s not taken: %v; trying again in %s", s.Resource, s.Version, err, wait.Round(time.Millisecond))
			newer := len(slot) > 0
			if newer || sleep(ctx, wait) != nil || len(slot) > 0 {
				s.Wipe()
				s = Secret{}
				break
			}
		}
		if s.Resource == "" {
			continue
		}
		l.watcher.mu.Lock()
		l.held[s.Resource] = s.Version
		l.watcher.mu.Unlock()
		version, resource := s.Version, s.Resource
		s.Wipe()
		// If this fails the stream is broken, and the next one says what is held.
		_ = l.send(&pb.WatchRequest{Message: &pb.WatchRequest_Acknowledge{Acknowledge: &pb.Acknowledge{Resource: resource, Version: version}}})
	}
}

func (l *line) send(m *pb.WatchRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st.Send(m)
}
