package main

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// page is an answer to a listing that has more of them.
type page interface {
	proto.Message
	GetNextPageToken() string
}

// whole asks for page after page, and returns what they have together.
func whole[P page](ask func(token string) (P, error)) (P, error) {
	all, err := ask("")
	for token := all.GetNextPageToken(); err == nil && token != ""; {
		var p P
		if p, err = ask(token); err == nil {
			proto.Merge(all, p)
			token = p.GetNextPageToken()
		}
	}
	if err != nil {
		return all, err
	}
	m := all.ProtoReflect()
	m.Clear(m.Descriptor().Fields().ByName("next_page_token"))
	return all, nil
}

// newest reads the newest decisions, at most limit and none before the index
// from, in the order of the log.
func newest(ctx context.Context, c pb.AdminClient, limit uint32, from uint64) ([]*pb.Decision, error) {
	var found []*pb.Decision
	q := &pb.ListDecisionsRequest{Limit: min(limit, 1000)}
	for uint32(len(found)) < limit {
		r, err := c.ListDecisions(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, d := range r.GetDecisions() {
			if d.GetLogIndex() < from || uint32(len(found)) == limit {
				slices.Reverse(found)
				return found, nil
			}
			found = append(found, d)
			q.Before = d.GetLogIndex()
		}
		if len(r.GetDecisions()) == 0 || q.Before == 0 {
			break
		}
	}
	slices.Reverse(found)
	return found, nil
}
