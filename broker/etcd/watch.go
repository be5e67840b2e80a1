package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/claviger/claviger/broker/state"
)

const (
	// provePeriod is how often a follower proves that its view is current. Well under state.MaxStaleness.
	provePeriod = 200 * time.Millisecond
	// progressPeriod is how often it asks a watch again how far it is.
	progressPeriod = 50 * time.Millisecond
	proveTimeout   = time.Second
)

// follower is one Watch. Three parts work beside each other, so that neither a
// burst of changes nor the work that they make keeps it from proving that its
// view is current: one takes changes from etcd as fast as they come, one applies
// them, and one proves.
//
// The proof: a linearizable read tells the store's revision R at a time t. The
// watch has shown everything up to R once it showed an event of R or later, or
// said (progress notification) that it is at R or later. When all that had been
// shown by then is applied, the view was current at t.
type follower struct {
	mu       sync.Mutex
	pending  map[string]state.Pair // guarded by mu; shown and not yet applied, by key
	shown    int64                 // guarded by mu; the watch has shown all up to this revision
	proven   time.Time             // guarded by mu; all written before then has been shown; zero: nothing new is proven
	wake     chan struct{}         // something to apply, or proven
	progress chan struct{}         // shown has grown
}

// Watch implements state.KV.
func (s *Store) Watch(ctx context.Context, prefix string, apply func(state.Update), alive func(asOf time.Time)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	// A stream of its own: etcd tells how far a stream is only when all its watches are.
	ctx = metadata.AppendToOutgoingContext(ctx, "claviger-watch", prefix)
	asOf := time.Now()
	pairs, rev, err := s.list(ctx, prefix)
	if err != nil {
		return err
	}
	apply(state.Update{Whole: true, Pairs: pairs, Revision: rev})
	alive(asOf)

	f := &follower{pending: map[string]state.Pair{}, shown: rev, wake: make(chan struct{}, 1), progress: make(chan struct{}, 1)}
	changes := s.client.Watch(ctx, root+prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1))
	wg.Go(func() { f.applyAll(ctx, apply, alive) })
	wg.Go(func() { s.prove(ctx, f) })
	for r := range changes {
		if err := r.Err(); err != nil {
			return fmt.Errorf("etcd watch: %w", err) // compacted, among others: what was missed is read anew
		}
		f.take(r)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.New("etcd watch closed")
}

// take notes what a watch shows.
func (f *follower) take(r clientv3.WatchResponse) {
	f.mu.Lock()
	for _, e := range r.Events {
		key := strings.TrimPrefix(string(e.Kv.Key), root)
		f.pending[key] = state.Pair{Key: key, Value: e.Kv.Value, Revision: e.Kv.ModRevision, Deleted: e.Type == clientv3.EventTypeDelete}
		f.shown = max(f.shown, e.Kv.ModRevision)
	}
	// (The revision in the header of events may be ahead of them.)
	if r.IsProgressNotify() {
		f.shown = max(f.shown, r.Header.Revision)
	}
	f.mu.Unlock()
	signal(f.progress)
	if len(r.Events) > 0 {
		signal(f.wake)
	}
}

// applyAll applies what was shown, and then says what was proven before it was taken.
func (f *follower) applyAll(ctx context.Context, apply func(state.Update), alive func(time.Time)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		f.mu.Lock()
		u := state.Update{Pairs: make([]state.Pair, 0, len(f.pending)), Revision: f.shown}
		for _, p := range f.pending {
			u.Pairs = append(u.Pairs, p)
		}
		clear(f.pending)
		proven := f.proven
		f.proven = time.Time{}
		f.mu.Unlock()
		if len(u.Pairs) > 0 {
			apply(u)
		}
		if !proven.IsZero() {
			alive(proven)
		}
	}
}

// prove proves now and then that the watch has shown everything. A proof that
// fails is no reason to give up the watch: without one the view goes stale.
func (s *Store) prove(ctx context.Context, f *follower) {
	t := time.NewTicker(provePeriod)
	defer t.Stop()
	for {
		asOf := time.Now()
		if rev, err := s.revision(ctx); err == nil && s.await(ctx, f, rev) {
			f.mu.Lock()
			f.proven = asOf
			f.mu.Unlock()
			signal(f.wake)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// await says whether the watch has shown all up to revision rev, soon.
func (s *Store) await(ctx context.Context, f *follower, rev int64) bool {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	again := time.NewTicker(progressPeriod)
	defer again.Stop()
	ask := true
	for {
		f.mu.Lock()
		shown := f.shown
		f.mu.Unlock()
		if shown >= rev {
			return true
		}
		if ask {
			if err := s.client.RequestProgress(ctx); err != nil {
				return false
			}
			ask = false
		}
		select {
		case <-f.progress:
		case <-again.C: // a watch that is behind does not answer
			ask = true
		case <-ctx.Done():
			return false
		}
	}
}

// revision is that of the store, by a linearizable read: one key, so that it costs the same however many there are.
func (s *Store) revision(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	r, err := s.client.Get(ctx, root+"probe", clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("etcd read: %w", err)
	}
	return r.Header.Revision, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
