package agent

import (
	"bytes"
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
// returns an error. The secret is wiped when on returns.
//
// Nothing but a denial ends a Watch: what a network, a clock, a device or a
// broker does wrong may pass, and the workload keeps what it has until then.
// Config.Trouble is told. The error wraps ErrDenied, or is ctx's.
func (c *Client) Watch(ctx context.Context, resources []string, on func(context.Context, Secret) error) error {
	return c.WatchWith(ctx, nil, resources, on)
}

// WatchWith is Watch with inputs (a CSR, a ciphertext), by resource. They are
// asked for whenever new evidence is made, which binds them; inputs may be nil.
func (c *Client) WatchWith(ctx context.Context, inputs func() (map[string][]byte, error), resources []string, on func(context.Context, Secret) error) error {
	if inputs == nil {
		inputs = func() (map[string][]byte, error) { return nil, nil }
	}
	if in, err := inputs(); err == nil {
		if err := checkInputs(resources, in); err != nil {
			return err // always the same: the caller's mistake
		}
	}
	w := &watcher{c: c, inputs: inputs, resources: resources, on: on, held: map[string]string{}, bad: map[string]bool{}, told: troubles{tell: c.cfg.Trouble}}
	c.cfg.Missing(nil)
	for {
		e, wait := c.brokers.pick(time.Now())
		if err := e.rest(ctx, wait, func() { c.cfg.Missing(e.last.get()) }); err != nil {
			return err
		}
		start := time.Now()
		err := w.stream(ctx, e)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if status.Code(err) == codes.PermissionDenied {
			err = deniedError{} // at the activation of a TPM, of which nothing is signed
		}
		if d, ok := errors.AsType[deniedError](err); ok {
			if d.id != "" || !w.begun {
				return err
			}
			// Whatever stands between us and the broker can say this: a proxy, with its 403.
			err = fmt.Errorf("%w: told that we are denied, without the pinned broker's signature", ErrNotOurBroker)
		}
		if time.Since(start) > healthy {
			c.brokers.worked(e)
		}
		c.brokers.failed(e, err, time.Now())
		err = c.explain(e, final(err))
		c.cfg.Logf("stream of %s ended: %v; coming back", e.address, err)
		if !errors.Is(err, errMoved) {
			w.told.about(fmt.Errorf("%s: %w", e.address, err))
		}
	}
}

// watcher is a session, over one stream after the other.
type watcher struct {
	c         *Client
	key       *seal.PrivateKey // the same for the whole session: the broker knows it again by it
	inputs    func() (map[string][]byte, error)
	resources []string
	on        func(context.Context, Secret) error
	told      troubles

	begun    bool // a session was there once: something runs
	session  string
	sequence uint64 // the highest accepted: an older version sent again is refused
	nonce    []byte // of the evidence that the broker last accepted
	identity []byte // pinned, as of this stream

	bad     map[string]bool // resources whose version last sent was not accepted
	retries int             // streams ended for that in a row

	mu   sync.Mutex
	held map[string]string // guarded by mu; acknowledged version by resource
}

// line is one stream.
type line struct {
	*watcher
	st    grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
	mu    sync.Mutex // serialises sends
	whole [32]byte   // guarded by mu; by what a denial names the evidence last sent
	slots map[string]chan Secret
}

func (w *watcher) stream(ctx context.Context, e *endpoint) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := w.begin(); err != nil {
		return err
	}
	ch, err := e.challenge(ctx, w.identity)
	if err != nil {
		return err
	}
	asked := ch.GetNonce() // answered by the next SessionStarted
	sub, err := w.subscription(ctx, e, asked, w.session, w.sequence)
	if err != nil {
		return err
	}
	st, err := e.rpc.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	l := &line{watcher: w, st: st, slots: map[string]chan Secret{}}
	// A broker that takes connections and answers nothing is as good as none.
	answered := time.AfterFunc(w.c.brokers.patience, func() { cancel(errSilent) })
	defer answered.Stop()
	// What a denial on this stream can be about: this, and what was sent last.
	var accepted [32]byte
	if err := l.subscribe(sub); err != nil {
		return err
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel(nil)
	for _, r := range w.resources {
		slot := make(chan Secret, 1)
		l.slots[r] = slot
		workers.Go(func() { l.work(ctx, slot) })
	}
	// A version that was not accepted is asked for again, by a new stream that does not list it.
	var again *time.Timer
	defer func() {
		if again != nil {
			again.Stop()
		}
	}()
	ended := false
	for {
		m, err := st.Recv()
		if ended && err == nil {
			continue // nothing comes after it
		}
		if cause := context.Cause(ctx); cause != nil && err != nil {
			return cause
		} else if ended || status.Code(err) == codes.PermissionDenied {
			return denied(w.identity, st.Trailer(), accepted, l.sent())
		} else if errors.Is(err, io.EOF) {
			return errMoved
		} else if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		switch {
		case m.GetSession() != nil:
			if err := w.started(m.GetSession().GetSessionId(), asked); err != nil {
				return err
			}
			accepted = l.sent()
			answered.Stop()
			asked = nil
			w.well()
		case m.GetSecret() != nil:
			s, err := w.open(m.GetSecret())
			if err != nil {
				// The others go on.
				w.bad[m.GetSecret().GetSecret().GetResource()] = true
				w.told.about(err)
				if again == nil {
					again = time.AfterFunc(pause(w.retries, badWait, maxBadWait), func() { cancel(err) })
					w.retries++
				}
				continue
			}
			delete(w.bad, s.Resource)
			w.well()
			l.deliver(s)
		case m.GetReattest() != nil:
			asked = m.GetReattest().GetNonce()
			// A device may take its time: new versions come meanwhile.
			nonce, session, sequence := asked, w.session, w.sequence
			workers.Go(func() {
				sub, err := w.subscription(ctx, e, nonce, session, sequence)
				if err == nil {
					answered.Reset(w.c.brokers.patience)
					err = l.subscribe(sub)
				}
				if err != nil {
					cancel(err)
				}
			})
		case m.GetEnded() != nil:
			switch m.GetEnded().GetReason() {
			case pb.EndReason_END_REASON_DENIED:
				ended = true // the proof follows
				answered.Reset(w.c.brokers.patience)
				continue
			case pb.EndReason_END_REASON_EXPIRED:
				w.session = ""
			}
			return errMoved
		}
	}
}

const (
	badWait    = 2 * time.Second
	maxBadWait = time.Minute
)

// errSilent: the stream is there, and no answer comes.
var errSilent = status.Error(codes.DeadlineExceeded, "no answer to the subscription")

// begin reads again what may have changed since the last stream.
func (w *watcher) begin() (err error) {
	if w.identity, err = w.c.pin(); err != nil {
		return err
	}
	if len(w.bad) > len(w.resources) { // nonsense
		clear(w.bad)
	}
	if w.key == nil {
		if w.key = w.c.cfg.Key; w.key == nil {
			if w.key, err = seal.GenerateKey(w.c.cfg.Suite); err != nil {
				return fmt.Errorf("agent: %w", err)
			}
		}
	}
	return nil
}

// started notes that the broker accepted evidence over a nonce. Sequences are
// the session's: a new one counts from the start again. That it is new, nobody
// signs; but what was sealed for the evidence before is refused from here on,
// so that no version sent before can be played again.
func (w *watcher) started(session string, asked []byte) error {
	if len(asked) == 0 || bytes.Equal(asked, w.nonce) {
		return errors.New("the broker starts a session without new evidence")
	}
	if session != w.session {
		w.sequence = 0
	}
	w.session, w.nonce, w.begun = session, asked, true
	return nil
}

// well: nothing is wrong any more.
func (w *watcher) well() {
	if len(w.bad) == 0 {
		w.retries = 0
		w.told.about(nil)
	}
}

// sent is by what a denial names the evidence last sent.
func (l *line) sent() [32]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.whole
}

// subscription is a Subscribe, and by what a denial names it.
type subscription struct {
	message *pb.Subscribe
	whole   [32]byte
}

// subscribe sends evidence.
func (l *line) subscribe(sub subscription) error {
	l.mu.Lock()
	l.whole = sub.whole
	l.mu.Unlock()
	if err := l.send(&pb.WatchRequest{Message: &pb.WatchRequest_Subscribe{Subscribe: sub.message}}); err != nil && !errors.Is(err, io.EOF) { // what Recv returns then says why
		return fmt.Errorf("subscribe: %w", err)
	}
	return nil
}

// subscription makes evidence over the nonce.
func (w *watcher) subscription(ctx context.Context, e *endpoint, nonce []byte, session string, sequence uint64) (subscription, error) {
	c := w.c
	offered := []string{string(c.cfg.Suite)}
	inputs, err := w.inputs()
	if err != nil {
		return subscription{}, err
	}
	if err := checkInputs(w.resources, inputs); err != nil {
		return subscription{}, err
	}
	bound, sent := withInputs(w.resources, inputs)
	ev, whole, err := c.evidence(ctx, e, attest.PurposeWatch, attest.Transcript{
		Nonce: nonce, BrokerID: sha256.Sum256(w.identity), KeyAlgorithm: string(c.cfg.Suite), PublicKey: w.key.Public(),
		OfferedSuites: offered, Resources: w.resources, Inputs: bound,
	})
	if err != nil {
		return subscription{}, err
	}
	sub := &pb.Subscribe{
		SessionId: session, Sequence: sequence,
		Request: &pb.ReleaseRequest{
			Nonce: nonce, KeyAlgorithm: string(c.cfg.Suite), PublicKey: w.key.Public(), OfferedSuites: offered, Resources: w.resources,
			Evidence: ev, Inputs: sent,
		},
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for r, v := range w.held {
		sub.Held = append(sub.Held, &pb.Held{Resource: r, Version: v})
	}
	return subscription{sub, whole}, nil
}

// open believes the pinned broker only, for this key and the last evidence, and nothing twice.
func (w *watcher) open(m *pb.SecretVersion) (s Secret, err error) {
	defer func() {
		if err != nil && !errors.Is(err, seal.ErrTime) {
			err = fmt.Errorf("%w: %w", ErrNotOurBroker, err)
		}
	}()
	resource := m.GetSecret().GetResource()
	if !slices.Contains(w.resources, resource) {
		return Secret{}, fmt.Errorf("%q was not asked for", resource)
	}
	st, err := seal.Open(w.key, m.GetSecret().GetJwe(), seal.Expect{
		Identity: w.identity, Resource: resource, Nonce: w.nonce, Now: w.c.cfg.Now(), Skew: w.c.cfg.Skew,
	})
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", resource, err)
	}
	s = secretOf(st)
	if st.Sequence <= w.sequence {
		s.Wipe()
		return Secret{}, fmt.Errorf("%s: an older version was sent again", resource)
	}
	if _, err := receiptBy(w.identity, m.GetReceipt(), st.Decision); err != nil {
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
			if ctx.Err() == nil {
				l.c.cfg.Logf("%s version %s not taken: %v; trying again in %s", s.Resource, s.Version, err, wait.Round(time.Millisecond))
			}
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
