package brokertest

import (
	"context"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// road is the way to a broker, which can be cut, mended and blocked.
type road struct {
	Addr   string
	to     string
	frozen chan struct{} // closed: nothing passes any more, and nobody is told

	mu    sync.Mutex
	cut   bool                  // guarded by mu
	conns map[net.Conn]struct{} // guarded by mu
}

func newRoad(t *testing.T, b *Broker) *road {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to, _, _ := b.Server.Addresses()
	r := &road{Addr: l.Addr().String(), to: to, frozen: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.carry(c)
		}
	}()
	t.Cleanup(func() { l.Close(); r.set(true) })
	return r
}

func (r *road) carry(c net.Conn) {
	r.mu.Lock()
	to := r.to
	r.mu.Unlock()
	up, err := net.Dial("tcp", to)
	if err != nil {
		c.Close()
		return
	}
	r.mu.Lock()
	closed := r.cut
	r.conns[c], r.conns[up] = struct{}{}, struct{}{}
	r.mu.Unlock()
	if closed {
		c.Close()
		up.Close()
		return
	}
	pipe := func(dst, src net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			select {
			case <-r.frozen:
				return // both connections stay as they are
			default:
			}
			if n > 0 {
				_, _ = dst.Write(buf[:n])
			}
			if err != nil {
				dst.Close()
				return
			}
		}
	}
	go pipe(c, up)
	pipe(up, c)
}

// set cuts the road, or mends it.
func (r *road) set(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut = cut; cut {
		for c := range r.conns {
			c.Close()
		}
		clear(r.conns)
	}
}

// trouble is what a client says of its watch.
type trouble struct {
	mu   sync.Mutex
	said []error // nil: over; guarded by mu
}

func (t *trouble) tell(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.said = append(t.said, err)
}

func (t *trouble) about(text string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, err := range t.said {
		if err != nil && strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

func (t *trouble) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.said) > 0 && t.said[len(t.said)-1] == nil
}

func (b *Broker) sessions(t *testing.T) []*pb.Session {
	t.Helper()
	all, err := b.Admin.ListSessions(t.Context(), &pb.ListSessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return all.GetSessions()
}

// TestOutageLongerThanResume: the guest comes back to a new session. What did
// not change is not sent again, and what did is taken, from the first of the new sequence on.
func TestOutageLongerThanResume(t *testing.T) {
	for name, rotate := range map[string]bool{"rotated meanwhile": true, "unchanged": false} {
		t.Run(name, func(t *testing.T) {
			b := Start(t, func(c *server.Config) { c.Sessions.Resume = server.Duration(time.Second) })
			r, says := newRoad(t, b), &trouble{}
			cfg := b.clientConfig(t, teesim.ReportOptions{}, r.Addr)
			cfg.Trouble = says.tell
			c, err := agent.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b.put(t, "db/orders", "one")
			b.put(t, "db/users", "one")
			g := watch(t, c, "db/orders", "db/users")
			g.next(t, 10*time.Second)
			g.next(t, 10*time.Second)
			for _, v := range []string{"two", "three"} { // the old session's sequence is above all of the new one's
				b.put(t, "db/orders", v)
				g.next(t, 10*time.Second)
			}
			old := b.sessions(t)[0].GetId()
			r.set(true)
			eventually(t, "the session ends", func() bool { return len(b.sessions(t)) == 0 })
			eventually(t, "the guest says why", func() bool { return says.about(r.Addr) })
			if rotate {
				b.put(t, "db/orders", "four")
			}
			r.set(false)
			if rotate {
				if s := g.next(t, 20*time.Second); string(s.Value) != "four" {
					t.Errorf("got %q", s.Value)
				}
			}
			eventually(t, "a new session", func() bool { s := b.sessions(t); return len(s) == 1 && s[0].GetId() != old })
			eventually(t, "the guest says that it is over", says.over)
			g.quiet(t, time.Second)
			b.put(t, "db/orders", "five")
			if s := g.next(t, 10*time.Second); string(s.Value) != "five" {
				t.Errorf("got %q", s.Value)
			}
		})
	}
}

// TestClockThatIsWrongForAWhile: what is not of its time by the guest's clock is told and asked for again.
func TestClockThatIsWrongForAWhile(t *testing.T) {
	b := Start(t, nil)
	addr, _, _ := b.Server.Addresses()
	cfg := b.clientConfig(t, teesim.ReportOptions{}, addr)
	var behind atomic.Int64
	says := &trouble{}
	// An hour is within the lifetime of the broker's certificate.
	cfg.Now, cfg.Trouble = func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }, says.tell
	cfg.TLS.Time = time.Now
	c, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b.put(t, "db/orders", "one")
	g := watch(t, c, "db/orders")
	g.next(t, 10*time.Second)
	behind.Store(int64(10 * time.Minute))
	b.put(t, "db/orders", "two")
	eventually(t, "the guest asks after its clock", func() bool { return says.about("is the clock slow?") })
	behind.Store(0)
	if s := g.next(t, 30*time.Second); string(s.Value) != "two" {
		t.Errorf("got %q", s.Value)
	}
	eventually(t, "it is over", says.over)
}

// TestVersionBeingTakenIsGivenAgain when the stream ends under it.
func TestVersionBeingTakenIsGivenAgain(t *testing.T) {
	b := Start(t, nil)
	c := b.Client(t, teesim.ReportOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var calls atomic.Int32
	got := make(chan int32, 8)
	go c.Watch(ctx, []string{"db/orders"}, func(ctx context.Context, s agent.Secret) error {
		n := calls.Add(1)
		got <- n
		if n == 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	for range 2 {
		select {
		case n := <-got:
			if n == 1 {
				b.Server.Drain()
			}
		case <-time.After(time.Minute):
			t.Fatalf("given %d times", calls.Load())
		}
	}
}

// TestFrozenRoad: a peer whose connection lives and that says nothing is left
// for another broker, before the broker itself gives the guest up.
func TestFrozenRoad(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a keepalive")
	}
	t.Parallel()
	b := Start(t, nil)
	freezes, open := newRoad(t, b), newRoad(t, b)
	open.set(true) // until the guest is on the other
	c, err := agent.New(b.clientConfig(t, teesim.ReportOptions{}, freezes.Addr+","+open.Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g := watch(t, c, "db/orders")
	g.next(t, 20*time.Second)
	open.set(false)
	close(freezes.frozen)
	b.put(t, "db/orders", "rotated")
	if s := g.next(t, 45*time.Second); string(s.Value) != "rotated" {
		t.Errorf("got %q", s.Value)
	}
}

// TestRootsOfToday: a running watch comes back over a certificate of a CA that it learnt of meanwhile.
func TestRootsOfToday(t *testing.T) {
	b := Start(t, nil)
	r := newRoad(t, b)
	cfg := b.clientConfig(t, teesim.ReportOptions{}, r.Addr)
	right := cfg.TLS.RootCAs
	var known atomic.Pointer[x509.CertPool]
	known.Store(right)
	cfg.Roots = known.Load
	says := &trouble{}
	cfg.Trouble = says.tell
	c, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b.put(t, "db/orders", "one")
	g := watch(t, c, "db/orders")
	g.next(t, 10*time.Second)
	known.Store(x509.NewCertPool())
	r.set(true)
	r.set(false)
	eventually(t, "the broker's certificate is unknown", func() bool { return says.about("unknown authority") })
	b.put(t, "db/orders", "two")
	known.Store(right)
	if s := g.next(t, 20*time.Second); string(s.Value) != "two" {
		t.Errorf("got %q", s.Value)
	}
}

// TestNonsense: whatever answers in a broker's place, or in its name, ends no watch.
func TestNonsense(t *testing.T) {
	b := Start(t, nil)
	r, says := newRoad(t, b), &trouble{}
	cfg := b.clientConfig(t, teesim.ReportOptions{}, r.Addr)
	cfg.Trouble = says.tell
	c, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b.put(t, "db/orders", "one")
	g := watch(t, c, "db/orders")
	g.next(t, 10*time.Second)
	good := r.to
	for name, answer := range map[string]string{
		"silence": "", "HTTP": "HTTP/1.1 403 Forbidden\r\n\r\n", "noise": "\x00\xff\x16\x03\x03nonsense",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan struct{}, 100)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				asked <- struct{}{}
				_, _ = io.WriteString(c, answer)
				c.Close()
			}
		}()
		r.set(true)
		r.mu.Lock()
		r.to, r.cut = l.Addr().String(), false
		r.mu.Unlock()
		for range 2 {
			select {
			case <-asked:
			case err := <-g.done:
				t.Fatalf("%s: the watch ended: %v", name, err)
			case <-time.After(time.Minute):
				t.Fatalf("%s: nobody asks again", name)
			}
		}
		l.Close()
	}
	r.set(true)
	r.mu.Lock()
	r.to, r.cut = good, false
	r.mu.Unlock()
	b.put(t, "db/orders", "two")
	if s := g.next(t, 30*time.Second); string(s.Value) != "two" {
		t.Errorf("got %q", s.Value)
	}
	select {
	case err := <-g.done:
		t.Errorf("the watch ended: %v", err)
	default:
	}
}

// stalling is a device that does not answer at its second call until let go of.
type stalling struct {
	agent.Device
	calls   atomic.Int64
	release chan struct{}
}

func (s *stalling) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	if s.calls.Add(1) == 2 {
		<-s.release
	}
	return s.Device.Evidence(ctx, t)
}

// TestRotationWhileTheDeviceIsSlow: a guest that was asked for new evidence, and
// whose device takes its time, gets new versions meanwhile.
func TestRotationWhileTheDeviceIsSlow(t *testing.T) {
	b := Start(t, nil)
	b.put(t, "db/orders", "one")
	d := &stalling{Device: b.Device(teesim.ReportOptions{}), release: make(chan struct{})}
	g := watch(t, b.clientOf(t, d), "db/orders")
	if s := g.next(t, 10*time.Second); string(s.Value) != "one" {
		t.Fatalf("got %q", s.Value)
	}
	file := filepath.Join(b.Env.Config.Policy.Dir, "disks", "disks.rego")
	policy, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(policy, "\ndeny contains \"closed\" if input.resource.path == \"closed\"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	awaited(t, time.Minute, "the guest is asked for new evidence", func() bool { return d.calls.Load() == 2 })
	b.put(t, "db/orders", "two")
	if s := g.next(t, 10*time.Second); string(s.Value) != "two" {
		t.Fatalf("got %q", s.Value)
	}
	close(d.release)
	b.put(t, "db/orders", "three")
	if s := g.next(t, 10*time.Second); string(s.Value) != "three" {
		t.Fatalf("got %q", s.Value)
	}
	if n := d.calls.Load(); n != 2 {
		t.Errorf("attested %d times: the stream broke", n)
	}
}
