package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Revoke implements Admin. On return the revocation is durable; within a second it holds on every replica.
func (a *Admin) Revoke(ctx context.Context, r *pb.RevokeRequest) (*pb.RevokeResponse, error) {
	m := r.GetRevocation()
	s, err := a.subject(ctx, m.GetKind(), m.GetValue(), r.GetMustExist())
	if err != nil {
		return nil, err
	}
	rev := broker.Revocation{Subject: s, Reason: m.GetReason(), RevokedBy: operator(ctx), RevokedAt: a.Now().UTC()}
	if err := a.State.Revoke(ctx, rev); err != nil {
		return nil, a.adminError(err)
	}
	return &pb.RevokeResponse{Value: s.Value}, nil
}

// Unrevoke implements Admin. The value may be a unique beginning of a revoked one.
func (a *Admin) Unrevoke(ctx context.Context, r *pb.UnrevokeRequest) (*pb.UnrevokeResponse, error) {
	s := broker.Subject{Kind: broker.RevocationKind(r.GetKind()), Value: strings.TrimSuffix(r.GetValue(), "…")}
	ok, err := a.State.Unrevoke(ctx, s)
	if err == nil && !ok {
		var known []string
		err = every(ctx, a.State.ListRevocations, func(v broker.Revocation) {
			if v.Kind == s.Kind {
				known = append(known, v.Value)
			}
		})
		if err != nil {
			return nil, a.adminError(err)
		}
		if s.Value, err = choose(s.Kind, s.Value, known); err != nil {
			return nil, err
		}
		ok, err = a.State.Unrevoke(ctx, s)
	}
	return &pb.UnrevokeResponse{}, found("revocation", ok, err, a)
}

// subject finds out what an operator means by a kind and a value, as a table prints it or
// as typed. A revocation of what does not exist would be acknowledged and stop nothing.
func (a *Admin) subject(ctx context.Context, kind, value string, mustExist bool) (broker.Subject, error) {
	s := broker.Subject{Kind: broker.RevocationKind(kind), Value: strings.TrimSuffix(value, "…")}
	cut := s.Value != value // a table cut it off
	if err := s.Validate(); err != nil {
		return broker.Subject{}, status.Error(codes.InvalidArgument, "revocation."+err.Error())
	}
	s = s.Canonical()
	if s.Kind == broker.RevokeResource {
		// A path that the catalog has by name. One that only matches a {variable} may be a typing error.
		if e, _ := a.Sessions.Lookup(s.Value); e.Pattern == s.Value && !cut {
			return s, nil
		}
	}
	// A value of this length is whole; a shorter one may be whole (a chip of AMD Turin), or the beginning of one that was seen.
	const whole = 32
	complete := !cut && s.Check() == nil
	if words := s.Kind == broker.RevokeResource || s.Kind == broker.RevokeSecretVersion; !mustExist && complete && (words || len(s.Value) >= whole) {
		return s, nil
	}
	seen, err := a.Sessions.Seen(ctx, s)
	if err != nil {
		return broker.Subject{}, a.adminError(fmt.Errorf("look for what begins with %q: %w", s.Value, err))
	}
	full, err := choose(s.Kind, s.Value, seen)
	switch {
	case err == nil:
		s.Value = full
		return s, nil
	case status.Code(err) != codes.NotFound:
		return broker.Subject{}, err
	case !mustExist && complete:
		return s, nil
	case cut:
		return broker.Subject{}, status.Errorf(codes.NotFound, "value: no %s that was seen begins with %q; give it in full", s.Kind, s.Value)
	}
	if err := s.Check(); err != nil {
		return broker.Subject{}, status.Errorf(codes.InvalidArgument, "value: %v", err)
	}
	return broker.Subject{}, status.Errorf(codes.NotFound,
		"value: no %s %q was seen by this broker, so nothing is revoked; if it is right, revoke it with --force", s.Kind, s.Value)
}

// choose is the value itself, or the only one that it is the beginning of. Case does not count, unless it must to choose.
func choose(kind broker.RevocationKind, value string, from []string) (string, error) {
	const least = 4
	if slices.Contains(from, value) {
		return value, nil
	}
	var same, longer []string
	for _, v := range from {
		switch {
		case strings.EqualFold(v, value):
			same = append(same, v)
		case len(v) > len(value) && strings.EqualFold(v[:len(value)], value):
			longer = append(longer, v)
		}
	}
	switch kind {
	case broker.RevokeChip, broker.RevokeMeasurement, broker.RevokeWorkload, broker.RevokePolicy, broker.RevokeSession:
	default: // the others are words, not numbers: "db" is not short for db/orders
		longer = nil
	}
	for _, list := range [][]string{same, longer} {
		slices.Sort(list)
		list = slices.Compact(list)
		switch {
		case len(list) == 1 && len(value) >= least:
			return list[0], nil
		case len(list) == 1:
			return "", status.Errorf(codes.InvalidArgument, "value: %q is too short; do you mean %s?", value, list[0])
		case len(list) != 0:
			return "", status.Errorf(codes.InvalidArgument, "value: %q is the beginning of %d %s values: %s", value, len(list), kind, strings.Join(list[:min(len(list), 5)], ", "))
		}
	}
	return "", status.Errorf(codes.NotFound, "no such %s", kind)
}

// sessionsOf counts the watching sessions that a revocation ends.
func (a *Admin) sessionsOf(ctx context.Context, s broker.Subject) (uint32, error) {
	n := uint32(0)
	err := every(ctx, a.Sessions.Page, func(session broker.Session) {
		if session.Concerns(s) {
			n++
		}
	})
	return n, a.adminError(err)
}

// BlastRadius implements Admin.
func (a *Admin) BlastRadius(ctx context.Context, r *pb.BlastRadiusRequest) (*pb.BlastRadiusResponse, error) {
	s, err := a.subject(ctx, r.GetKind(), r.GetValue(), r.GetMustExist())
	if err != nil {
		return nil, err
	}
	ends, err := a.sessionsOf(ctx, s)
	if err != nil {
		return nil, err
	}
	x, err := a.Sessions.Exposed(ctx, s, unstamp(r.GetSince()))
	if err != nil {
		return nil, a.adminError(err)
	}
	key := func(v broker.ExposedVersion) string { return v.Resource + "@" + v.Version }
	page, next, err := pageOf(ctx, r, slice(x.Versions, key), func(v broker.ExposedVersion) *pb.Exposure {
		e, _ := a.Sessions.Lookup(v.Resource)
		return &pb.Exposure{
			Resource: v.Resource, Version: v.Version, Releases: v.Releases, First: stamp(v.First), Last: stamp(v.Last), Rotatable: e.Rotatable,
		}
	})
	return &pb.BlastRadiusResponse{
		Exposures: page, NextPageToken: next, Releases: x.Releases, Entries: x.Entries, Pruned: x.Pruned, LogOrigin: x.Log, Value: s.Value, Sessions: ends,
	}, a.listError(err)
}
