package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/state"
)

const (
	// lookEvery is how often the broker looks at what it cannot work without, whether or not anybody asks for a secret.
	lookEvery = 5 * time.Second
	// probeBytes is what a few records take in the log.
	probeBytes = 256 << 10
)

// surroundings are the faults of what lies outside of the broker and its shared state.
type surroundings struct {
	mu      sync.Mutex
	log     error              // why nothing can be recorded; guarded by mu
	sources map[string]error   // by name; guarded by mu
	missing []broker.KeyRecord // guarded by mu
}

// look goes on until ctx ends.
func (s *Server) look(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		s.lookOnce(ctx)
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) lookOnce(ctx context.Context) {
	logErr := probe(s.cfg.Audit.Dir)
	sources := make(map[string]error, len(s.vaults))
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, v := range s.cfg.Vault {
		wg.Go(func() {
			err := s.vaults[i].Health(ctx)
			mu.Lock()
			defer mu.Unlock()
			sources[v.Name] = err
		})
	}
	wg.Wait()
	missing, err := s.broker.MissingKeys(ctx)
	if ctx.Err() != nil {
		return
	}
	o := &s.outside
	o.mu.Lock()
	defer o.mu.Unlock()
	s.logTurn("the audit log cannot be written, so nothing is released", "audit log", o.log, logErr)
	for name, err := range sources {
		s.logTurn("a source does not answer", name, o.sources[name], err)
	}
	o.log, o.sources = logErr, sources
	if err == nil {
		o.missing = missing
	}
}

// missingKeys are those that vanished from their sources, as they were when the broker looked last.
func (s *Server) missingKeys() []broker.KeyRecord {
	s.outside.mu.Lock()
	defer s.outside.mu.Unlock()
	return s.outside.missing
}

// logTurn logs a fault once, and its end.
func (s *Server) logTurn(what, name string, was, is error) {
	switch {
	case was == nil && is != nil:
		s.log.Warn(what, "name", name, "error", is)
	case was != nil && is == nil:
		s.log.Info("well again", "name", name)
	}
}

// probe finds out whether records could be written to a folder.
func probe(dir string) (err error) {
	name := filepath.Join(dir, ".probe")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(name)) }()
	_, err = f.Write(make([]byte, probeBytes))
	return errors.Join(err, f.Sync(), f.Close())
}

// outsideProblems are what s.look found, in words for operators.
func (s *Server) outsideProblems() []state.Problem {
	o := &s.outside
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []state.Problem
	if o.log != nil {
		out = append(out, state.Problem{Kind: "audit log", Name: s.cfg.Audit.Dir, Reason: o.log.Error(), Stops: "all", StopsAll: true})
	}
	used, down := map[string]bool{}, 0
	for _, e := range s.broker.Catalog().Entries() {
		used[e.Source] = true
	}
	for name := range used {
		if o.sources[name] != nil {
			down++
		}
	}
	for _, v := range s.cfg.Vault {
		if err := o.sources[v.Name]; err != nil {
			out = append(out, state.Problem{
				Kind: "source", Name: v.Name, Reason: err.Error(), Stops: fmt.Sprintf("resources of source %s, unless the policy allows a copy", v.Name),
				StopsAll: down > 0 && down == len(used),
			})
		}
	}
	for _, k := range o.missing {
		out = append(out, state.Problem{
			Kind: "key", Name: k.Source + " " + path.Join(k.Mount, k.Key), Stops: "the resource that leads to it",
			Reason: fmt.Sprintf("it had version %d and is missing since %s: restore it there, or have a new one made with claviger secret forget RESOURCE", k.Version, k.Missing.UTC().Format(time.RFC3339)),
		})
	}
	return out
}
