package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/claviger/claviger/broker/strictjson"
)

// compactorKey says which broker compacts an external cluster for now.
const compactorKey = "maintenance/compactor"

// claim is what stands under compactorKey.
type claim struct {
	Instance string    `json:"instance"`
	Until    time.Time `json:"until"`
}

// Compact has an external cluster forget old revisions until ctx ends: at its own
// defaults it never does, and fills up. One broker at a time does it, with the
// revision that was current a period ago, so that watches of then still find their place.
func (s *Store) Compact(ctx context.Context, instance string, every time.Duration, log *slog.Logger) error {
	t := time.NewTicker(every)
	defer t.Stop()
	var before int64
	said := ""
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := s.compactOnce(ctx, instance, every, before)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			log.WarnContext(ctx, "the etcd cluster cannot be compacted: it fills up unless somebody else does it", "error", err)
		}
		before = now
	}
}

// compactOnce compacts up to a revision, if it is this broker's turn, and returns the current one.
func (s *Store) compactOnce(ctx context.Context, instance string, every time.Duration, upTo int64) (current int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := s.client.Get(ctx, root+compactorKey)
	if err != nil {
		return 0, fmt.Errorf("etcd get: %w", err)
	}
	current = r.Header.Revision
	var c claim
	held := int64(0)
	if len(r.Kvs) > 0 {
		held = r.Kvs[0].ModRevision
		if err := strictjson.Unmarshal(r.Kvs[0].Value, &c); err == nil && c.Instance != instance && time.Now().Before(c.Until) {
			return current, nil // another broker does it
		}
	}
	b, err := json.Marshal(claim{instance, time.Now().Add(2 * every)})
	if err != nil {
		return current, err
	}
	tx, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(root+compactorKey), "=", held)).Then(clientv3.OpPut(root+compactorKey, string(b))).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace): // all the more reason to; twice does no harm
	case err != nil:
		return current, fmt.Errorf("etcd put: %w", err)
	case !tx.Succeeded:
		return current, nil
	}
	if upTo == 0 {
		return current, nil
	}
	if _, err := s.client.Compact(ctx, upTo); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return current, fmt.Errorf("etcd compact: %w", err)
	}
	return current, nil
}
