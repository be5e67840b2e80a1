package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// State is the shared state that operators steer.
type State interface {
	PutReferenceSet(context.Context, broker.ReferenceSet) error
	// ChangeReferenceSet changes a set that exists: broker.ErrNoSecret if it does not.
	ChangeReferenceSet(ctx context.Context, name string, change func(*broker.ReferenceSet) error) (broker.ReferenceSet, error)
	DeleteReferenceSet(ctx context.Context, name string) (bool, error)
	// ReferenceSet is one that exists: broker.ErrNoSecret if it does not.
	ReferenceSet(ctx context.Context, name string) (broker.ReferenceSet, error)
	ListReferenceSets(ctx context.Context, after string, limit int) (page []broker.ReferenceSet, next string, err error)
	PutCatalogEntry(context.Context, broker.CatalogEntry) error
	DeleteCatalogEntry(ctx context.Context, pattern string) (bool, error)
	Revoke(context.Context, broker.Revocation) error
	Unrevoke(context.Context, broker.Subject) (bool, error)
	ListRevocations(ctx context.Context, after string, limit int) (page []broker.Revocation, next string, err error)
	PinPolicy(ctx context.Context, digest string) error
}

// Secrets is the embedded store. Infos never hold values.
type Secrets interface {
	Put(ctx context.Context, key string, value []byte, expected *uint64) (uint64, error)
	Delete(ctx context.Context, key string) (bool, error)
}

// Admin serves the operators' service. Every field is required.
type Admin struct {
	pb.UnimplementedAdminServer
	State    State
	Secrets  Secrets
	Sessions Sessions
	// ForgetKeyFn has the next request for a resource make a new key: broker.Broker.ForgetKey.
	ForgetKeyFn func(ctx context.Context, resource string) error
	// RotateKey makes a new key for tokens; nil where none are issued.
	RotateKey  func(ctx context.Context, replace bool) (kid string, err error)
	ListSecret func(ctx context.Context, prefix string) ([]*pb.SecretInfo, error)
	Catalog    func() []broker.CatalogEntry
	Policy     func() *pb.GetPolicyResponse
	// Pinnable says why this broker could not release by the bundle, now and after a restart.
	Pinnable    func(digest string) error
	GetStatusFn func(ctx context.Context) (*pb.GetStatusResponse, error)
	Decisions   func(ctx context.Context, before uint64, limit int) ([]*pb.Decision, error)
	// Conflict tells a check-and-set failure from others.
	Conflict func(error) bool
	Now      func() time.Time
	Log      *slog.Logger
}

// Role of an operator.
type Role string

// Roles.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator"
)

// needs lists every method: one that is missing here can be called by nobody.
var needs = map[string]Role{
	pb.Admin_GetStatus_FullMethodName:          Viewer,
	pb.Admin_GetPolicy_FullMethodName:          Viewer,
	pb.Admin_ListReferenceSets_FullMethodName:  Viewer,
	pb.Admin_ListReferenceUses_FullMethodName:  Viewer,
	pb.Admin_ListCatalog_FullMethodName:        Viewer,
	pb.Admin_ListSecrets_FullMethodName:        Viewer,
	pb.Admin_ListRevocations_FullMethodName:    Viewer,
	pb.Admin_ListDecisions_FullMethodName:      Viewer,
	pb.Admin_ListHolders_FullMethodName:        Viewer,
	pb.Admin_ListSessions_FullMethodName:       Viewer,
	pb.Admin_BlastRadius_FullMethodName:        Viewer, // what it tells is in the log, which viewers read
	pb.Admin_RotateSecret_FullMethodName:       Operator,
	pb.Admin_Notify_FullMethodName:             Operator,
	pb.Admin_RotateTokenKey_FullMethodName:     Operator,
	pb.Admin_ActivatePolicy_FullMethodName:     Operator,
	pb.Admin_PutReferenceSet_FullMethodName:    Operator,
	pb.Admin_ChangeReferenceSet_FullMethodName: Operator,
	pb.Admin_DeleteReferenceSet_FullMethodName: Operator,
	pb.Admin_PutCatalogEntry_FullMethodName:    Operator,
	pb.Admin_DeleteCatalogEntry_FullMethodName: Operator,
	pb.Admin_PutSecret_FullMethodName:          Operator,
	pb.Admin_DeleteSecret_FullMethodName:       Operator,
	pb.Admin_ForgetKey_FullMethodName:          Operator,
	pb.Admin_Revoke_FullMethodName:             Operator,
	pb.Admin_Unrevoke_FullMethodName:           Operator,
}

// Operators maps the common name of a verified client certificate to a role.
type Operators map[string]Role

type operatorKey struct{}

// Refusals counts operators' calls that were turned away.
type Refusals struct {
	Unknown atomic.Int64 // the certificate names no operator
	Role    atomic.Int64 // the operator's role does not allow it
}

// Authorise lets in whom the certificate names and the method's role allows,
// and logs every change that an operator asks for, and every refusal.
func (o Operators) Authorise(log *slog.Logger, count *Refusals) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		name := certificateName(ctx)
		role, known := o[name]
		if name == "" || !known {
			count.Unknown.Add(1)
			refused(ctx, log, name, info.FullMethod, "not a known operator")
			return nil, status.Error(codes.Unauthenticated, "no client certificate of a known operator")
		}
		need, ok := needs[info.FullMethod]
		if !ok || (need == Operator && role != Operator) {
			count.Role.Add(1)
			refused(ctx, log, name, info.FullMethod, fmt.Sprintf("role %q, needs %q", role, need))
			return nil, status.Errorf(codes.PermissionDenied, "%s has role %q, %s needs %q", name, role, info.FullMethod, need)
		}
		out, err := next(context.WithValue(ctx, operatorKey{}, name), req)
		if need == Operator {
			log.InfoContext(ctx, "operator action", "operator", name, "method", info.FullMethod, "code", status.Code(err).String())
		}
		return out, err
	}
}

// refused leaves a word of who was turned away, and from where.
func refused(ctx context.Context, log *slog.Logger, name, method, why string) {
	from := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from = p.Addr.String()
	}
	log.WarnContext(ctx, "operator refused", "operator", name, "method", method, "why", why, "from", from)
}

func certificateName(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	t, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(t.State.VerifiedChains) == 0 {
		return ""
	}
	return t.State.VerifiedChains[0][0].Subject.CommonName
}

func operator(ctx context.Context) string {
	name, _ := ctx.Value(operatorKey{}).(string)
	return name
}

// adminError is for operators: they are told what went wrong.
func (a *Admin) adminError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, broker.ErrRefused):
		return status.Error(codes.InvalidArgument, err.Error())
	case a.Conflict(err):
		return status.Error(codes.FailedPrecondition, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}

func found(what string, ok bool, err error, a *Admin) error {
	if err == nil && !ok {
		return status.Errorf(codes.NotFound, "no such %s", what)
	}
	return a.adminError(err)
}

// GetStatus implements Admin.
func (a *Admin) GetStatus(ctx context.Context, _ *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	r, err := a.GetStatusFn(ctx)
	return r, a.adminError(err)
}

// GetPolicy implements Admin.
func (a *Admin) GetPolicy(context.Context, *pb.GetPolicyRequest) (*pb.GetPolicyResponse, error) {
	return a.Policy(), nil
}

// ActivatePolicy implements Admin.
func (a *Admin) ActivatePolicy(ctx context.Context, r *pb.ActivatePolicyRequest) (*pb.ActivatePolicyResponse, error) {
	if d := r.GetDigest(); d != "" {
		if err := a.Pinnable(d); err != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "%v; candidates: %v", err, a.Policy().GetCandidates())
		}
	}
	return &pb.ActivatePolicyResponse{}, a.adminError(a.State.PinPolicy(ctx, r.GetDigest()))
}

// ListReferenceSets implements Admin.
func (a *Admin) ListReferenceSets(ctx context.Context, r *pb.ListReferenceSetsRequest) (*pb.ListReferenceSetsResponse, error) {
	page, next, err := pageOf(ctx, r, a.State.ListReferenceSets, referenceSet)
	return &pb.ListReferenceSetsResponse{Sets: page, NextPageToken: next}, a.listError(err)
}

func referenceSet(s broker.ReferenceSet) *pb.ReferenceSet {
	m := &pb.ReferenceSet{
		Name: s.Name, Type: string(s.Type), State: string(s.State), Values: map[string]*pb.ReferenceValues{},
		NotBefore: stamp(s.NotBefore), NotAfter: stamp(s.NotAfter),
		Source: s.Provenance.Source, Comment: s.Provenance.Comment, AddedBy: s.Provenance.AddedBy, AddedAt: stamp(s.Provenance.AddedAt),
	}
	if len(s.Policies) > 0 {
		m.Owner = &pb.ReferenceOwner{Policies: s.Policies, Resources: s.Resources}
	}
	for k, v := range s.Values {
		m.Values[k] = &pb.ReferenceValues{Values: v}
	}
	return m
}

// ChangeReferenceSet implements Admin.
func (a *Admin) ChangeReferenceSet(ctx context.Context, r *pb.ChangeReferenceSetRequest) (*pb.ChangeReferenceSetResponse, error) {
	if r.Owner != nil {
		if err := a.owner(r.GetOwner()); err != nil {
			return nil, err
		}
	}
	changed, err := a.State.ChangeReferenceSet(ctx, r.GetName(), func(s *broker.ReferenceSet) error {
		if r.State != nil {
			s.State = broker.ReferenceState(r.GetState())
		}
		if r.NotBefore != nil {
			s.NotBefore = unstamp(r.GetNotBefore())
		}
		if r.NotAfter != nil {
			s.NotAfter = unstamp(r.GetNotAfter())
		}
		if r.Source != nil {
			s.Provenance.Source = r.GetSource()
		}
		if r.Comment != nil {
			s.Provenance.Comment = r.GetComment()
		}
		if r.Owner != nil {
			if len(s.Resources) > 0 && len(r.GetOwner().GetResources()) == 0 {
				return fmt.Errorf("%w: owner.resources: missing, and the set is for %s only: say for which it is (or put it anew, with its values, for all that the policies release)", broker.ErrRefused, strings.Join(s.Resources, ", "))
			}
			s.Policies, s.Resources = r.GetOwner().GetPolicies(), r.GetOwner().GetResources()
		}
		s.Provenance.AddedBy, s.Provenance.AddedAt = operator(ctx), a.Now().UTC()
		return nil
	})
	if errors.Is(err, broker.ErrNoSecret) {
		return nil, status.Errorf(codes.NotFound, "no reference set %q; one that is new needs values", r.GetName())
	}
	if err != nil {
		return nil, a.adminError(err)
	}
	return &pb.ChangeReferenceSetResponse{Set: referenceSet(changed)}, nil
}

// PutReferenceSet implements Admin.
func (a *Admin) PutReferenceSet(ctx context.Context, r *pb.PutReferenceSetRequest) (*pb.PutReferenceSetResponse, error) {
	m := r.GetSet()
	if m.GetOwner() != nil {
		if err := a.owner(m.GetOwner()); err != nil {
			return nil, err
		}
	}
	s := broker.ReferenceSet{
		Name: m.GetName(), Type: attest.Type(m.GetType()), State: broker.ReferenceState(m.GetState()), Values: map[string][]string{},
		NotBefore: unstamp(m.GetNotBefore()), NotAfter: unstamp(m.GetNotAfter()),
		Provenance: broker.Provenance{Source: m.GetSource(), Comment: m.GetComment(), AddedBy: operator(ctx), AddedAt: a.Now().UTC()},
		Policies:   m.GetOwner().GetPolicies(), Resources: m.GetOwner().GetResources(),
	}
	for k, v := range m.GetValues() {
		s.Values[k] = v.GetValues()
	}
	if m.GetOwner() == nil { // new values of a set that has an owner, whoever changes that meanwhile
		_, err := a.State.ChangeReferenceSet(ctx, s.Name, func(old *broker.ReferenceSet) error {
			if err := a.owner(&pb.ReferenceOwner{Policies: old.Policies}); err != nil {
				return err
			}
			s.Policies, s.Resources = old.Policies, old.Resources
			*old = s
			return nil
		})
		if errors.Is(err, broker.ErrNoSecret) {
			err = a.owner(nil)
		}
		if _, told := status.FromError(err); told {
			return &pb.PutReferenceSetResponse{}, err
		}
		return &pb.PutReferenceSetResponse{}, a.adminError(err)
	}
	return &pb.PutReferenceSetResponse{}, a.adminError(a.State.PutReferenceSet(ctx, s))
}

// owner refuses a set that is nobody's, or for a policy that there is not: it would match nothing.
func (a *Admin) owner(o *pb.ReferenceOwner) error {
	if len(o.GetPolicies()) == 0 {
		return status.Errorf(codes.InvalidArgument, "owner.policies: missing: say for which policies the set is (%q for every one)", broker.AllPolicies)
	}
	known := a.Policy().GetPackages()
	for _, p := range o.GetPolicies() {
		if p != broker.AllPolicies && !slices.Contains(known, "claviger.release."+p) {
			return status.Errorf(codes.InvalidArgument, "owner.policies: there is no policy %q: want of %s", p, strings.ReplaceAll(strings.Join(known, ", "), "claviger.release.", ""))
		}
	}
	return nil
}

// ListReferenceUses implements Admin.
func (a *Admin) ListReferenceUses(ctx context.Context, r *pb.ListReferenceUsesRequest) (*pb.ListReferenceUsesResponse, error) {
	s, err := a.State.ReferenceSet(ctx, r.GetName())
	if errors.Is(err, broker.ErrNoSecret) {
		return nil, status.Errorf(codes.NotFound, "no reference set %q", r.GetName())
	}
	if err != nil {
		return nil, a.adminError(err)
	}
	p, out := a.Policy(), &pb.ListReferenceUsesResponse{}
	for _, pkg := range p.GetPackages() {
		u := &pb.ReferenceUse{Policy: strings.TrimPrefix(pkg, "claviger.release.")}
		others := p.GetReferencesOf()[u.GetPolicy()].GetPolicies()
		switch {
		case len(s.Policies) == 0:
			u.Why = "no owner"
		case slices.Contains(s.Policies, u.GetPolicy()):
			u.Why = "owner"
		case slices.Contains(s.Policies, broker.AllPolicies):
			u.Why = "every policy"
		case slices.Contains(others, broker.AllPolicies), slices.ContainsFunc(others, s.SeenBy):
			u.Why = "references_of"
		default:
			continue
		}
		for _, e := range a.Catalog() {
			if e.Policy == u.GetPolicy() && s.ForPattern(e.Pattern) {
				u.Patterns = append(u.Patterns, e.Pattern)
			}
		}
		slices.Sort(u.Patterns)
		out.Uses = append(out.Uses, u)
	}
	return out, nil
}

// DeleteReferenceSet implements Admin.
func (a *Admin) DeleteReferenceSet(ctx context.Context, r *pb.DeleteReferenceSetRequest) (*pb.DeleteReferenceSetResponse, error) {
	ok, err := a.State.DeleteReferenceSet(ctx, r.GetName())
	return &pb.DeleteReferenceSetResponse{}, found("reference set", ok, err, a)
}

// ListCatalog implements Admin.
func (a *Admin) ListCatalog(ctx context.Context, r *pb.ListCatalogRequest) (*pb.ListCatalogResponse, error) {
	page, next, err := pageOf(ctx, r, slice(a.Catalog(), func(e broker.CatalogEntry) string { return e.Pattern }), catalogEntry)
	return &pb.ListCatalogResponse{Entries: page, NextPageToken: next}, a.listError(err)
}

func catalogEntry(e broker.CatalogEntry) *pb.CatalogEntry {
	return &pb.CatalogEntry{
		Pattern: e.Pattern, Source: e.Source, Kind: string(e.Kind), Mount: e.Mount, Key: e.Key, Field: e.Field, Policy: e.Policy,
		PinVersion: uint32(e.PinVersion), Options: e.Options, CreateBytes: uint32(e.CreateBytes), TtlSeconds: int64(e.TTL / time.Second),
		GraceSeconds: int64(e.Grace / time.Second), Rotatable: e.Rotatable, Rekey: e.Rekey, Priority: e.Priority, Labels: e.Labels,
	}
}

// PutCatalogEntry implements Admin. An entry that would make the catalog ambiguous is refused.
func (a *Admin) PutCatalogEntry(ctx context.Context, r *pb.PutCatalogEntryRequest) (*pb.PutCatalogEntryResponse, error) {
	m := r.GetEntry()
	e := broker.CatalogEntry{
		Pattern: m.GetPattern(), Source: m.GetSource(), Kind: broker.Kind(m.GetKind()), Mount: m.GetMount(), Key: m.GetKey(), Field: m.GetField(),
		Policy: m.GetPolicy(), PinVersion: int(m.GetPinVersion()), Options: maps.Clone(m.GetOptions()), CreateBytes: int(m.GetCreateBytes()),
		TTL: time.Duration(m.GetTtlSeconds()) * time.Second, Grace: time.Duration(m.GetGraceSeconds()) * time.Second,
		Rotatable: m.GetRotatable(), Rekey: m.GetRekey(), Priority: m.GetPriority(), Labels: maps.Clone(m.GetLabels()),
	}
	others := slices.DeleteFunc(a.Catalog(), func(o broker.CatalogEntry) bool { return o.Pattern == e.Pattern })
	if _, err := broker.NewCatalog(append(others, e)); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &pb.PutCatalogEntryResponse{}, a.adminError(a.State.PutCatalogEntry(ctx, e))
}

// DeleteCatalogEntry implements Admin.
func (a *Admin) DeleteCatalogEntry(ctx context.Context, r *pb.DeleteCatalogEntryRequest) (*pb.DeleteCatalogEntryResponse, error) {
	ok, err := a.State.DeleteCatalogEntry(ctx, r.GetPattern())
	return &pb.DeleteCatalogEntryResponse{}, found("catalog entry in the shared state (entries of the configuration file are deleted there)", ok, err, a)
}

// PutSecret implements Admin.
func (a *Admin) PutSecret(ctx context.Context, r *pb.PutSecretRequest) (*pb.PutSecretResponse, error) {
	defer clear(r.GetValue())
	v, err := a.Secrets.Put(ctx, r.GetKey(), r.GetValue(), r.ExpectedVersion)
	if err != nil {
		return nil, a.adminError(err)
	}
	// Workloads that watch it need not wait for the next question; if this fails they do.
	if err := a.Sessions.Notify(ctx, broker.CatalogEntry{Source: "local", Key: r.GetKey()}); err != nil {
		a.Log.WarnContext(ctx, "cannot tell of a new version", "key", r.GetKey(), "error", err)
	}
	return &pb.PutSecretResponse{Version: v}, nil
}

// ListSecrets implements Admin.
func (a *Admin) ListSecrets(ctx context.Context, r *pb.ListSecretsRequest) (*pb.ListSecretsResponse, error) {
	infos, err := a.ListSecret(ctx, r.GetPrefix())
	if err != nil {
		return nil, a.adminError(err)
	}
	same := func(i *pb.SecretInfo) *pb.SecretInfo { return i }
	page, next, err := pageOf(ctx, r, slice(infos, (*pb.SecretInfo).GetKey), same)
	return &pb.ListSecretsResponse{Secrets: page, NextPageToken: next}, a.listError(err)
}

// DeleteSecret implements Admin.
func (a *Admin) DeleteSecret(ctx context.Context, r *pb.DeleteSecretRequest) (*pb.DeleteSecretResponse, error) {
	ok, err := a.Secrets.Delete(ctx, r.GetKey())
	return &pb.DeleteSecretResponse{}, found("secret", ok, err, a)
}

// ForgetKey implements Admin.
func (a *Admin) ForgetKey(ctx context.Context, r *pb.ForgetKeyRequest) (*pb.ForgetKeyResponse, error) {
	err := a.ForgetKeyFn(ctx, r.GetResource())
	if errors.Is(err, broker.ErrNoSecret) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &pb.ForgetKeyResponse{}, a.adminError(err)
}

// ListRevocations implements Admin.
func (a *Admin) ListRevocations(ctx context.Context, r *pb.ListRevocationsRequest) (*pb.ListRevocationsResponse, error) {
	page, next, err := pageOf(ctx, r, a.State.ListRevocations, func(r broker.Revocation) *pb.Revocation {
		return &pb.Revocation{Kind: string(r.Kind), Value: r.Value, Reason: r.Reason, RevokedBy: r.RevokedBy, RevokedAt: stamp(r.RevokedAt)}
	})
	return &pb.ListRevocationsResponse{Revocations: page, NextPageToken: next}, a.listError(err)
}

// ListDecisions implements Admin.
func (a *Admin) ListDecisions(ctx context.Context, r *pb.ListDecisionsRequest) (*pb.ListDecisionsResponse, error) {
	limit := int(r.GetLimit())
	if limit == 0 {
		limit = 20
	}
	ds, err := a.Decisions(ctx, r.GetBefore(), limit)
	return &pb.ListDecisionsResponse{Decisions: ds[:fitting(ds)]}, a.adminError(err)
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func unstamp(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
