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
	// Page lists those that have not expired, a page at a time; see pageOf.
	Page(ctx context.Context, after string, limit int) (page []broker.Session, next string, err error)
	// Current is the newest version known of a secret, "" if none is.
	Current(e broker.CatalogEntry) string
	// Notify has the brokers look at a secret at once.
	Notify(ctx context.Context, e broker.CatalogEntry) error
	// Rotate has the source make a new version.
	Rotate(ctx context.Context, e broker.CatalogEntry) (version string, err error)
	// Seen lists values of the subject's kind that begin with its value, whatever their case: of
	// releases, sessions, reference sets, policies. Of very many, some.
	Seen(ctx context.Context, s broker.Subject) ([]string, error)
	// Exposed reads the audit log for what went to a subject.
	Exposed(ctx context.Context, s broker.Subject, since time.Time) (broker.Exposure, error)
	// Lookup finds a path's entry.
	Lookup(path string) (broker.CatalogEntry, bool)
}

// ListSessions implements Admin.
func (a *Admin) ListSessions(ctx context.Context, r *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	page, next, err := pageOf(ctx, r, a.Sessions.Page, session)
	return &pb.ListSessionsResponse{Sessions: page, NextPageToken: next}, a.listError(err)
}

func session(s broker.Session) *pb.Session {
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
	return m
}

// ListHolders implements Admin.
func (a *Admin) ListHolders(ctx context.Context, r *pb.ListHoldersRequest) (*pb.ListHoldersResponse, error) {
	e, ok := a.Sessions.Lookup(r.GetResource())
	if !ok {
		return nil, status.Errorf(codes.NotFound, "resource: no catalog entry matches %q", r.GetResource())
	}
	page, next, err := pageOf(ctx, r, holders(a.Sessions, r.GetResource()), func(h holding) *pb.Holder {
		return &pb.Holder{
			SessionId: h.session.ID, Version: h.Version, AcknowledgedAt: stamp(h.AcknowledgedAt), PendingVersion: h.Pending, RetiresAt: stamp(h.RetiresAt),
			ChipId: h.session.ChipID, EvidenceType: string(h.session.EvidenceType), Simulated: h.session.Simulated,
		}
	})
	return &pb.ListHoldersResponse{CurrentVersion: a.Sessions.Current(e), Holders: page, NextPageToken: next}, a.listError(err)
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

// RotateTokenKey implements Admin.
func (a *Admin) RotateTokenKey(ctx context.Context, r *pb.RotateTokenKeyRequest) (*pb.RotateTokenKeyResponse, error) {
	if a.RotateKey == nil {
		return nil, status.Error(codes.FailedPrecondition, "this broker issues no tokens: tokens.issuer is not configured")
	}
	kid, err := a.RotateKey(ctx, r.GetReplace())
	return &pb.RotateTokenKeyResponse{KeyId: kid}, a.adminError(err)
}
