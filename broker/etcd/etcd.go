// Package etcd keeps the brokers' shared state in etcd: an embedded single
// member without any listener by default, an external cluster when there are
// several brokers. Both are used through the same client code. It knows nothing
// of what the records mean.
package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/claviger/claviger/broker/reread"
	"github.com/claviger/claviger/broker/state"
)

const (
	root = "/claviger/v1/"
	// nonceBucket is how many nonces' expiries share one lease: 2–3 times cheaper than a lease each.
	nonceBucket = 10 * time.Second
	// leaseSlack keeps spent nonces beyond their expiry, for brokers whose clocks are ahead of the one that spent them.
	leaseSlack = 2 * time.Minute
	// markerSlack keeps the markers of buckets longer than the lease, for brokers whose clocks are behind by as much.
	markerSlack = 24 * time.Hour
	buckets     = "buckets/"
	opTimeout   = 5 * time.Second
	// A list asks for firstPage pairs, and then for about pageBytes at a time: a
	// message holds them, and they hold up nobody else. etcd counts all that are left
	// for each page, so few pairs at a time would take longer.
	firstPage, mostPerPage = 500, 10_000
	pageBytes              = 4 << 20
	listAttempts           = 5
)

// Store is a state.KV over etcd.
type Store struct {
	client *clientv3.Client
	server *embed.Etcd // nil with an external cluster

	closing sync.Once
	closed  error // guarded by closing

	mu     sync.Mutex
	leases map[int64]clientv3.LeaseID // guarded by mu; by bucket

	room room
}

var _ state.KV = (*Store)(nil)

// Cluster is an external etcd.
type Cluster struct {
	Endpoints []string
	Username  string
	Password  func() string         // asked for at each login; nil: none
	TLS       *tls.Config           // nil only for loopback in tests
	Roots     func() *x509.CertPool // asked for at each handshake; nil: those of TLS
	Logger    *slog.Logger
}

// options have the client ask at each login and handshake for what may have changed.
func (c Cluster) options() (opts []grpc.DialOption) {
	if c.TLS != nil && c.Roots != nil {
		opts = append(opts, grpc.WithTransportCredentials(reread.Credentials(c.TLS, c.Roots)))
	}
	if c.Password != nil {
		opts = append(opts, grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, more ...grpc.CallOption) error {
			if a, ok := req.(*etcdserverpb.AuthenticateRequest); ok {
				a.Password = c.Password()
			}
			return next(ctx, method, req, reply, cc, more...)
		}))
	}
	return opts
}

// Dial connects to an external cluster.
func Dial(ctx context.Context, c Cluster) (*Store, error) {
	for _, e := range c.Endpoints {
		if c.TLS == nil && !strings.HasPrefix(e, "http://127.0.0.1:") && !strings.HasPrefix(e, "unix:") {
			return nil, fmt.Errorf("etcd endpoint %s: TLS is required beyond loopback", e)
		}
	}
	var password string
	if c.Password != nil {
		password = c.Password()
	}
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, Username: c.Username, Password: password, TLS: c.TLS, DialOptions: c.options(),
		DialTimeout: opTimeout, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	s := &Store{client: cl, leases: map[int64]clientv3.LeaseID{}, room: newRoom(c.Logger)}
	if _, _, err := s.Get(ctx, "probe"); err != nil {
		cl.Close()
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(c.Endpoints, ","), err)
	}
	if err := s.checkVersion(ctx); err != nil {
		cl.Close()
		return nil, err
	}
	s.background(s.watchCluster)
	return s, nil
}

// checkVersion refuses etcd before 3.5.8 (and 3.4.25): it may say that a watch has
// shown everything when it has not (etcd's issue 15220), and our proof that the view is
// current rests on that. A member that does not answer now is not asked later.
func (s *Store) checkVersion(ctx context.Context) error {
	for _, e := range s.client.Endpoints() {
		one, cancel := context.WithTimeout(ctx, time.Second)
		r, err := s.client.Status(one, e)
		cancel()
		if err != nil {
			continue
		}
		if !provesProgress(r.Version) {
			return fmt.Errorf("etcd at %s is version %s, want 3.5.8 or later", e, r.Version)
		}
	}
	return nil
}

func provesProgress(version string) bool {
	var major, minor, patch int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); err != nil {
		return false
	}
	switch {
	case major != 3:
		return major > 3
	case minor == 4:
		return patch >= 25
	case minor == 5:
		return patch >= 8
	}
	return minor > 5
}

// Close stops the client, and the member if it is embedded. It may be called again.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.room.stop()
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

// list returns all pairs under prefix at one revision of the store.
func (s *Store) list(ctx context.Context, prefix string) ([]state.Pair, int64, error) {
	for range listAttempts {
		pairs, rev, err := s.listOnce(ctx, prefix)
		if !errors.Is(err, rpctypes.ErrCompacted) { // it was forgotten between two pages
			return pairs, rev, err
		}
	}
	return nil, 0, fmt.Errorf("etcd list: compacted %d times meanwhile", listAttempts)
}

func (s *Store) listOnce(ctx context.Context, prefix string) ([]state.Pair, int64, error) {
	var pairs []state.Pair
	var rev int64
	after, limit := "", firstPage
	for {
		page, at, err := s.page(ctx, prefix, after, limit, rev)
		if err != nil {
			return nil, 0, err
		}
		pairs, rev = append(pairs, page...), at
		if len(page) < limit {
			return pairs, rev, nil
		}
		size := 0
		for _, p := range page {
			size += len(p.Key) + len(p.Value)
		}
		after, limit = page[len(page)-1].Key, min(max(pageBytes*len(page)/size, 1), mostPerPage)
	}
}

// Page implements state.KV.
func (s *Store) Page(ctx context.Context, prefix, after string, limit int) ([]state.Pair, error) {
	if limit <= 0 { // etcd's 0 is no limit
		return nil, nil
	}
	pairs, _, err := s.page(ctx, prefix, after, limit, 0)
	return pairs, err
}

// page reads at the given revision of the store, 0 being the newest, and returns that revision.
func (s *Store) page(ctx context.Context, prefix, after string, limit int, rev int64) ([]state.Pair, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	from := max(root+prefix, root+after+"\x00")
	if after == "" {
		from = root + prefix
	}
	r, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(root+prefix)), clientv3.WithLimit(int64(limit)), clientv3.WithRev(rev))
	if err != nil {
		return nil, 0, fmt.Errorf("etcd list: %w", err)
	}
	if rev == 0 {
		rev = r.Header.Revision
	}
	pairs := make([]state.Pair, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		pairs = append(pairs, state.Pair{Key: strings.TrimPrefix(string(kv.Key), root), Value: kv.Value, Revision: kv.ModRevision})
	}
	return pairs, rev, nil
}

// Put implements state.KV.
func (s *Store) Put(ctx context.Context, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := s.spare(len(key) + len(value)); err != nil {
		return fmt.Errorf("etcd put: %w", err)
	}
	if _, err := s.client.Put(ctx, root+key, string(value)); err != nil {
		return fmt.Errorf("etcd put: %w", s.failed(err))
	}
	return nil
}

// PutIf implements state.KV.
func (s *Store) PutIf(ctx context.Context, key string, value []byte, revision int64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := s.spare(len(key) + len(value)); err != nil {
		return false, fmt.Errorf("etcd put-if: %w", err)
	}
	r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(root+key), "=", revision)).
		Then(clientv3.OpPut(root+key, string(value))).Commit()
	if err != nil {
		return false, fmt.Errorf("etcd put-if: %w", s.failed(err))
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

// Commit implements state.KV.
func (s *Store) Commit(ctx context.Context, c state.Change) (int64, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if c.Delete && c.Unless == "" { // by itself, because a full store takes this and no transaction
		r, err := s.client.Delete(ctx, root+c.Key)
		if err != nil {
			return 0, false, fmt.Errorf("etcd delete: %w", err)
		}
		return r.Header.Revision, r.Deleted > 0, nil
	}
	s.count(len(c.Key) + len(c.Value))
	op := clientv3.OpPut(root+c.Key, string(c.Value))
	if c.Delete {
		op = clientv3.OpDelete(root + c.Key)
	}
	txn := s.client.Txn(ctx)
	if c.Unless != "" {
		txn = txn.If(clientv3.Compare(clientv3.ModRevision(root+c.Unless).WithPrefix(), "<", c.Since+1))
	}
	r, err := txn.Then(op).Commit()
	if err != nil {
		return 0, false, fmt.Errorf("etcd commit: %w", s.failed(err))
	}
	done := r.Succeeded
	if done && c.Delete {
		done = r.Responses[0].GetResponseDeleteRange().GetDeleted() > 0
	}
	return r.Header.Revision, done, nil
}

// CreateUntil implements state.KV. Keys that expire in the same nonceBucket hang
// on one lease, which collects garbage, late. It is granted once in the life of
// a bucket, for all brokers, and a marker names it that is kept for a day more:
// when the lease is gone its keys are forgotten, and none can be created in
// that bucket again, whatever a broker whose clock is behind thinks of their expiry.
func (s *Store) CreateUntil(ctx context.Context, key string, expires time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := s.spare(len(key)); err != nil {
		return false, fmt.Errorf("etcd create: %w", err)
	}
	lease, err := s.lease(ctx, expires)
	if err != nil {
		return false, err
	}
	r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(root+key), "=", 0)).
		Then(clientv3.OpPut(root+key, "", clientv3.WithLease(lease))).Commit()
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("etcd create: %w", s.failed(err))
	}
	return r.Succeeded, nil
}

// lease is the one of the bucket of expires.
func (s *Store) lease(ctx context.Context, expires time.Time) (clientv3.LeaseID, error) {
	bucket := expires.UnixNano() / int64(nonceBucket)
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.leases[bucket]; ok {
		return id, nil
	}
	id, err := s.openBucket(ctx, bucket, max(time.Until(expires), 0)+nonceBucket+leaseSlack)
	if err != nil {
		return 0, fmt.Errorf("etcd grant lease: %w", s.failed(err))
	}
	for b := range s.leases {
		if b < bucket-int64(time.Hour/nonceBucket) {
			delete(s.leases, b)
		}
	}
	s.leases[bucket] = id
	return id, nil
}

// openBucket reads the bucket's marker, or grants its lease and writes the marker. Of brokers that do so at once, one does.
func (s *Store) openBucket(ctx context.Context, bucket int64, ttl time.Duration) (clientv3.LeaseID, error) {
	marker := root + buckets + strconv.FormatInt(bucket, 10)
	r, err := s.client.Get(ctx, marker)
	if err != nil {
		return 0, err
	}
	if len(r.Kvs) > 0 {
		return leaseNamed(r.Kvs[0].Value)
	}
	var granted []clientv3.LeaseID
	for _, life := range []time.Duration{ttl, ttl + markerSlack} {
		g, err := s.client.Grant(ctx, int64(life/time.Second)+1)
		if err != nil {
			return 0, err
		}
		granted = append(granted, g.ID)
	}
	t, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(marker), "=", 0)).
		Then(clientv3.OpPut(marker, strconv.FormatInt(int64(granted[0]), 10), clientv3.WithLease(granted[1]))).
		Else(clientv3.OpGet(marker)).Commit()
	if err != nil {
		return 0, err
	}
	if t.Succeeded {
		return granted[0], nil
	}
	for _, id := range granted {
		_, _ = s.client.Revoke(ctx, id) // or it ends by itself
	}
	kvs := t.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) == 0 {
		return 0, errors.New("marker of a bucket came and went")
	}
	return leaseNamed(kvs[0].Value)
}

func leaseNamed(marker []byte) (clientv3.LeaseID, error) {
	id, err := strconv.ParseInt(string(marker), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("marker of a bucket: %w", err)
	}
	return clientv3.LeaseID(id), nil
}
