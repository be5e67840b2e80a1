package rpc

import (
	"context"
	"fmt"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Attest implements KeyBroker: a release of one token.
func (w *Workload) Attest(ctx context.Context, r *pb.AttestRequest) (*pb.AttestResponse, error) {
	req, err := request(ctx, r.GetRequest())
	if err != nil {
		return nil, Status(err)
	}
	out, err := w.Broker.Attest(ctx, req)
	if err != nil {
		_ = grpc.SetTrailer(ctx, denialTrailer(err))
		return nil, Status(err)
	}
	return &pb.AttestResponse{Token: wrapped(out.Secrets[0]), Receipt: receipt(out.Receipt)}, nil
}

// Watch implements KeyBroker.
func (w *Workload) Watch(st grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	if err := w.Broker.Watch(st.Context(), watchStream{st}); err != nil {
		st.SetTrailer(denialTrailer(err))
		return Status(err)
	}
	return nil
}

type watchStream struct {
	st grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
}

// Recv implements broker.Stream.
func (s watchStream) Recv() (broker.WatchMessage, error) {
	m, err := s.st.Recv()
	if err != nil {
		return broker.WatchMessage{}, err
	}
	if a := m.GetAcknowledge(); a != nil {
		return broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: a.GetResource(), Version: a.GetVersion()}}, nil
	}
	sub := m.GetSubscribe()
	req, err := request(s.st.Context(), sub.GetRequest())
	if err != nil {
		return broker.WatchMessage{}, err
	}
	out := &broker.Subscription{Request: req, Session: sub.GetSessionId(), Sequence: sub.GetSequence(), Held: map[string]string{}}
	for _, h := range sub.GetHeld() {
		out.Held[h.GetResource()] = h.GetVersion()
	}
	return broker.WatchMessage{Subscribe: out}, nil
}

// Send implements broker.Stream.
func (s watchStream) Send(u broker.WatchUpdate) error {
	m := &pb.WatchResponse{}
	switch {
	case u.Started != nil:
		m.Message = &pb.WatchResponse_Session{Session: &pb.SessionStarted{
			SessionId: u.Started.ID, ExpiresAt: timestamppb.New(u.Started.ExpiresAt), Resumed: u.Started.Resumed,
		}}
	case u.Secret != nil:
		m.Message = &pb.WatchResponse_Secret{Secret: &pb.SecretVersion{
			Secret: wrapped(u.Secret.Wrapped), Receipt: receipt(u.Secret.Receipt), PreviousRetiresAt: stamp(u.Secret.PreviousRetiresAt),
		}}
	case u.Reattest != nil:
		m.Message = &pb.WatchResponse_Reattest{Reattest: &pb.ReattestRequired{
			Nonce: u.Reattest.Nonce, Deadline: timestamppb.New(u.Reattest.Deadline), Reason: reattestReasons[u.Reattest.Reason],
		}}
	case u.Ended != nil:
		m.Message = &pb.WatchResponse_Ended{Ended: &pb.SessionEnded{Reason: endReasons[*u.Ended]}}
	default:
		return fmt.Errorf("empty update")
	}
	return s.st.Send(m)
}

var reattestReasons = map[broker.ReattestReason]pb.ReattestReason{
	broker.ReattestExpires:    pb.ReattestReason_REATTEST_REASON_EXPIRES,
	broker.ReattestPolicy:     pb.ReattestReason_REATTEST_REASON_POLICY,
	broker.ReattestCollateral: pb.ReattestReason_REATTEST_REASON_COLLATERAL,
}

var endReasons = map[broker.EndReason]pb.EndReason{
	broker.EndDenied:  pb.EndReason_END_REASON_DENIED,
	broker.EndExpired: pb.EndReason_END_REASON_EXPIRED,
	broker.EndMoved:   pb.EndReason_END_REASON_MOVED,
	broker.EndTooSlow: pb.EndReason_END_REASON_TOO_SLOW,
}

func wrapped(s broker.Wrapped) *pb.WrappedSecret {
	return &pb.WrappedSecret{Resource: s.Resource, Jwe: s.JWE}
}

func receipt(r broker.Receipt) *pb.Receipt {
	return &pb.Receipt{Promise: r.Promise, LogIndex: r.LogIndex}
}

// checked is a stream whose messages obey the field rules.
type checked struct {
	grpc.ServerStream
	v protovalidate.Validator
}

// RecvMsg implements grpc.ServerStream.
func (c checked) RecvMsg(m any) error {
	if err := c.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if p, ok := m.(proto.Message); ok {
		if err := c.v.Validate(p); err != nil {
			return invalid(err)
		}
	}
	return nil
}

func validateStream(v protovalidate.Validator) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		return next(srv, checked{ss, v})
	}
}
