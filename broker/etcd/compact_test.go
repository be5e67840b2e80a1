package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/claviger/claviger/internal/testservers"
)

// TestCompact: of several brokers on an external cluster one compacts it, and another goes on when that one is gone.
func TestCompact(t *testing.T) {
	cluster := testservers.StartEtcd(t, 1)
	dial := func() *Store {
		s, err := Dial(t.Context(), Cluster{Endpoints: cluster.Endpoints})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	a, b := dial(), dial()
	churn := func() (first int64) {
		for i := range 50 {
			r, err := a.client.Put(t.Context(), root+"nonces/x", fmt.Sprint(i))
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = r.Header.Revision
			}
		}
		return first
	}
	gone := func(revision int64) bool {
		_, err := a.client.Get(t.Context(), root+"nonces/x", clientv3.WithRev(revision))
		return err != nil && strings.Contains(err.Error(), "compacted")
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for range 1200 { // a minute
			if ok() {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatal("never: ", what)
	}
	const every = 200 * time.Millisecond
	first := churn()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Compact(ctx, "a", every, slog.New(slog.DiscardHandler)) }()
	eventually("compacted", func() bool { return gone(first) })

	// While a holds the claim, b does nothing; nor does b take what a has under way.
	second := churn()
	if _, err := b.compactOnce(t.Context(), "b", every, second); err != nil {
		t.Fatal(err)
	}
	var holder claim
	if err := getClaim(t, b, &holder); err != nil || holder.Instance != "a" {
		t.Errorf("claim %+v: %v", holder, err)
	}
	stop()
	<-ended
	third := churn()
	eventually("b takes over", func() bool {
		if _, err := b.compactOnce(t.Context(), "b", every, third); err != nil {
			t.Fatal(err)
		}
		return gone(second)
	})
}

func getClaim(t *testing.T, s *Store, c *claim) error {
	v, _, err := s.Get(t.Context(), compactorKey)
	if err != nil {
		return err
	}
	return json.Unmarshal(v, c)
}
