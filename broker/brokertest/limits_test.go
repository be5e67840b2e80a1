package brokertest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestSilentStreams: streams on which nothing is said end, and disturb nobody.
func TestSilentStreams(t *testing.T) {
	b := Start(t, func(c *server.Config) { c.Limits.Patience, c.Limits.PeerStreams = server.Duration(time.Second), 32 })
	ended := make(chan error, 100)
	for range cap(ended) {
		st, err := b.Workload.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, err := st.Recv(); ended <- err }()
	}
	limit := time.After(time.Minute)
	for range cap(ended) {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("something was said")
			}
		case <-limit:
			t.Fatal("there are streams that nobody ends")
		}
	}
	if _, _, err := b.Client(t, teesim.ReportOptions{}).Get(t.Context(), "db/orders"); err != nil {
		t.Error(err)
	}
}

// TestEmptyAcknowledgement: what acknowledges nothing changes nothing, and is not written.
func TestEmptyAcknowledgement(t *testing.T) {
	b := Start(t, nil)
	r := rawWatch(t, b)
	r.subscribe(&pb.Subscribe{Request: r.request(newKey(t), nil, "db/orders")})
	r.recv()
	if r.recv().GetSecret() == nil {
		t.Fatal("no secret")
	}
	acknowledge := func(resource, version string) {
		t.Helper()
		if err := r.st.Send(&pb.WatchRequest{Message: &pb.WatchRequest_Acknowledge{Acknowledge: &pb.Acknowledge{Resource: resource, Version: version}}}); err != nil {
			t.Fatal(err)
		}
	}
	acknowledge("db/orders", "1")
	eventually(t, "version 1 is held", func() bool {
		h := b.holders(t, "db/orders").GetHolders()
		return len(h) == 1 && h[0].GetVersion() == "1"
	})
	before := b.holders(t, "db/orders").GetHolders()[0]
	for range 50 {
		acknowledge("db/orders", "")
		acknowledge("db/orders", "1")
	}
	b.put(t, "db/orders", "another")
	if r.recv().GetSecret() == nil { // in answer to what came after them
		t.Fatal("no new version")
	}
	after := b.holders(t, "db/orders").GetHolders()
	if len(after) != 1 || after[0].GetVersion() != "1" || !after[0].GetAcknowledgedAt().AsTime().Equal(before.GetAcknowledgedAt().AsTime()) {
		t.Errorf("held is %v, was %v", after, before)
	}
}

// TestInventedChips: chips that nobody knows wait for AMD's service, and for
// nothing else: known ones go on though there are more of those than slots.
func TestInventedChips(t *testing.T) {
	const slots, invented = 2, 6
	asked, answer := make(chan struct{}, invented), make(chan struct{})
	kds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-answer
		http.NotFound(w, r)
	}))
	defer kds.Close()
	answerAll := sync.OnceFunc(func() { close(answer) })
	defer answerAll()
	b := Start(t, func(c *server.Config) {
		c.Evidence.Offline, c.Evidence.KDS, c.Limits.Concurrency = false, kds.URL, slots
	})
	refused := make(chan error, invented)
	for i := range invented {
		r := &raw{t: t, b: b}
		req := r.request(newKey(t), nil, "db/orders")
		ev := req.GetEvidence()[0]
		ev.Endorsements = nil
		ev.Report[0x1a0] = byte(i) // CHIP_ID
		ev.Report[0x1a1] ^= 0xff
		go func() {
			_, err := b.Workload.Release(t.Context(), req)
			refused <- err
		}()
	}
	for range invented {
		select {
		case <-asked:
		case <-time.After(time.Minute):
			t.Fatal("some of them wait for a slot")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, _, err := b.Client(t, teesim.ReportOptions{}).Get(ctx, "db/orders"); err != nil {
		t.Errorf("a known chip: %v", err)
	}
	answerAll()
	for range invented {
		if err := <-refused; status.Code(err) != codes.Unavailable {
			t.Errorf("an invented chip: %v", err)
		}
	}
}
