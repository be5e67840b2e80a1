package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// session is one stream, as the broker sees it.
type session struct {
	s  *sealing
	st grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
	// subscribe is the one answered last.
	subscribe *pb.Subscribe
	begun     time.Time
}

// Watch plays the streams one after the other.
func (s *sealing) Watch(st grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	n := len(s.sessions)
	ses := &session{s: s, st: st, begun: time.Now()}
	s.sessions = append(s.sessions, ses)
	m, err := st.Recv()
	if err != nil {
		return err
	}
	ses.subscribe = m.GetSubscribe()
	return s.streams[min(n, len(s.streams)-1)](ses)
}

func (x *session) send(m *pb.WatchResponse) {
	if err := x.st.Send(m); err != nil {
		x.s.t.Errorf("send %v: %v", m, err)
	}
}

func (x *session) start(id string) {
	x.send(&pb.WatchResponse{Message: &pb.WatchResponse_Session{Session: &pb.SessionStarted{SessionId: id}}})
}

func (x *session) end(why pb.EndReason) {
	x.send(&pb.WatchResponse{Message: &pb.WatchResponse_Ended{Ended: &pb.SessionEnded{Reason: why}}})
}

// version sends one, with what change makes of it.
func (x *session) version(resource string, sequence uint64, version string, change ...func(*seal.Statement)) {
	x.s.change = func(a *answer) {
		a.secrets = slices.DeleteFunc(a.secrets, func(st seal.Statement) bool { return st.Resource != resource })
		a.secrets[0].Sequence, a.secrets[0].Version = sequence, version
		for _, f := range change {
			f(&a.secrets[0])
		}
	}
	resp, err := x.s.answer(x.subscribe.GetRequest())
	if err != nil {
		x.s.t.Errorf("seal %s: %v", resource, err)
		return
	}
	m := &pb.SecretVersion{Secret: resp.GetSecrets()[0], Receipt: resp.GetReceipt()}
	if version == "retiring" {
		m.PreviousRetiresAt = timestamppb.New(time.Unix(1000, 0))
	}
	x.send(&pb.WatchResponse{Message: &pb.WatchResponse_Secret{Secret: m}})
}

// ask asks for new evidence, and waits for it.
func (x *session) ask(nonce string) {
	x.send(&pb.WatchResponse{Message: &pb.WatchResponse_Reattest{Reattest: &pb.ReattestRequired{Nonce: []byte(nonce)}}})
	m, err := x.st.Recv()
	if err != nil || m.GetSubscribe() == nil || string(m.GetSubscribe().GetRequest().GetNonce()) != nonce {
		x.s.t.Errorf("asked for evidence over %q, got %v, %v", nonce, m, err)
		return
	}
	x.subscribe = m.GetSubscribe()
}

// acknowledged waits for what is taken: "resource version", of so many.
func (x *session) acknowledged(want ...string) {
	var got []string
	for range want {
		m, err := x.st.Recv()
		if err != nil {
			x.s.t.Errorf("acknowledged %q, then %v", got, err)
			return
		}
		got = append(got, m.GetAcknowledge().GetResource()+" "+m.GetAcknowledge().GetVersion())
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		x.s.t.Errorf("acknowledged %q, want %q", got, want)
	}
}

// says is what the subscription is to go on with.
func (x *session) says(id string, sequence uint64, held map[string]string) {
	got := map[string]string{}
	for _, h := range x.subscribe.GetHeld() {
		got[h.GetResource()] = h.GetVersion()
	}
	if x.subscribe.GetSessionId() != id || x.subscribe.GetSequence() != sequence || !maps.Equal(got, held) {
		x.s.t.Errorf("stream %d goes on with session %q, sequence %d, held %v; want %q, %d, %v", len(x.s.sessions), x.subscribe.GetSessionId(), x.subscribe.GetSequence(), got, id, sequence, held)
	}
}

// watched is a client in a Watch of a and b, and what becomes of it.
type watched struct {
	*sealing
	c       *Client
	inputs  func() (map[string][]byte, error)
	on      func(context.Context, Secret) error
	end     context.CancelFunc
	said    *[]attest.Transcript
	missing int

	mu   sync.Mutex
	told []string // guarded by mu; what Trouble is told, "" for nil
	took []Secret // guarded by mu
	errs []error  // guarded by mu; as told
}

// watch plays the streams (the last one again and again), in a bubble of its own where time
// passes as soon as everybody waits, and returns how the Watch ended. Only w.end ends one that goes well.
func watch(t *testing.T, setup func(w *watched), streams ...func(w *watched, x *session) error) (w *watched, ended error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, s, said := sealed(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w = &watched{sealing: s, c: c, end: cancel, said: said}
		w.on = func(_ context.Context, s Secret) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			s.Value = bytes.Clone(s.Value)
			w.took = append(w.took, s)
			return nil
		}
		c.cfg.Trouble = func(err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.errs = append(w.errs, err)
			if err == nil {
				w.told = append(w.told, "")
			} else {
				w.told = append(w.told, err.Error())
			}
		}
		c.cfg.Missing = func(error) string {
			if w.missing++; w.missing == 1 && s.nonces > 0 {
				t.Error("asked what is missing only after the broker")
			}
			return ""
		}
		for _, f := range streams {
			s.streams = append(s.streams, func(x *session) error { return f(w, x) })
		}
		if setup != nil {
			setup(w)
		}
		ended = c.WatchWith(ctx, w.inputs, []string{"a", "b"}, func(ctx context.Context, s Secret) error { return w.on(ctx, s) })
		if w.missing == 0 {
			t.Error("nobody asked what is missing")
		}
	})
	return w, ended
}

// done ends the Watch, once all has been said.
func done(w *watched, x *session) error {
	synctest.Wait()
	w.end()
	<-x.st.Context().Done()
	return nil
}

// TestSessionGoesOn through new evidence and over streams: same key, same session, nothing lost.
func TestSessionGoesOn(t *testing.T) {
	var key []byte
	w, err := watch(t, func(w *watched) {
		w.inputs = func() (map[string][]byte, error) { return map[string][]byte{"b": []byte("csr")}, nil }
	}, func(w *watched, x *session) error {
		x.says("", 0, nil)
		q := x.subscribe.GetRequest()
		key = q.GetPublicKey()
		if q.GetKeyAlgorithm() != string(seal.X25519) || !slices.Equal(q.GetOfferedSuites(), []string{string(seal.X25519)}) || !slices.Equal(q.GetResources(), []string{"a", "b"}) ||
			len(q.GetInputs()) != 1 || q.GetInputs()[0].GetResource() != "b" || len(q.GetEvidence()) != 1 || len(key) == 0 || string(q.GetNonce()) != "the nonce" {
			t.Errorf("subscribes with %v", q)
		}
		tr := (*w.said)[0]
		if tr.BrokerID != w.id.ID() || string(tr.Nonce) != "the nonce" || tr.KeyAlgorithm != q.GetKeyAlgorithm() || !bytes.Equal(tr.PublicKey, key) ||
			!slices.Equal(tr.OfferedSuites, q.GetOfferedSuites()) || !slices.Equal(tr.Resources, q.GetResources()) || len(tr.Inputs) != 2 || string(tr.Inputs[1]) != "csr" {
			t.Errorf("transcript %+v", tr)
		}
		time.Sleep(w.c.brokers.patience - time.Second) // a broker may think
		x.start("s")
		x.send(&pb.WatchResponse{}) // of a kind that this guest does not know yet
		x.version("a", 1, "8")
		x.acknowledged("a 8")
		time.Sleep(2 * w.c.brokers.patience) // and say nothing while there is nothing to say
		x.ask("new evidence")
		x.says("s", 1, map[string]string{"a": "8"})
		x.start("s")
		x.version("b", 2, "retiring")
		x.acknowledged("b retiring")
		return nil
	}, func(w *watched, x *session) error {
		x.says("s", 2, map[string]string{"a": "8", "b": "retiring"})
		x.start("s")
		x.version("a", 3, "9")
		x.acknowledged("a 9")
		x.end(pb.EndReason_END_REASON_UNSPECIFIED)
		<-x.st.Context().Done()
		return nil
	}, func(w *watched, x *session) error {
		x.says("s", 3, map[string]string{"a": "9", "b": "retiring"})
		x.start("s")
		x.end(pb.EndReason_END_REASON_EXPIRED)
		<-x.st.Context().Done()
		return nil
	}, func(w *watched, x *session) error {
		x.says("", 3, map[string]string{"a": "9", "b": "retiring"})
		if !bytes.Equal(x.subscribe.GetRequest().GetPublicKey(), key) {
			t.Error("another key in the same session")
		}
		x.start("t")
		x.version("a", 1, "10")
		x.acknowledged("a 10")
		return done(w, x)
	})
	if !errors.Is(err, context.Canceled) || len(w.told) > 0 || len(w.sessions) != 4 {
		t.Errorf("%d streams, told %q, ended with %v", len(w.sessions), w.told, err)
	}
	var got []string
	for _, s := range w.took {
		got = append(got, fmt.Sprintf("%s %s %s %v", s.Resource, s.Version, s.Value, s.PreviousRetires.Unix() == 1000))
	}
	if want := []string{"a 8 secret of a false", "b retiring secret of b true", "a 9 secret of a false", "a 10 secret of a false"}; !slices.Equal(got, want) {
		t.Errorf("took %q, want %q", got, want)
	}
}

// stubborn is a client of which the first Watch fails as the test says.
type stubborn struct {
	pb.KeyBrokerClient
	n     int
	watch func(context.Context) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error)
}

func (s *stubborn) Watch(ctx context.Context, opts ...grpc.CallOption) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error) {
	if s.n++; s.n == 1 {
		return s.watch(ctx)
	}
	return s.KeyBrokerClient.Watch(ctx, opts...)
}

// mute is a stream that sends nothing.
type mute struct {
	grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]
	err error
}

func (m mute) Send(*pb.WatchRequest) error      { return m.err }
func (m mute) Recv() (*pb.WatchResponse, error) { return nil, status.Error(codes.Unavailable, "gone") }
func (m mute) Trailer() metadata.MD             { return nil }
func (m mute) Header() (metadata.MD, error)     { return nil, nil }

// TestStreamTrouble: whatever goes wrong with a stream is told, by what it is, and the next one goes on.
func TestStreamTrouble(t *testing.T) {
	wait := func(_ *watched, x *session) error { <-x.st.Context().Done(); return nil }
	started := func(then func(*watched, *session) error) func(*watched, *session) error {
		return func(w *watched, x *session) error {
			x.start("s")
			return then(w, x)
		}
	}
	var given context.Context // of the stream that fails
	stubbornly := func(f func(context.Context) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error)) func(*watched) {
		return func(w *watched) {
			e := w.c.brokers.list[0]
			e.rpc = &stubborn{KeyBrokerClient: e.rpc, watch: func(ctx context.Context) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error) {
				given = ctx
				return f(ctx)
			}}
		}
	}
	times := func(set func(w *watched, fails func() bool), n ...int) func(*watched) {
		return func(w *watched) {
			asked := 0
			set(w, func() bool { asked++; return slices.Contains(n, asked) })
		}
	}
	inputs := func(in map[string][]byte, err error, n ...int) func(*watched) {
		return times(func(w *watched, fails func() bool) {
			w.inputs = func() (map[string][]byte, error) {
				if fails() {
					return in, err
				}
				return map[string][]byte{"b": []byte("csr")}, nil
			}
		}, n...)
	}
	device := func(n ...int) func(*watched) {
		return times(func(w *watched, fails func() bool) {
			sign := w.c.devices[0].Device
			w.c.devices[0] = newHasty(deviceFunc(func(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
				if fails() {
					return attest.Evidence{}, errors.New("no quote")
				}
				return sign.Evidence(ctx, t)
			}))
		}, n...)
	}
	// asking asks for evidence that the guest cannot make.
	asking := started(func(_ *watched, x *session) error {
		x.send(&pb.WatchResponse{Message: &pb.WatchResponse_Reattest{Reattest: &pb.ReattestRequired{Nonce: []byte("new")}}})
		<-x.st.Context().Done()
		return nil
	})
	const none = time.Duration(-1) // there is no first stream
	for name, tt := range map[string]struct {
		setup func(*watched)
		first func(*watched, *session) error
		lasts time.Duration // of the first stream
		want  string
	}{
		"silent":                {nil, wait, onePatience, "broker.invalid:1: rpc error: code = DeadlineExceeded desc = no answer to the subscription"},
		"silent after evidence": {nil, started(func(w *watched, x *session) error { time.Sleep(time.Hour); x.ask("new"); return wait(w, x) }), time.Hour + onePatience, "no answer to the subscription"},
		"silent after the end": {nil, started(func(w *watched, x *session) error {
			time.Sleep(time.Hour)
			x.end(pb.EndReason_END_REASON_DENIED)
			return wait(w, x)
		}), time.Hour + onePatience, "no answer to the subscription"},
		"talks after the end": {nil, started(func(w *watched, x *session) error {
			x.end(pb.EndReason_END_REASON_DENIED)
			x.start("s")
			x.version("a", 1, "8")
			return nil
		}), 0, "without the pinned broker's signature"},
		"denied, signed by nobody": {nil, started(func(*watched, *session) error { return status.Error(codes.PermissionDenied, "403") }), 0, "without the pinned broker's signature"},
		"fails":                    {nil, started(func(*watched, *session) error { return status.Error(codes.Unavailable, "no etcd") }), 0, "watch: rpc error: code = Unavailable desc = no etcd"},
		"is refused":               {nil, func(*watched, *session) error { return status.Error(codes.InvalidArgument, "too many") }, 0, ErrRefused.Error() + ": watch: rpc error: code = InvalidArgument desc = too many"},
		"starts twice":             {nil, started(func(w *watched, x *session) error { x.start("s"); return wait(w, x) }), 0, "without new evidence"},
		"starts for no evidence": {nil, started(func(w *watched, x *session) error {
			x.ask("the nonce")
			x.start("s")
			return wait(w, x)
		}), 0, "without new evidence"},
		"no pin": {times(func(w *watched, fails func() bool) {
			w.c.cfg.Pin = func() ([]byte, error) {
				if fails() {
					return nil, errors.New("no file")
				}
				return w.id.PublicKey(), nil
			}
		}, 1), nil, none, "pinned identity: no file"},
		"no key": {func(w *watched) {
			w.c.cfg.Suite = "rot13"
			w.c.cfg.Logf = func(string, ...any) { w.c.cfg.Suite = seal.X25519 }
		}, nil, none, "agent: "},
		"no challenge": {times(func(w *watched, fails func() bool) {
			w.challenge = func(context.Context) (*pb.ChallengeResponse, error) {
				if fails() {
					return nil, status.Error(codes.ResourceExhausted, "later")
				}
				return &pb.ChallengeResponse{Nonce: []byte("the nonce")}, nil
			}
		}, 1), nil, none, "ask for a challenge: "},
		"no inputs":                {inputs(map[string][]byte{"c": nil}, errors.New("no CSR"), 1, 2), nil, none, "no CSR"},
		"inputs of something else": {inputs(map[string][]byte{"c": nil}, nil, 2), nil, none, `input for "c"`},
		"no device":                {device(1), nil, none, "make evidence: no quote"},
		"no inputs for new":        {inputs(nil, errors.New("no CSR"), 3), asking, 0, "no CSR"},
		"no device for new":        {device(2), asking, 0, "make evidence: no quote"},
		"no stream": {stubbornly(func(context.Context) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error) {
			return nil, status.Error(codes.Unavailable, "no route")
		}), nil, none, "watch: rpc error: code = Unavailable desc = no route"},
		"a stream that takes nothing": {stubbornly(func(context.Context) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error) {
			return mute{err: errors.New("too large")}, nil
		}), nil, none, "subscribe: too large"},
		"a stream that has ended": {stubbornly(func(context.Context) (grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse], error) {
			return mute{err: io.EOF}, nil
		}), nil, none, "watch: rpc error: code = Unavailable desc = gone"},
	} {
		t.Run(name, func(t *testing.T) {
			var lasted time.Duration
			given = nil
			streams := []func(*watched, *session) error{func(w *watched, x *session) error {
				if tt.lasts == none {
					lasted = none
				}
				if given != nil && given.Err() == nil {
					t.Error("the stream before goes on")
				}
				x.start("s")
				synctest.Wait()
				w.mu.Lock()
				if n := len(w.told); n == 0 || w.told[n-1] != "" {
					t.Errorf("started, and told %q", w.told)
				}
				w.mu.Unlock()
				x.version("a", 4, "9")
				x.acknowledged("a 9")
				return done(w, x)
			}}
			if tt.first != nil {
				streams = slices.Insert(streams, 0, func(w *watched, x *session) error {
					context.AfterFunc(x.st.Context(), func() { lasted = time.Since(x.begun) })
					return tt.first(w, x)
				})
			}
			w, err := watch(t, tt.setup, streams...)
			if !errors.Is(err, context.Canceled) || len(w.told) != 2 || !strings.HasPrefix(w.told[0], "broker.invalid:1: ") || !strings.Contains(w.told[0], tt.want) || w.told[1] != "" {
				t.Errorf("told %q, ended with %v; want %q", w.told, err, tt.want)
			}
			if len(w.took) != 1 || lasted != tt.lasts {
				t.Errorf("took %d versions; the first stream lasted %s", len(w.took), lasted)
			}
		})
	}
}

// TestInputsOfNothing: the caller's mistake ends a Watch before it begins.
func TestInputsOfNothing(t *testing.T) {
	c, s, _ := sealed(t)
	err := c.WatchWith(t.Context(), func() (map[string][]byte, error) { return map[string][]byte{"c": nil}, nil }, []string{"a"}, nil)
	if err == nil || !strings.Contains(err.Error(), `input for "c"`) || s.nonces > 0 {
		t.Errorf("asked for %d nonces: %v", s.nonces, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Watch(ctx, []string{"a"}, nil); !errors.Is(err, context.Canceled) || s.nonces > 0 {
		t.Errorf("asked for %d nonces: %v", s.nonces, err)
	}
}

// TestDeniedWatch: the pinned broker's word ends it, whether it comes with the reason or alone; before anything runs, anybody's does.
func TestDeniedWatch(t *testing.T) {
	prove := func(x *session) {
		q := x.subscribe.GetRequest()
		var evidence []attest.Evidence
		for _, e := range q.GetEvidence() {
			evidence = append(evidence, attest.Evidence{Type: attest.Type(e.GetType()), Report: e.GetReport()})
		}
		whole := attest.Transcript{
			Nonce: q.GetNonce(), BrokerID: x.s.id.ID(), KeyAlgorithm: q.GetKeyAlgorithm(), PublicKey: q.GetPublicKey(), OfferedSuites: q.GetOfferedSuites(), Resources: q.GetResources(),
		}.Whole(attest.PurposeWatch, evidence...)
		statement, err := x.s.id.Sign(seal.TypeDenial, fmt.Appendf(nil, `{"jti":"the-id","request":%q}`, base64.RawURLEncoding.EncodeToString(whole[:])))
		if err != nil {
			x.s.t.Error(err)
		}
		x.st.SetTrailer(metadata.Pairs("claviger-denial", string(statement)))
	}
	denied := status.Error(codes.PermissionDenied, "denied")
	for name, tt := range map[string]struct {
		first func(*watched, *session) error
		id    string
	}{
		"at once":      {func(_ *watched, x *session) error { prove(x); return denied }, "the-id"},
		"at once, 403": {func(*watched, *session) error { return denied }, ""},
		"later":        {func(_ *watched, x *session) error { x.start("s"); prove(x); return denied }, "the-id"},
		"with the reason": {func(_ *watched, x *session) error {
			x.start("s")
			prove(x)
			x.end(pb.EndReason_END_REASON_DENIED)
			return nil
		}, "the-id"},
		"after more": {func(_ *watched, x *session) error {
			x.start("s")
			x.end(pb.EndReason_END_REASON_DENIED)
			x.version("a", 1, "8")
			prove(x)
			return nil
		}, "the-id"},
		"of new evidence": {func(_ *watched, x *session) error { x.start("s"); x.ask("new"); prove(x); return denied }, "the-id"},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := watch(t, nil, tt.first)
			d, ok := errors.AsType[deniedError](err)
			if !ok || d.id != tt.id || !errors.Is(err, ErrDenied) || len(w.told) > 0 || len(w.sessions) != 1 {
				t.Errorf("told %q, ended with %v after %d streams", w.told, err, len(w.sessions))
			}
		})
	}
	// Of a TPM's activation nothing is signed: before anything runs a denial is the end.
	_, err := watch(t, func(w *watched) {
		w.activate = func(*pb.ActivateTPMRequest) (*pb.ActivateTPMResponse, error) { return nil, denied }
		w.c.devices[0] = newHasty(activated{w.c.devices[0].Device, func(ctx context.Context, ask func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error {
			_, err := ask(ctx, attest.TPMActivation{})
			return err
		}})
	}, done)
	if !errors.Is(err, ErrDenied) || strings.Contains(err.Error(), "show the attestation key") {
		t.Errorf("at the activation: %v", err)
	}
}

// TestVersionNotAccepted is told, is asked for again by a new stream, later each time, and keeps nothing else waiting.
func TestVersionNotAccepted(t *testing.T) {
	early := func(st *seal.Statement) {
		st.IssuedAt, st.Expires = time.Now().Add(time.Hour).Unix(), time.Now().Add(2*time.Hour).Unix()
	}
	var lasted []time.Duration
	bad := func(w *watched, x *session) error {
		x.says(map[bool]string{true: "", false: "s"}[len(w.sessions) == 1], uint64(max(0, 2*len(w.sessions)-2)), map[bool]map[string]string{true: nil, false: {"b": fmt.Sprint(len(w.sessions) - 1)}}[len(w.sessions) == 1])
		x.start("s")
		n := uint64(len(w.sessions))
		x.version("a", 2*n-1, "8", early)
		x.version("a", 2*n-1, "8", func(st *seal.Statement) { st.Nonce = "AAAA" })
		x.version("b", 2*n, fmt.Sprint(n))
		x.acknowledged(fmt.Sprint("b ", n))
		<-x.st.Context().Done()
		lasted = append(lasted, time.Since(x.begun))
		return nil
	}
	w, err := watch(t, nil, bad, bad, bad, bad, func(w *watched, x *session) error {
		x.start("s")
		synctest.Wait()
		w.mu.Lock()
		if slices.Contains(w.told, "") {
			t.Errorf("said to be well without a: %q", w.told)
		}
		w.mu.Unlock()
		x.version("a", 20, "8")
		x.acknowledged("a 8")
		return done(w, x)
	}, nil)
	if !errors.Is(err, context.Canceled) || len(w.told) < 2 || w.told[len(w.told)-1] != "" || slices.Index(w.told, "") != len(w.told)-1 {
		t.Fatalf("told %q, ended with %v", w.told, err)
	}
	if !errors.Is(w.errs[0], seal.ErrTime) || errors.Is(w.errs[0], ErrNotOurBroker) || !errors.Is(w.errs[1], ErrNotOurBroker) {
		t.Errorf("told %q", w.told)
	}
	for i, d := range lasted {
		if want := min(badWait<<i, maxBadWait); d < want/2 || d > want*3/2 {
			t.Errorf("stream %d lasted %s", i, d)
		}
	}
	if len(w.took) != 5 {
		t.Errorf("took %d versions", len(w.took))
	}
}

// TestNonsenseIsForgotten: versions of what nobody asked for are not waited for.
func TestNonsenseIsForgotten(t *testing.T) {
	for n, forgotten := range map[int]bool{1: false, 2: false, 3: true} {
		w := &watcher{c: &Client{cfg: Config{Suite: seal.X25519}}, resources: []string{"a", "b"}, bad: map[string]bool{}}
		for i := range n {
			w.bad[fmt.Sprint(i)] = true
		}
		if err := w.begin(); err != nil || (len(w.bad) == 0) != forgotten {
			t.Errorf("of %d, %d are left; %v", n, len(w.bad), err)
		}
	}
}

// TestWell: what was not accepted is waited for briefly again, once nothing is wrong any more.
func TestWell(t *testing.T) {
	w := &watcher{retries: 3, bad: map[string]bool{"a": true}}
	if w.well(); w.retries != 3 {
		t.Errorf("without a: %d retries", w.retries)
	}
	delete(w.bad, "a")
	if w.well(); w.retries != 0 {
		t.Errorf("well after %d retries", w.retries)
	}
}

// TestHealthyStream: after a stream that lasted, a failure counts as the first.
func TestHealthyStream(t *testing.T) {
	for lasts, want := range map[time.Duration]int{healthy + time.Second: 1, healthy - time.Second: 3} {
		var failures int
		fails := func(w *watched, x *session) error {
			x.start("s")
			time.Sleep(lasts)
			return status.Error(codes.Unavailable, "x")
		}
		if _, err := watch(t, nil, fails, fails, fails, func(w *watched, x *session) error {
			failures = w.c.brokers.list[0].failures
			return done(w, x)
		}); !errors.Is(err, context.Canceled) || failures != want {
			t.Errorf("streams of %s: %d failures, %v", lasts, failures, err)
		}
	}
}

// TestTaking: a version that is not taken is given again, later each time, until a newer one comes; only what is taken is acknowledged.
func TestTaking(t *testing.T) {
	var mu sync.Mutex
	var given []string
	var values [][]byte
	w, err := watch(t, func(w *watched) {
		w.on = func(_ context.Context, s Secret) error {
			mu.Lock()
			defer mu.Unlock()
			given = append(given, s.Version)
			values = append(values, s.Value)
			if string(s.Value) != "secret of a" {
				t.Errorf("given %q", s.Value)
			}
			if n := len(given); s.Version == "never" || n < 3 {
				return errors.New("no disk")
			}
			return nil
		}
	}, func(w *watched, x *session) error {
		x.start("s")
		x.version("a", 1, "1")
		x.acknowledged("a 1")
		x.version("a", 2, "never")
		time.Sleep(time.Minute)
		x.version("a", 3, "passed over")
		x.version("a", 4, "4")
		x.acknowledged("a 4")
		return nil
	}, func(w *watched, x *session) error {
		x.says("s", 4, map[string]string{"a": "4"})
		x.start("s")
		return done(w, x)
	})
	if !errors.Is(err, context.Canceled) || len(w.told) > 0 {
		t.Errorf("told %q, ended with %v", w.told, err)
	}
	// Within a minute, at 0.2 s, 0.4 s and so on, each half as long or half as long again.
	tries := 0
	for _, v := range given {
		if v == "never" {
			tries++
		}
	}
	if want := []string{"1", "1", "1", "never", "4"}; !slices.Equal(slices.Compact(slices.Clone(given[2:])), want[2:]) || tries < 5 || tries > 12 {
		t.Errorf("given %q", given)
	}
	for i, v := range values {
		if !bytes.Equal(v, make([]byte, len(v))) {
			t.Errorf("version %s is not wiped", given[i])
		}
	}
}

// TestOneAtATime: a version that is being taken is waited for before the next stream begins.
func TestOneAtATime(t *testing.T) {
	var taking atomic.Bool
	_, err := watch(t, func(w *watched) {
		w.on = func(context.Context, Secret) error {
			taking.Store(true)
			time.Sleep(time.Minute)
			taking.Store(false)
			return nil
		}
	}, func(_ *watched, x *session) error {
		x.start("s")
		x.version("a", 1, "8")
		synctest.Wait()
		if !taking.Load() {
			t.Error("the version is not being taken")
		}
		return nil
	}, func(w *watched, x *session) error {
		if taking.Load() {
			t.Error("a version of the stream before is still being taken")
		}
		x.says("s", 1, map[string]string{"a": "8"})
		return done(w, x)
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestNewest: of versions that come while one is being taken, the last is given.
func TestNewest(t *testing.T) {
	l := &line{slots: map[string]chan Secret{"a": make(chan Secret, 1)}}
	first := Secret{Resource: "a", Value: []byte("1")}
	l.deliver(first)
	l.deliver(Secret{Resource: "a", Value: []byte("2")})
	if s := <-l.slots["a"]; string(s.Value) != "2" || first.Value[0] != 0 {
		t.Errorf("given %q, and %q is left", s.Value, first.Value)
	}
}
