// Package etcd keeps the brokers' shared state in etcd: an embedded single
// member without any listener by default, an external cluster when there are
// several brokers. Both are used through the same client code. It knows nothing
// of what the records mean.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/claviger/claviger/broker/state"
)

const (
	root = "/claviger/v1/"
	// nonceBucket is how many nonces' expiries share one lease: 2–3 times cheaper than a lease each.
	nonceBucket = 10 * time.Second
	// leaseSlack keeps spent nonces beyond their expiry, for brokers whose clocks are behind.
	leaseSlack = 2 * time.Minute
	// alivePeriod is how often a watcher proves that its view is current. Well under state.MaxStaleness.
	alivePeriod = 250 * time.Millisecond
	opTimeout   = 5 * time.Second
)

// Store is a state.KV over etcd.
type Store struct {
	client *clientv3.Client
	server *embed.Etcd // nil with an external cluster

	closing sync.Once
	closed  error // guarded by closing

	mu     sync.Mutex
	leases map[int64]clientv3.LeaseID // by bucket
}

var _ state.KV = (*Store)(nil)

// Embedded starts a single member in dir: in process, without a port.
func Embedded(ctx context.Context, dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	cfg := embed.NewConfig()
	cfg.Name = "claviger"
	cfg.Dir = filepath.Join(dir, "etcd")
	cfg.ListenClientUrls, cfg.ListenPeerUrls = nil, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "revision", "1000"
	cfg.SnapshotCount = 1000
	// etcd logs a failure on every clean close without listeners; its real errors come back through the client.
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	srv, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
	}
	select {
	case <-srv.Server.ReadyNotify():
	case err := <-srv.Err():
		srv.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
	case <-ctx.Done():
		srv.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, ctx.Err())
	}
	return &Store{client: v3client.New(srv.Server), server: srv, leases: map[int64]clientv3.LeaseID{}}, nil
}

// Cluster is an external etcd.
type Cluster struct {
	Endpoints          []string
	Username, Password string
	TLS                *tls.Config // nil only for loopback in tests
}

// Dial connects to an external cluster.
func Dial(ctx context.Context, c Cluster) (*Store, error) {
	for _, e := range c.Endpoints {
		if c.TLS == nil && !strings.HasPrefix(e, "http://127.0.0.1:") && !strings.HasPrefix(e, "unix:") {
			return nil, fmt.Errorf("etcd endpoint %s: TLS is required beyond loopback", e)
		}
	}
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, Username: c.Username, Password: c.Password, TLS: c.TLS,
		DialTimeout: opTimeout, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	s := &Store{client: cl, leases: map[int64]clientv3.LeaseID{}}
	if _, _, err := s.Get(ctx, "probe"); err != nil {
		cl.Close()
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(c.Endpoints, ","), err)
	}
	return s, nil
}

// Close stops the client, and the member if it is embedded. It may be called again.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.closed = s.client.Close()
		if s.server != nil {
			s.server.Close()
		}
		if errors.Is(s.closed, context.Canceled) {
			s.closed = nil
		}
	})
	return s.closed
}

// Get implements state.KV.
func (s *Store) Get(ctx context.Context, key string) ([]byte, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, err := s.client.Get(ctx, root+key)
	if err != nil {
		return nil, 0, fmt.Errorf("etcd get: %w", err)
	}
	if len(r.Kvs) == 0 {
		return nil, 0, nil
	}
	return r.Kvs[0].Value, r.Kvs[0].ModRevision, nil
}

// List implements state.KV.
func (s *Store) List(ctx context.Context, prefix string) ([]state.Pair, error) {
	pairs, _, err := s.list(ctx, prefix)
	return pairs, err
}

func (s *Store) list(ctx context.Context, prefix string) ([]state.Pair, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, err := s.client.Get(ctx, root+prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("etcd list: %w", err)
	}
	pairs := make([]state.Pair, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		pairs = append(pairs, state.Pair{Key: strings.TrimPrefix(string(kv.Key), root), Value: kv.Value, Revision: kv.ModRevision})
	}
	return pairs, r.Header.Revision, nil
}

// Put implements state.KV.
func (s *Store) Put(ctx context.Context, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if _, err := s.client.Put(ctx, root+key, string(value)); err != nil {
		return fmt.Errorf("etcd put: %w", err)
	}
	return nil
}

// PutIf implements state.KV.
func (s *Store) PutIf(ctx context.Context, key string, value []byte, revision int64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(root+key), "=", revision)).
		Then(clientv3.OpPut(root+key, string(value))).Commit()
	if err != nil {
		return false, fmt.Errorf("etcd put-if: %w", err)
	}
	return r.Succeeded, nil
}

// Delete implements state.KV.
func (s *Store) Delete(ctx context.Context, key string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, err := s.client.Delete(ctx, root+key)
	if err != nil {
		return false, fmt.Errorf("etcd delete: %w", err)
	}
	return r.Deleted > 0, nil
}

// CreateUntil implements state.KV. The key hangs on a lease that it shares with
// others of the same time bucket; the lease only collects garbage, late.
func (s *Store) CreateUntil(ctx context.Context, key string, expires time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	lease, err := s.lease(ctx, expires)
	if err != nil {
		return false, err
	}
	r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(root+key), "=", 0)).
		Then(clientv3.OpPut(root+key, "", clientv3.WithLease(lease))).Commit()
	if err != nil {
		return false, fmt.Errorf("etcd create: %w", err)
	}
	return r.Succeeded, nil
}

func (s *Store) lease(ctx context.Context, expires time.Time) (clientv3.LeaseID, error) {
	bucket := expires.UnixNano() / int64(nonceBucket)
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.leases[bucket]; ok {
		return id, nil
	}
	ttl := time.Until(expires) + nonceBucket + leaseSlack
	g, err := s.client.Grant(ctx, int64(ttl/time.Second)+1)
	if err != nil {
		return 0, fmt.Errorf("etcd grant lease: %w", err)
	}
	for b := range s.leases {
		if b < bucket-int64(time.Hour/nonceBucket) {
			delete(s.leases, b)
		}
	}
	s.leases[bucket] = g.ID
	return g.ID, nil
}

// Watch implements state.KV. alive is called only after a linearizable answer
// of the cluster to which the watch has caught up: a member cut off from its
// majority, or a watch that lags, is not alive.
func (s *Store) Watch(ctx context.Context, prefix string, apply func([]state.Pair), alive func(asOf time.Time)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	asOf := time.Now()
	pairs, rev, err := s.list(ctx, prefix)
	if err != nil {
		return err
	}
	view := map[string]state.Pair{}
	for _, p := range pairs {
		view[p.Key] = p
	}
	apply(sorted(view))
	alive(asOf)

	changes := s.client.Watch(ctx, root+prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1))
	probe := time.NewTicker(alivePeriod)
	defer probe.Stop()
	heads := make(chan headAnswer, 1)
	asking := false
	for {
		select {
		case r, ok := <-changes:
			if !ok {
				return errors.New("etcd watch closed")
			}
			if err := r.Err(); err != nil {
				return fmt.Errorf("etcd watch: %w", err)
			}
			for _, e := range r.Events {
				key := strings.TrimPrefix(string(e.Kv.Key), root)
				if e.Type == clientv3.EventTypeDelete {
					delete(view, key)
				} else {
					view[key] = state.Pair{Key: key, Value: e.Kv.Value, Revision: e.Kv.ModRevision}
				}
				rev = e.Kv.ModRevision
			}
			if len(r.Events) > 0 {
				apply(sorted(view))
			}
		case <-probe.C:
			if !asking {
				asking = true
				go func() { heads <- s.head(ctx, prefix) }()
			}
		case h := <-heads:
			asking = false
			if h.err != nil {
				return h.err
			}
			if h.revision <= rev {
				alive(h.asOf)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type headAnswer struct {
	asOf     time.Time
	revision int64
	err      error
}

// head is the revision of the newest key under prefix, by a linearizable read.
// A deletion that the watch has not shown yet takes a revocation away, which errs on the safe side.
func (s *Store) head(ctx context.Context, prefix string) headAnswer {
	asOf := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	r, err := s.client.Get(ctx, root+prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
	if err != nil {
		return headAnswer{err: fmt.Errorf("etcd read: %w", err)}
	}
	if len(r.Kvs) == 0 {
		return headAnswer{asOf: asOf}
	}
	return headAnswer{asOf: asOf, revision: r.Kvs[0].ModRevision}
}

func sorted(view map[string]state.Pair) []state.Pair {
	out := make([]state.Pair, 0, len(view))
	for _, p := range view {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b state.Pair) int { return strings.Compare(a.Key, b.Key) })
	return out
}
