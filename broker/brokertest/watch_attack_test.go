package brokertest

import (
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// raw is a hand-made guest that can break every rule.
type raw struct {
	t  *testing.T
	b  *Broker
	st grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
}

func rawWatch(t *testing.T, b *Broker) *raw {
	t.Helper()
	st, err := b.Workload.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &raw{t, b, st}
}

// request is a good request with this key over this nonce (nil: a new one).
func (r *raw) request(key *seal.PrivateKey, nonce []byte, resources ...string) *pb.ReleaseRequest {
	r.t.Helper()
	if nonce == nil {
		ch, err := r.b.Workload.Challenge(r.t.Context(), &pb.ChallengeRequest{})
		if err != nil {
			r.t.Fatal(err)
		}
		nonce = ch.GetNonce()
	}
	suites := []string{string(key.Suite())}
	ev, err := r.b.Device(teesim.ReportOptions{}).Evidence(r.t.Context(), attest.Transcript{
		Nonce: nonce, BrokerID: sha256.Sum256(r.b.Server.Identity()), KeyAlgorithm: suites[0], PublicKey: key.Public(), OfferedSuites: suites, Resources: resources,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return &pb.ReleaseRequest{
		Nonce: nonce, KeyAlgorithm: suites[0], PublicKey: key.Public(), OfferedSuites: suites, Resources: resources,
		Evidence: []*pb.Evidence{{Type: string(ev.Type), Report: ev.Report, Endorsements: ev.Endorsements}},
	}
}

func (r *raw) subscribe(s *pb.Subscribe) {
	r.t.Helper()
	if err := r.st.Send(&pb.WatchRequest{Message: &pb.WatchRequest_Subscribe{Subscribe: s}}); err != nil && !errors.Is(err, io.EOF) {
		r.t.Fatal(err)
	}
}

func (r *raw) recv() *pb.WatchResponse {
	r.t.Helper()
	m, err := r.st.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// refused wants the stream to end with this code.
func (r *raw) refused(want codes.Code) {
	r.t.Helper()
	m, err := r.st.Recv()
	if err == nil {
		r.t.Fatalf("was sent %v", m)
	}
	if got := status.Code(err); got != want {
		r.t.Errorf("code %s (%v), want %s", got, err, want)
	}
}

func newKey(t *testing.T) *seal.PrivateKey {
	t.Helper()
	k, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestWatchBadMessages: what breaks the protocol ends the stream with a clear code and starts no session.
func TestWatchBadMessages(t *testing.T) {
	b := Start(t, nil)
	ack := &pb.WatchRequest{Message: &pb.WatchRequest_Acknowledge{Acknowledge: &pb.Acknowledge{Resource: "db/orders", Version: "1"}}}
	for name, first := range map[string]*pb.WatchRequest{
		"acknowledges before it subscribed": ack,
		"empty":                             {},
		"no request":                        {Message: &pb.WatchRequest_Subscribe{Subscribe: &pb.Subscribe{}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := rawWatch(t, b)
			if err := r.st.Send(first); err != nil {
				t.Fatal(err)
			}
			r.refused(codes.InvalidArgument)
		})
	}
	t.Run("a spent nonce", func(t *testing.T) {
		r, again := rawWatch(t, b), rawWatch(t, b)
		req := r.request(newKey(t), nil, "db/orders")
		r.subscribe(&pb.Subscribe{Request: req})
		if r.recv().GetSession() == nil {
			t.Fatal("no session")
		}
		again.subscribe(&pb.Subscribe{Request: req})
		again.refused(codes.FailedPrecondition)
	})
	t.Run("evidence for other resources", func(t *testing.T) {
		r := rawWatch(t, b)
		req := r.request(newKey(t), nil, "db/orders")
		req.Resources = []string{"db/users"}
		r.subscribe(&pb.Subscribe{Request: req})
		r.refused(codes.PermissionDenied)
	})
	t.Run("acknowledges what it does not watch", func(t *testing.T) {
		r := rawWatch(t, b)
		r.subscribe(&pb.Subscribe{Request: r.request(newKey(t), nil, "db/orders")})
		r.recv()
		r.recv()
		if err := r.st.Send(&pb.WatchRequest{Message: &pb.WatchRequest_Acknowledge{Acknowledge: &pb.Acknowledge{Resource: "db/users", Version: "1"}}}); err != nil {
			t.Fatal(err)
		}
		if m := r.recv(); m.GetEnded() == nil {
			t.Errorf("got %v", m)
		}
	})
}

// TestSessionIsNotStolen: who knows a session's id but has not its attested key gets a session of its own.
func TestSessionIsNotStolen(t *testing.T) {
	b := Start(t, nil)
	victim := rawWatch(t, b)
	key := newKey(t)
	victim.subscribe(&pb.Subscribe{Request: victim.request(key, nil, "db/orders")})
	id := victim.recv().GetSession().GetSessionId()
	thief := rawWatch(t, b)
	thief.subscribe(&pb.Subscribe{Request: thief.request(newKey(t), nil, "db/orders"), SessionId: id})
	if s := thief.recv().GetSession(); s.GetResumed() || s.GetSessionId() == id {
		t.Errorf("the thief got session %v", s)
	}
	// The owner itself, with other resources, does not go on with it either: policy decided about others.
	wider := rawWatch(t, b)
	wider.subscribe(&pb.Subscribe{Request: wider.request(key, nil, "db/orders", "disks/vm-1"), SessionId: id})
	if s := wider.recv().GetSession(); s.GetResumed() {
		t.Errorf("resumed with more resources: %v", s)
	}
	owner := rawWatch(t, b)
	owner.subscribe(&pb.Subscribe{Request: owner.request(key, nil, "db/orders"), SessionId: id})
	if s := owner.recv().GetSession(); !s.GetResumed() || s.GetSessionId() != id {
		t.Errorf("the owner got %v", s)
	}
}

// TestReattestWithAnotherKey: within a session the key stays.
func TestReattestWithAnotherKey(t *testing.T) {
	b := Start(t, func(c *server.Config) { c.Sessions.TTL = server.Duration(1500 * time.Millisecond) })
	for name, change := range map[string]func(r *raw, nonce []byte) *pb.ReleaseRequest{
		"key":       func(r *raw, nonce []byte) *pb.ReleaseRequest { return r.request(newKey(t), nonce, "db/orders") },
		"resources": func(r *raw, nonce []byte) *pb.ReleaseRequest { return r.request(newKey(t), nonce, "db/users") },
		"evidence": func(r *raw, nonce []byte) *pb.ReleaseRequest {
			q := r.request(newKey(t), nonce, "db/orders")
			q.Evidence[0].Report[100] ^= 1
			return q
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := rawWatch(t, b)
			r.subscribe(&pb.Subscribe{Request: r.request(newKey(t), nil, "db/orders")})
			r.recv()
			r.recv()
			ask := r.recv().GetReattest()
			if ask == nil || ask.GetReason() != pb.ReattestReason_REATTEST_REASON_EXPIRES {
				t.Fatalf("got %v", ask)
			}
			r.subscribe(&pb.Subscribe{Request: change(r, ask.GetNonce())})
			if e := r.recv().GetEnded(); e.GetReason() != pb.EndReason_END_REASON_DENIED {
				t.Errorf("got %v", e)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		r := rawWatch(t, b)
		r.subscribe(&pb.Subscribe{Request: r.request(newKey(t), nil, "db/orders")})
		r.recv()
		r.recv()
		if r.recv().GetReattest() == nil {
			t.Fatal("not asked to re-attest")
		}
		if e := r.recv().GetEnded(); e.GetReason() != pb.EndReason_END_REASON_EXPIRED {
			t.Errorf("got %v", e)
		}
		eventually(t, "the session is forgotten", func() bool { return len(b.holders(t, "db/orders").GetHolders()) == 0 })
	})
}

// TestSlowGuestDisturbsNobody: one that reads nothing holds up no other.
func TestSlowGuestDisturbsNobody(t *testing.T) {
	b := Start(t, nil)
	slow := rawWatch(t, b)
	slow.subscribe(&pb.Subscribe{Request: slow.request(newKey(t), nil, "db/orders")})
	g := watch(t, b.Client(t, teesim.ReportOptions{}), "db/orders")
	g.next(t, 10*time.Second)
	big := string(make([]byte, 48<<10))
	for i := range 10 { // more than the slow one's flow-control window
		b.put(t, "db/orders", string(rune('a'+i))+big)
		if s := g.next(t, 3*time.Second); s.Value[0] != byte('a'+i) {
			t.Fatalf("got %q", s.Value[0])
		}
	}
}
