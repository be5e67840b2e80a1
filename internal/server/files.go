package server

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/claviger/claviger/broker/reread"
)

// fileEvery is how often files are looked at. One that changed is read when two
// looks see the same: while it is copied it may look complete, and lack a root.
const fileEvery = 2 * time.Second

// trustFile is a part of the configuration that lies in files of its own, and says whom the broker believes.
type trustFile struct {
	name  string
	paths func() []string
	apply func(context.Context) error // puts what they say in force, all of it or nothing

	seen, last reread.Digest
	err        atomic.Pointer[error] // why what they say now is not in force
}

func (s *Server) trustFiles() []*trustFile {
	all := []*trustFile{
		{name: "evidence", paths: s.cfg.Evidence.files, apply: func(ctx context.Context) error {
			vs, err := s.verifiers(ctx, s.ticketKey)
			if err != nil {
				return err
			}
			s.broker.SetVerifiers(vs.Verifiers, vs.TPM)
			return nil
		}},
		{name: "evidence.bundle", paths: func() []string {
			if s.cfg.Evidence.Bundle == "" {
				return nil
			}
			return []string{s.cfg.Evidence.Bundle, s.cfg.Evidence.Bundle + ".sig", s.cfg.Evidence.BundleKey}
		}, apply: func(context.Context) error {
			b, err := s.cfg.Evidence.readBundle()
			if err != nil {
				return err
			}
			s.collateral.SetBundle(b)
			return nil
		}},
		{name: "policy.verification_keys", paths: func() (out []string) {
			for _, f := range s.cfg.Policy.VerificationKeys {
				out = append(out, f)
			}
			slices.Sort(out)
			return out
		}, apply: func(context.Context) error {
			keys, err := s.verificationKeys()
			if err != nil {
				return err
			}
			return s.engine.SetVerificationKeys(keys)
		}},
	}
	for _, f := range all {
		f.seen = reread.DigestOf(f.paths()...)
		f.last = f.seen
	}
	return all
}

// followFiles goes on until ctx ends.
func (s *Server) followFiles(ctx context.Context) error {
	t := time.NewTicker(fileEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, f := range s.files {
			now := reread.DigestOf(f.paths()...)
			if settled := now == f.last; now != f.seen && settled {
				f.seen = now
				s.putInForce(ctx, f)
			}
			f.last = now
		}
	}
}

func (s *Server) putInForce(ctx context.Context, f *trustFile) {
	err := f.apply(ctx)
	if err == nil {
		f.err.Store(nil)
		s.log.InfoContext(ctx, "files changed, and what they say is in force", "field", f.name, "files", f.paths())
		return
	}
	err = fmt.Errorf("files changed, and what they say cannot be used: %w", err)
	f.err.Store(&err)
	s.log.ErrorContext(ctx, "what was in force before still is", "field", f.name, "error", err)
}
