package vault

import (
	"context"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker"
)

const (
	// maxLeftovers bounds what is remembered of what could not be ended yet.
	maxLeftovers = 10_000
	cleanEvery   = 5 * time.Second
)

// A leftover is something in Vault that this broker made, does not need any more, and could not end yet.
// (What belongs to a session is in the brokers' shared state, and not among them.)
type leftover struct {
	what string // for operators
	end  func(ctx context.Context) error
}

// endNow ends something. What cannot be ended now is tried again by Run until it is.
func (s *Source) endNow(ctx context.Context, l leftover) error {
	err := l.end(context.WithoutCancel(ctx))
	if err == nil {
		return nil
	}
	s.leftMu.Lock()
	defer s.leftMu.Unlock()
	if len(s.left) >= maxLeftovers {
		s.log.ErrorContext(ctx, "vault: left over, and not tried again: there are too many such", "source", s.cfg.Name, "what", l.what, "error", err)
		return err
	}
	s.left = append(s.left, l)
	s.log.WarnContext(ctx, "vault: left over, trying again", "source", s.cfg.Name, "what", l.what, "error", err)
	return err
}

// revokeSoon ends a token that nobody got.
func (s *Source) revokeSoon(ctx context.Context, accessor string) error {
	return s.endNow(ctx, leftover{"token with accessor " + accessor, func(ctx context.Context) error {
		return s.RevokeOwner(ctx, broker.Owner{ID: accessor})
	}})
}

// clean ends what is left over, until ctx ends.
func (s *Source) clean(ctx context.Context) {
	t := time.NewTicker(cleanEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.cleanOnce(ctx)
		}
	}
}

// cleanOnce stops at the first failure: Vault would refuse the others as well, most likely. The one that failed is the last next time.
func (s *Source) cleanOnce(ctx context.Context) {
	for range s.leftovers() {
		s.leftMu.Lock()
		l := s.left[0]
		s.left = s.left[1:]
		s.leftMu.Unlock()
		err := l.end(ctx)
		if err == nil {
			s.log.InfoContext(ctx, "vault: what was left over is gone", "source", s.cfg.Name, "what", l.what)
			continue
		}
		s.leftMu.Lock()
		s.left = append(s.left, l)
		s.leftMu.Unlock()
		if ctx.Err() == nil {
			s.log.WarnContext(ctx, "vault: still left over, trying again", "source", s.cfg.Name, "what", l.what, "error", fmt.Errorf("%w", err))
		}
		return
	}
}

func (s *Source) leftovers() int {
	s.leftMu.Lock()
	defer s.leftMu.Unlock()
	return len(s.left)
}
