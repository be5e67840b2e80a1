package rpc

import (
	"cmp"
	"context"
	"encoding/base64"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/claviger/claviger/broker"
)

const (
	// pageBytes bounds what a listing answers with: gRPC clients take 4 MiB.
	pageBytes = 768 << 10
	pageItems = 1000
)

// paged is a request for a page of a listing.
type paged interface {
	GetPageSize() uint32
	GetPageToken() string
}

// fetch reads at most limit items that come after one, and says after which
// the next page starts: "" if there is none.
type fetch[T any] func(ctx context.Context, after string, limit int) (page []T, next string, err error)

// pageOf answers a request for a page, in messages that together are not too long.
func pageOf[T any, M proto.Message](ctx context.Context, r paged, from fetch[T], message func(T) M) (page []M, token string, err error) {
	after, err := base64.RawURLEncoding.DecodeString(r.GetPageToken())
	if err != nil {
		return nil, "", status.Error(codes.InvalidArgument, "page_token: none of ours")
	}
	limit := int(r.GetPageSize())
	if limit == 0 || limit > pageItems {
		limit = pageItems
	}
	for {
		items, next, err := from(ctx, string(after), limit)
		if err != nil {
			return nil, "", err
		}
		page, size := make([]M, 0, len(items)), 0
		for _, item := range items {
			m := message(item)
			page, size = append(page, m), size+proto.Size(m)
		}
		if size <= pageBytes || limit == 1 {
			return page, base64.RawURLEncoding.EncodeToString([]byte(next)), nil
		}
		limit = max(1, min(limit/2, len(items)*pageBytes/size))
	}
}

// every shows all items of a listing.
func every[T any](ctx context.Context, from fetch[T], f func(T)) error {
	for after := ""; ; {
		page, next, err := from(ctx, after, pageItems)
		if err != nil {
			return err
		}
		for _, item := range page {
			f(item)
		}
		if next == "" {
			return nil
		}
		after = next
	}
}

// slice is a fetch from what is in memory, by a key that is unique.
func slice[T any](all []T, key func(T) string) fetch[T] {
	return func(_ context.Context, after string, limit int) (page []T, next string, err error) {
		byKey := func(a, b T) int { return cmp.Compare(key(a), key(b)) }
		sorted := slices.Clone(all)
		slices.SortStableFunc(sorted, byKey)
		for _, item := range sorted {
			if after != "" && key(item) <= after {
				continue
			}
			if len(page) == limit {
				return page, key(page[limit-1]), nil
			}
			page = append(page, item)
		}
		return page, "", nil
	}
}

// listError is for errors of pageOf, which has its own.
func (a *Admin) listError(err error) error {
	if status.Code(err) == codes.InvalidArgument {
		return err
	}
	return a.adminError(err)
}

// fitting is how many of the first messages fit into an answer, at least one.
func fitting[M proto.Message](all []M) int {
	size := 0
	for i, m := range all {
		if size += proto.Size(m); size > pageBytes && i > 0 {
			return i
		}
	}
	return len(all)
}

// holding is a session that holds a resource.
type holding struct {
	session broker.Session
	broker.Holding
}

// holders is a fetch of those sessions.
func holders(s Sessions, resource string) fetch[holding] {
	return func(ctx context.Context, after string, limit int) (page []holding, next string, err error) {
		sessions, next, err := s.Page(ctx, after, limit)
		if err != nil {
			return nil, "", err
		}
		for _, v := range sessions {
			for _, h := range v.Holdings {
				if h.Resource == resource {
					page = append(page, holding{v, h})
				}
			}
		}
		return page, next, nil
	}
}
