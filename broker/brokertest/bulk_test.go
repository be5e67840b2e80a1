package brokertest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/etcd"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

const (
	manyRevocations = 100_000
	manySets        = 10_000
)

// fillState writes many records into the embedded store of a broker that does not run yet.
func fillState(t *testing.T, dataDir string) {
	t.Helper()
	kv, err := etcd.StartMember(t.Context(), etcd.Member{Dir: filepath.Join(dataDir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dataDir, "seal.key"), []byte(strings.Repeat("ab", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	work := make(chan int)
	var wg sync.WaitGroup
	for range 256 { // etcd writes those of one moment together
		wg.Go(func() {
			for i := range work {
				var key string
				var v any
				if i < manyRevocations {
					s := broker.Subject{Kind: broker.RevokeChip, Value: fmt.Sprintf("%0128x", i)}
					key, v = fmt.Sprintf("config/revocations/chip/%d", i), broker.Revocation{Subject: s, Reason: "bulk", RevokedBy: "test", RevokedAt: time.Now()}
				} else {
					name := fmt.Sprintf("set-%d", i)
					key, v = "config/references/"+name, broker.ReferenceSet{
						Name: name, Type: attest.TypeSNP, State: broker.ReferenceActive,
						Values: map[string][]string{"measurement": {fmt.Sprintf("%096x", i)}, "host_data": {fmt.Sprintf("%064x", i)}},
					}
				}
				b, err := json.Marshal(v)
				if err == nil {
					err = kv.Put(t.Context(), key, b)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range manyRevocations + manySets {
		work <- i
	}
	close(work)
	wg.Wait()
}

// TestBulk: with 100,000 revocations and 10,000 reference sets a broker starts, and
// bulk writes beside releases, of both kinds, make none of these fail: the view
// of the shared state is never stale.
func TestBulk(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 110,000 records")
	}
	env, err := dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	fillState(t, env.Config.DataDir)
	t.Logf("records written in %s", time.Since(at))
	env.Config.Listen, env.Config.Admin.Listen, env.Config.Metrics = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	unlimited := 0.0
	at = time.Now()
	b := StartEnv(t, env, func(c *server.Config) { c.Limits.PeerRate = &unlimited })
	t.Logf("started in %s", time.Since(at))
	get(t, b.Client(t, teesim.ReportOptions{}), "db/orders")

	var written atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				var err error
				if i%10 == 0 {
					_, err = b.Admin.PutReferenceSet(ctx, &pb.PutReferenceSetRequest{Set: &pb.ReferenceSet{
						Name: fmt.Sprintf("bulk-%d-%d", w, i), Type: "sev-snp", State: "active", Owner: &pb.ReferenceOwner{Policies: []string{"*"}},
						Values: map[string]*pb.ReferenceValues{"measurement": {Values: []string{fmt.Sprintf("%048x%048x", w, i)}}},
					}})
				} else {
					_, err = b.Admin.Revoke(ctx, &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: fmt.Sprintf("%064x%064x", w+1, i), Reason: "bulk"}})
				}
				if ctx.Err() == nil {
					if err != nil {
						t.Errorf("write: %v", err)
					}
					written.Add(1)
				}
			}
		})
	}
	longest, released := time.Duration(0), 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && !t.Failed(); released++ {
		at := time.Now()
		if _, err := b.Workload.Release(t.Context(), releaseRequest(t, b)); err != nil {
			t.Errorf("release %d, beside %d writes: %v", released, written.Load(), err)
		}
		longest = max(longest, time.Since(at))
	}
	cancel()
	wg.Wait()
	t.Logf("%d writes beside %d releases, the longest of which took %s", written.Load(), released, longest)
	if written.Load() < 100 || released < 10 {
		t.Errorf("only %d writes beside %d releases", written.Load(), released)
	}

	// What was acknowledged holds.
	chip := hex.EncodeToString(b.Env.Device.ChipID())
	if _, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: chip}}); err != nil {
		t.Fatal(err)
	}
	denied(t, b.Client(t, teesim.ReportOptions{}), "db/orders")
}
