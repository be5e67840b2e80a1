package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Sessions is what operators see and do about running workloads.
type Sessions interface {
	Sessions(ctx context.Context) ([]broker.Session, error)
	// Current is the newest version known of a secret, "" if none is.
	Current(e broker.CatalogEntry) string
	// Notify has the brokers look at a secret at once.
	Notify(ctx context.Context, e broker.CatalogEntry) error
	// Rotate has the source make a new version.
	Rotate(ctx context.Context, e broker.CatalogEntry) (version string, err error)
	// Exposed reads the audit log for what went to a subject.
	Exposed(ctx context.Context, s broker.Subject, since time.Time) (broker.Exposure, error)
	// Lookup finds a path's entry.
	Lookup(path string) (broker.CatalogEntry, bool)
}

// ListSessions implements Admin.
func (a *Admin) ListSessions(ctx context.Context, _ *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	all, err := a.Sessions.Sessions(ctx)
	if err != nil {
		return nil, a.adminError(err)
	}
	out := &pb.ListSessionsResponse{}
	for _, s := range all {
		m := &pb.Session{
			Id: s.ID, StartedAt: stamp(s.StartedAt), AttestedAt: stamp(s.AttestedAt), ExpiresAt: stamp(s.ExpiresAt), EvidenceType: string(s.EvidenceType),
			HardwareModel: s.HardwareModel, ChipId: s.ChipID, Measurements: s.Measurements, Simulated: s.Simulated, Broker: s.Broker,
		}
		for _, h := range s.Holdings {
			m.Resources = append(m.Resources, h.Resource)
			if h.Leased {
				m.Leases++
			}
		}
		out.Sessions = append(out.Sessions, m)
	}
	return out, nil
}

// ListHolders implements Admin.
func (a *Admin) ListHolders(ctx context.Context, r *pb.ListHoldersRequest) (*pb.ListHoldersResponse, error) {
	e, ok := a.Sessions.Lookup(r.GetResource())
	if !ok {
		return nil, status.Errorf(codes.NotFound, "resource: no catalog entry matches %q", r.GetResource())
	}
	all, err := a.Sessions.Sessions(ctx)
	if err != nil {
		return nil, a.adminError(err)
	}
	out := &pb.ListHoldersResponse{CurrentVersion: a.Sessions.Current(e)}
	for _, s := range all {
		for _, h := range s.Holdings {
			if h.Resource != r.GetResource() {
				continue
			}
			out.Holders = append(out.Holders, &pb.Holder{
				SessionId: s.ID, Version: h.Version, AcknowledgedAt: stamp(h.AcknowledgedAt), PendingVersion: h.Pending, RetiresAt: stamp(h.RetiresAt),
				ChipId: s.ChipID, EvidenceType: string(s.EvidenceType), Simulated: s.Simulated,
			})
		}
	}
	return out, nil
}

// Notify implements Admin.
func (a *Admin) Notify(ctx context.Context, r *pb.NotifyRequest) (*pb.NotifyResponse, error) {
	e, ok := a.Sessions.Lookup(r.GetResource())
	if !ok {
		return nil, status.Errorf(codes.NotFound, "resource: no catalog entry matches %q", r.GetResource())
	}
	err := a.Sessions.Notify(ctx, e)
	if errors.Is(err, broker.ErrNoSecret) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &pb.NotifyResponse{}, a.adminError(err)
}

// RotateSecret implements Admin.
func (a *Admin) RotateSecret(ctx context.Context, r *pb.RotateSecretRequest) (*pb.RotateSecretResponse, error) {
	e, ok := a.Sessions.Lookup(r.GetResource())
	if !ok {
		return nil, status.Errorf(codes.NotFound, "resource: no catalog entry matches %q", r.GetResource())
	}
	version, err := a.Sessions.Rotate(ctx, e)
	switch {
	case errors.Is(err, broker.ErrNotRotatable):
		return nil, status.Errorf(codes.FailedPrecondition, "%s: its catalog entry does not say rotatable, or its kind cannot be", r.GetResource())
	case err != nil:
		return nil, a.adminError(err)
	}
	return &pb.RotateSecretResponse{Version: version}, a.adminError(a.Sessions.Notify(ctx, e))
}

// BlastRadius implements Admin.
func (a *Admin) BlastRadius(ctx context.Context, r *pb.BlastRadiusRequest) (*pb.BlastRadiusResponse, error) {
	s := broker.Subject{Kind: broker.RevocationKind(r.GetKind()), Value: r.GetValue()}
	if err := s.Validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	x, err := a.Sessions.Exposed(ctx, s, unstamp(r.GetSince()))
	if err != nil {
		return nil, a.adminError(err)
	}
	out := &pb.BlastRadiusResponse{Releases: x.Releases, Entries: x.Entries, LogOrigin: x.Log}
	for _, v := range x.Versions {
		e, ok := a.Sessions.Lookup(v.Resource)
		out.Exposures = append(out.Exposures, &pb.Exposure{
			Resource: v.Resource, Version: v.Version, Releases: v.Releases, First: stamp(v.First), Last: stamp(v.Last), Rotatable: ok && e.Rotatable,
		})
	}
	return out, nil
}

// RotateTokenKey implements Admin.
func (a *Admin) RotateTokenKey(ctx context.Context, r *pb.RotateTokenKeyRequest) (*pb.RotateTokenKeyResponse, error) {
	if a.RotateKey == nil {
		return nil, status.Error(codes.FailedPrecondition, "this broker issues no tokens: tokens.issuer is not configured")
	}
	kid, err := a.RotateKey(ctx, r.GetReplace())
	return &pb.RotateTokenKeyResponse{KeyId: kid}, a.adminError(err)
}
