package agent

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/attest"
)

// stuck is a device that does not answer until let go of.
type stuck struct {
	asked, at, most atomic.Int64
	release         chan struct{}
}

func (s *stuck) Evidence(context.Context, attest.Transcript) (attest.Evidence, error) {
	s.asked.Add(1)
	if n := s.at.Add(1); n > s.most.Load() {
		s.most.Store(n)
	}
	defer s.at.Add(-1)
	<-s.release
	return attest.Evidence{Type: "stuck", Report: []byte{1}}, nil
}

func (s *stuck) Activate(context.Context, func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error {
	return nil
}

// TestDeviceThatHangs keeps neither a request nor a watch from ending when it
// is told to, is asked by one request at a time, and is used again once it answers.
func TestDeviceThatHangs(t *testing.T) {
	device := &stuck{release: make(chan struct{})}
	c := cluster(t, &failing{err: status.Error(codes.Unavailable, "the evidence arrived")})
	c.devices = []hasty{newHasty(device)}
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() {
			_, _, err := c.Get(ctx, "a")
			done <- err
		}()
		go func() { done <- c.Watch(ctx, []string{"a"}, func(context.Context, Secret) error { return nil }) }()
		for device.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, ErrUnreachable) {
				t.Errorf("ended with %v", err)
			}
		}
	}
	if n := device.most.Load(); n != 1 {
		t.Errorf("%d calls at once", n)
	}
	close(device.release)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, _, err := c.Get(ctx, "a"); err == nil || !strings.Contains(err.Error(), "the evidence arrived") {
		t.Errorf("with a device that answers again: %v", err)
	}
}
