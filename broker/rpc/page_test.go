package rpc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestPages: page after page has each item once and in order, and none is too long.
func TestPages(t *testing.T) {
	for name, tc := range map[string]struct {
		items, size int    // of each reason
		page        uint32 // asked for
		pages       int    // at least
	}{
		"none":           {0, 0, 0, 1},
		"one":            {1, 10, 0, 1},
		"as many":        {1000, 10, 0, 1},
		"one more":       {1001, 10, 0, 2},
		"small pages":    {10, 10, 3, 4},
		"long ones":      {500, 10_000, 0, 7},
		"very long ones": {5, 1 << 20, 0, 5},
	} {
		var all []*pb.Revocation
		for i := range tc.items {
			all = append(all, &pb.Revocation{Value: fmt.Sprintf("%06d", i), Reason: strings.Repeat("x", tc.size)})
		}
		from := slice(slices.Clone(all), (*pb.Revocation).GetValue)
		var got []*pb.Revocation
		pages := 0
		for token := ""; ; {
			page, next, err := pageOf(t.Context(), &pb.ListRevocationsRequest{PageSize: tc.page, PageToken: token}, from, func(r *pb.Revocation) *pb.Revocation { return r })
			if err != nil {
				t.Fatal(err)
			}
			if n := proto.Size(&pb.ListRevocationsResponse{Revocations: page}); n > pageBytes+pageItems*8 && len(page) > 1 {
				t.Errorf("%s: a page of %d bytes", name, n)
			}
			if tc.page > 0 && len(page) > int(tc.page) {
				t.Errorf("%s: a page of %d items", name, len(page))
			}
			got, pages = append(got, page...), pages+1
			if token = next; token == "" {
				break
			}
		}
		if !slices.Equal(got, all) || pages < tc.pages {
			t.Errorf("%s: %d items in %d pages, want %d in %d", name, len(got), pages, len(all), tc.pages)
		}
	}
	_, _, err := pageOf(t.Context(), &pb.ListRevocationsRequest{PageToken: "?"}, func(context.Context, string, int) ([]int, string, error) { return nil, "", nil }, func(int) *pb.Revocation { return nil })
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token that is none: %v", err)
	}
}

// TestFitting: an answer has as many decisions as fit, and at least one.
func TestFitting(t *testing.T) {
	of := func(size int) *pb.Decision { return &pb.Decision{Entry: strings.Repeat("x", size)} }
	for _, tc := range []struct {
		all  []*pb.Decision
		want int
	}{
		{nil, 0}, {[]*pb.Decision{of(1)}, 1}, {[]*pb.Decision{of(2 << 20), of(1)}, 1},
		{slices.Repeat([]*pb.Decision{of(25_000)}, 1000), pageBytes / 25_005}, {slices.Repeat([]*pb.Decision{of(10)}, 1000), 1000},
	} {
		if got := fitting(tc.all); got != tc.want {
			t.Errorf("%d of %d fit, want %d", got, len(tc.all), tc.want)
		}
	}
}
