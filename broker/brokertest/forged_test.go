package brokertest

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
)

// TestForgedCollateral: a mirror that makes up a revocation list, newer than the
// genuine one and under the same names, stops no release, and is counted.
func TestForgedCollateral(t *testing.T) {
	var answer atomic.Pointer[[]byte]
	kds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(*answer.Load()) }))
	defer kds.Close()
	b := Start(t, func(c *server.Config) {
		c.Evidence = server.Evidence{KDS: kds.URL, Ages: map[attest.CollateralKind]server.AgeSpec{
			attest.SNPCRL: {Refresh: server.Duration(time.Millisecond), Max: server.Duration(24 * time.Hour)}}}
	})
	thief, err := teesim.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := b.Env.Root.CRL(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forged, err := thief.CRL(time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	answer.Store(&genuine)
	c := b.Client(t, teesim.ReportOptions{})
	get(t, c, "disks/a")
	answer.Store(&forged)
	for deadline := time.Now().Add(time.Minute); b.metric(t, "claviger_collateral_forged_total") == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no forged answer is counted")
		}
		get(t, c, "disks/a")
	}
	get(t, c, "disks/a")
}
