package agent

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Watch starts a session for whoever asks first, and tells everybody after that they are denied.
func (f *failing) Watch(st grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	f.mu.Lock()
	f.asked = append(f.asked, time.Now())
	first := len(f.asked) == 1
	f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if !first {
		return status.Error(codes.PermissionDenied, "403")
	}
	if _, err := st.Recv(); err != nil {
		return err
	}
	return st.Send(&pb.WatchResponse{Message: &pb.WatchResponse_Session{Session: &pb.SessionStarted{SessionId: "s"}}})
}

// TestUnsignedDenial: of what runs, only the pinned broker's word is the end; a
// proxy that answers 403 in its place is trouble. Before anything runs it is final.
func TestUnsignedDenial(t *testing.T) {
	proxy := &failing{}
	c := cluster(t, proxy)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := make(chan error, 10)
	c.cfg.Trouble = func(err error) { told <- err }
	done := make(chan error, 1)
	go func() {
		done <- c.Watch(ctx, []string{"a"}, func(context.Context, Secret) error { return nil })
	}()
	for len(proxy.times()) < 4 {
		select {
		case err := <-done:
			t.Fatalf("the watch ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := <-told; !errors.Is(err, ErrNotOurBroker) || errors.Is(err, ErrDenied) {
		t.Errorf("told %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	early := cluster(t, &failing{err: status.Error(codes.PermissionDenied, "denied")})
	if err := early.Watch(t.Context(), []string{"a"}, nil); !errors.Is(err, ErrDenied) {
		t.Errorf("before anything runs: %v", err)
	}
}

// denying starts a session, asks for new evidence, and ends the stream with a denial that it signs for one of the requests.
type denying struct {
	pb.UnimplementedKeyBrokerServer
	identity *seal.Identity
	choose   func(before, accepted, refused *pb.ReleaseRequest) *pb.ReleaseRequest
	purpose  attest.Purpose

	mu      sync.Mutex
	last    *pb.ReleaseRequest // guarded by mu; the one that the stream before accepted
	streams int                // guarded by mu
}

func (*denying) Challenge(context.Context, *pb.ChallengeRequest) (*pb.ChallengeResponse, error) {
	return &pb.ChallengeResponse{Nonce: []byte(rand.Text())}, nil
}

func (d *denying) Watch(st grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	first, err := st.Recv()
	if err != nil {
		return err
	}
	accepted := first.GetSubscribe().GetRequest()
	d.mu.Lock()
	before := d.last
	d.last = accepted
	d.streams++
	d.mu.Unlock()
	if err := st.Send(&pb.WatchResponse{Message: &pb.WatchResponse_Session{Session: &pb.SessionStarted{SessionId: "s"}}}); err != nil {
		return err
	}
	if err := st.Send(&pb.WatchResponse{Message: &pb.WatchResponse_Reattest{Reattest: &pb.ReattestRequired{Nonce: []byte(rand.Text())}}}); err != nil {
		return err
	}
	second, err := st.Recv()
	if err != nil {
		return err
	}
	if q := d.choose(before, accepted, second.GetSubscribe().GetRequest()); q != nil {
		var evidence []attest.Evidence
		for _, e := range q.GetEvidence() {
			evidence = append(evidence, attest.Evidence{Type: attest.Type(e.GetType()), Report: e.GetReport(), Endorsements: e.GetEndorsements(), EventLog: e.GetEventLog()})
		}
		id := d.identity.ID()
		whole := attest.Transcript{
			Nonce: q.GetNonce(), BrokerID: id, KeyAlgorithm: q.GetKeyAlgorithm(), PublicKey: q.GetPublicKey(), OfferedSuites: q.GetOfferedSuites(), Resources: q.GetResources(),
		}.Whole(d.purpose, evidence...)
		payload := fmt.Sprintf(`{"iss":%q,"jti":"the-id","request":%q,"iat":1}`, base64.RawURLEncoding.EncodeToString(id[:]), base64.RawURLEncoding.EncodeToString(whole[:]))
		statement, err := d.identity.Sign(seal.TypeDenial, []byte(payload))
		if err != nil {
			return err
		}
		st.SetTrailer(metadata.Pairs("claviger-denial", string(statement)))
	}
	return status.Error(codes.PermissionDenied, "denied")
}

// TestDenialOfAnotherRequest: a running workload ends at a denial of what it
// sent on this stream, and at no other, whoever signed it.
func TestDenialOfAnotherRequest(t *testing.T) {
	identity, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		choose  func(before, accepted, refused *pb.ReleaseRequest) *pb.ReleaseRequest
		purpose attest.Purpose
		signer  *seal.Identity
		ends    bool
	}{
		"the evidence refused":       {func(_, _, refused *pb.ReleaseRequest) *pb.ReleaseRequest { return refused }, attest.PurposeWatch, identity, true},
		"the evidence accepted":      {func(_, accepted, _ *pb.ReleaseRequest) *pb.ReleaseRequest { return accepted }, attest.PurposeWatch, identity, true},
		"of the stream before":       {func(before, _, _ *pb.ReleaseRequest) *pb.ReleaseRequest { return before }, attest.PurposeWatch, identity, false},
		"the same for another call":  {func(_, _, refused *pb.ReleaseRequest) *pb.ReleaseRequest { return refused }, attest.PurposeAttest, identity, false},
		"the same by another broker": {func(_, _, refused *pb.ReleaseRequest) *pb.ReleaseRequest { return refused }, attest.PurposeWatch, stranger, false},
		"nobody's":                   {func(_, _, _ *pb.ReleaseRequest) *pb.ReleaseRequest { return nil }, attest.PurposeWatch, identity, false},
		"the nonce with other things": {func(_, _, refused *pb.ReleaseRequest) *pb.ReleaseRequest {
			q := proto.CloneOf(refused)
			q.Resources = []string{"b"}
			return q
		}, attest.PurposeWatch, identity, false},
		"with another log": {func(_, _, refused *pb.ReleaseRequest) *pb.ReleaseRequest {
			q := proto.CloneOf(refused)
			q.Evidence[0].EventLog = []byte("log")
			return q
		}, attest.PurposeWatch, identity, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := &denying{identity: tc.signer, choose: tc.choose, purpose: tc.purpose}
			c := clusterOf(t, d)
			c.cfg.Identity = identity.PublicKey()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				done <- c.Watch(ctx, []string{"a"}, func(context.Context, Secret) error { return nil })
			}()
			if tc.ends {
				if err := <-done; !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "the-id") {
					t.Errorf("ended with %v", err)
				}
				return
			}
			streams := func() int { d.mu.Lock(); defer d.mu.Unlock(); return d.streams }
			for streams() < 3 {
				select {
				case err := <-done:
					t.Fatalf("the watch ended: %v", err)
				case <-time.After(10 * time.Millisecond):
				}
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}
