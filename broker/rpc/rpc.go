// Package rpc is the gRPC face (DESIGN §8): it translates, admits and
// authenticates; it decides nothing about secrets.
package rpc

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// MaxRequest bounds a request: evidence at its limits with some room.
const MaxRequest = 1 << 20

// Broker is what the workloads' service needs.
type Broker interface {
	Challenge() (nonce []byte, expires time.Time, err error)
	Release(ctx context.Context, req broker.Request) (broker.Response, error)
	Attest(ctx context.Context, req broker.Request) (broker.Response, error)
	Watch(ctx context.Context, st broker.Stream) error
	ActivateTPM(ctx context.Context, req attest.TPMActivation) (attest.TPMChallenge, error)
	Identity() []byte
	EvidenceTypes() []attest.Type
	AcceptsSimulated() bool
}

// Proof is an inclusion proof, as package audit makes it.
type Proof struct {
	Checkpoint, LeafHash []byte
	Path                 [][]byte
}

// Workload serves KeyBroker.
type Workload struct {
	pb.UnimplementedKeyBrokerServer
	Broker   Broker
	BrokerID [32]byte
	Version  string
	// Prove returns ErrNotYet-like errors as ready = false.
	Prove func(ctx context.Context, index uint64) (p Proof, ready bool, err error)
	// Log is told, now and then, of guests that pin another identity; may be nil.
	Log *slog.Logger

	told atomic.Int64 // when it was, in Unix seconds
}

// wrongPin tells operators of guests that will be denied for that alone.
func (w *Workload) wrongPin(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	ids := md.Get("claviger-broker-id")
	if len(ids) != 1 || w.Log == nil {
		return
	}
	pinned, err := hex.DecodeString(ids[0])
	if err != nil || len(pinned) != len(w.BrokerID) || bytes.Equal(pinned, w.BrokerID[:]) {
		return
	}
	now, last := time.Now().Unix(), w.told.Load()
	if now-last >= 10 && w.told.CompareAndSwap(last, now) {
		w.Log.WarnContext(ctx, "a guest pins the identity of another broker: what it asks for would be denied", "pinned_id", hex.EncodeToString(pinned), "id", hex.EncodeToString(w.BrokerID[:]), "peer", peerAddr(ctx))
	}
}

// GetCapabilities implements KeyBroker.
func (w *Workload) GetCapabilities(context.Context, *pb.GetCapabilitiesRequest) (*pb.GetCapabilitiesResponse, error) {
	r := &pb.GetCapabilitiesResponse{
		BrokerId: w.BrokerID[:], IdentityKey: w.Broker.Identity(), Version: w.Version, Simulated: w.Broker.AcceptsSimulated(),
	}
	for _, t := range w.Broker.EvidenceTypes() {
		r.EvidenceTypes = append(r.EvidenceTypes, string(t))
	}
	for _, s := range seal.Suites() {
		r.Suites = append(r.Suites, string(s))
	}
	return r, nil
}

// Challenge implements KeyBroker.
func (w *Workload) Challenge(ctx context.Context, _ *pb.ChallengeRequest) (*pb.ChallengeResponse, error) {
	w.wrongPin(ctx)
	nonce, expires, err := w.Broker.Challenge()
	if err != nil {
		return nil, Status(err)
	}
	return &pb.ChallengeResponse{Nonce: nonce, ExpiresAt: timestamppb.New(expires), BrokerId: w.BrokerID[:]}, nil
}

// Release implements KeyBroker.
func (w *Workload) Release(ctx context.Context, r *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	req, err := request(ctx, r)
	if err != nil {
		return nil, Status(err)
	}
	out, err := w.Broker.Release(ctx, req)
	if err != nil {
		_ = grpc.SetTrailer(ctx, denialTrailer(err))
		return nil, Status(err)
	}
	resp := &pb.ReleaseResponse{Receipt: receipt(out.Receipt)}
	for _, s := range out.Secrets {
		resp.Secrets = append(resp.Secrets, wrapped(s))
	}
	return resp, nil
}

func request(ctx context.Context, r *pb.ReleaseRequest) (broker.Request, error) {
	var evidence []attest.Evidence
	for _, e := range r.GetEvidence() {
		evidence = append(evidence, attest.Evidence{Type: attest.Type(e.GetType()), Report: e.GetReport(), Endorsements: e.GetEndorsements(), EventLog: e.GetEventLog()})
	}
	req := broker.Request{
		Nonce: r.GetNonce(), KeyAlgorithm: r.GetKeyAlgorithm(), PublicKey: r.GetPublicKey(),
		OfferedSuites: r.GetOfferedSuites(), Resources: r.GetResources(),
		Evidence: evidence[0], Devices: evidence[1:], Peer: peerAddr(ctx),
	}
	for _, in := range r.GetInputs() {
		i := slices.Index(req.Resources, in.GetResource())
		if i < 0 {
			return broker.Request{}, fmt.Errorf("%w: inputs: %q is not among the resources", broker.ErrInvalid, in.GetResource())
		}
		if req.Inputs == nil {
			req.Inputs = make([][]byte, len(req.Resources))
		}
		if req.Inputs[i] != nil {
			return broker.Request{}, fmt.Errorf("%w: inputs: two for %q", broker.ErrInvalid, in.GetResource())
		}
		req.Inputs[i] = in.GetInput()
	}
	return req, nil
}

// ActivateTPM implements KeyBroker.
func (w *Workload) ActivateTPM(ctx context.Context, r *pb.ActivateTPMRequest) (*pb.ActivateTPMResponse, error) {
	c, err := w.Broker.ActivateTPM(ctx, attest.TPMActivation{EKCertificates: r.GetEkCertificates(), EKPublic: r.GetEkPublic(), AKPublic: r.GetAkPublic()})
	if err != nil {
		return nil, Status(err)
	}
	return &pb.ActivateTPMResponse{
		CredentialBlob: c.CredentialBlob, EncryptedSecret: c.EncryptedSecret, Ticket: c.Ticket, ExpiresAt: timestamppb.New(c.Expires),
	}, nil
}

// ProveInclusion implements KeyBroker.
func (w *Workload) ProveInclusion(ctx context.Context, r *pb.ProveInclusionRequest) (*pb.ProveInclusionResponse, error) {
	p, ready, err := w.Prove(ctx, r.GetLogIndex())
	switch {
	case err != nil:
		return nil, Status(fmt.Errorf("%w: %w", broker.ErrUnavailable, err))
	case !ready:
		return nil, retry(codes.Unavailable, "not yet in a published checkpoint", 250*time.Millisecond)
	}
	return &pb.ProveInclusionResponse{Checkpoint: p.Checkpoint, Proof: p.Path, LeafHash: p.LeafHash}, nil
}

// DenialTrailer is where a denial's statement stands.
const DenialTrailer = "claviger-denial"

// denialTrailer has the proof that goes with a denial; nothing goes with other errors.
func denialTrailer(err error) metadata.MD {
	if d, ok := errors.AsType[*broker.Denial](err); ok {
		return metadata.Pairs(DenialTrailer, d.Statement)
	}
	return nil
}

// Status is the one table that turns errors into codes. A guest sees the
// sentinel's own text; only a request that breaks the protocol is told more.
func Status(err error) error {
	switch {
	case errors.Is(err, broker.ErrInvalid):
		return invalid(err)
	case errors.Is(err, broker.ErrChallenge):
		return status.Error(codes.FailedPrecondition, broker.ErrChallenge.Error())
	case errors.Is(err, broker.ErrDenied):
		return status.Error(codes.PermissionDenied, broker.ErrDenied.Error())
	case errors.Is(err, broker.ErrTooLarge):
		return status.Error(codes.OutOfRange, broker.SizeOf(err))
	}
	// Of a stream: the field rules' and admission's own words. What stands within another error is a server's that we asked.
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		switch s.GRPCStatus().Code() {
		case codes.InvalidArgument, codes.ResourceExhausted:
			return err
		}
	}
	return retry(codes.Unavailable, broker.ErrUnavailable.Error(), time.Second)
}

// invalid tells a guest what is wrong with its request, with words of the request in it.
func invalid(err error) error {
	return status.Error(codes.InvalidArgument, broker.Clip(err.Error(), 1<<10))
}

func retry(c codes.Code, msg string, after time.Duration) error {
	s, err := status.New(c, msg).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	if err != nil {
		return status.Error(c, msg)
	}
	return s.Err()
}

// ServerOptions are common to all our servers: bounded messages and
// connections, panics turned into errors, field rules checked, in this order.
func ServerOptions(log *slog.Logger, more ...grpc.UnaryServerInterceptor) ([]grpc.ServerOption, error) {
	v, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("load field rules: %w", err)
	}
	chain := append([]grpc.UnaryServerInterceptor{recoverPanic(log)}, more...)
	chain = append(chain, validate(v))
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxRequest), grpc.MaxConcurrentStreams(128), grpc.MaxHeaderListSize(16 << 10),
		grpc.ConnectionTimeout(10 * time.Second), // from the connection to the end of the handshakes
		// A connection of which nothing is asked takes 16 KiB less.
		grpc.ReadBufferSize(8 << 10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		// An old connection ends when its last stream does: who does not read our answers keeps them in our memory.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 2 * time.Minute, MaxConnectionAge: 10 * time.Minute, Time: time.Minute, Timeout: 20 * time.Second,
		}),
		grpc.ChainUnaryInterceptor(chain...), grpc.ChainStreamInterceptor(recoverStream(log), validateStream(v)),
	}, nil
}

func recoverPanic(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
		defer func() {
			if p := recover(); p != nil {
				log.ErrorContext(ctx, "panic in a request", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
				err = Status(broker.ErrUnavailable)
			}
		}()
		return next(ctx, req)
	}
}

func recoverStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		defer func() {
			if p := recover(); p != nil {
				log.ErrorContext(ss.Context(), "panic in a stream", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
				err = Status(broker.ErrUnavailable)
			}
		}()
		return next(srv, ss)
	}
}

func validate(v protovalidate.Validator) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if m, ok := req.(proto.Message); ok {
			if err := v.Validate(m); err != nil {
				return nil, invalid(err)
			}
		}
		return next(ctx, req)
	}
}
