package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// TestBackoff: never earlier than the server asks for, never later than is sensible.
func TestBackoff(t *testing.T) {
	with := func(c codes.Code, d time.Duration) error {
		s, err := status.New(c, "x").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Errorf("release: %w", s.Err())
	}
	var most time.Duration
	for range 200 {
		for _, asked := range []time.Duration{time.Millisecond, time.Second, 5 * time.Second, time.Minute} {
			if d, again := backoff(with(codes.ResourceExhausted, asked), 0); !again || d < asked || d > max(2*asked, 2*firstWait) {
				t.Fatalf("asked for %s: %s %v", asked, d, again)
			}
		}
		d, _ := backoff(with(codes.ResourceExhausted, time.Minute), 0)
		most = max(most, d)
		for _, odd := range []time.Duration{-time.Hour, 0, time.Nanosecond, 1000 * time.Hour} {
			if d, again := backoff(with(codes.Unavailable, odd), 0); !again || d <= 0 || d > 2*time.Minute {
				t.Fatalf("asked for %s: %s %v", odd, d, again)
			}
		}
		for attempt := range 40 {
			if d, again := backoff(status.Error(codes.Unavailable, ""), attempt); !again || d < firstWait/2 || d > 2*maxWait {
				t.Fatalf("attempt %d: %s %v", attempt, d, again)
			}
		}
	}
	if most < 80*time.Second || most > 90*time.Second+1 {
		t.Errorf("asked for a minute, a fleet comes back within %s", most)
	}
	for _, c := range []codes.Code{codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented, codes.Unauthenticated, codes.OutOfRange} {
		if _, again := backoff(with(c, time.Second), 0); again {
			t.Errorf("%s: asks again", c)
		}
	}
	for _, err := range []error{status.Error(codes.FailedPrecondition, ""), context.DeadlineExceeded} {
		if _, again := backoff(err, 0); !again {
			t.Errorf("%v: does not ask again", err)
		}
	}
	if _, again := backoff(permanent{status.Error(codes.Unavailable, "")}, 0); again {
		t.Error("repeats what only repeats itself")
	}
}

func TestFinal(t *testing.T) {
	for c, want := range map[codes.Code]error{codes.PermissionDenied: ErrDenied, codes.InvalidArgument: ErrRefused, codes.Unimplemented: ErrRefused, codes.OutOfRange: ErrRefused} {
		if err := final(fmt.Errorf("release: %w", status.Error(c, "x"))); !errors.Is(err, want) {
			t.Errorf("%s: %v", c, err)
		}
	}
	if err := final(permanent{fmt.Errorf("%w: x", ErrNotOurBroker)}); !errors.Is(err, ErrNotOurBroker) {
		t.Errorf("got %v", err)
	}
}
