package brokertest

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/rpc"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/broker/tee/teesim"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestDenialsAreAlike: whatever is denied, the guest gets a statement of one
// size, for its request, with an id under which the log has the reasons.
func TestDenialsAreAlike(t *testing.T) {
	b := Start(t, nil)
	r := &raw{t: t, b: b}
	size := map[int]bool{}
	for name, change := range map[string]func(q *pb.ReleaseRequest){
		"evidence for something else": func(q *pb.ReleaseRequest) { q.Resources = []string{"db/users"} },
		"evidence that is broken":     func(q *pb.ReleaseRequest) { q.Evidence[0].Report[200] ^= 1 },
		"no such resource":            nil,
	} {
		resource := "db/orders"
		if change == nil {
			resource, change = "nothing/here", func(*pb.ReleaseRequest) {}
		}
		q := r.request(newKey(t), nil, resource)
		change(q)
		var trailer metadata.MD
		_, err := b.Workload.Release(t.Context(), q, grpc.Trailer(&trailer))
		if s := status.Convert(err); s.Code() != codes.PermissionDenied || s.Message() != broker.ErrDenied.Error() || len(s.Details()) != 0 {
			t.Fatalf("%s: %v", name, err)
		}
		got := trailer.Get(rpc.DenialTrailer)
		if len(got) != 1 {
			t.Fatalf("%s: trailer %v", name, trailer)
		}
		size[len(got[0])] = true
		payload, err := seal.Verify(b.Server.Identity(), seal.TypeDenial, got[0])
		if err != nil {
			t.Fatal(err)
		}
		var d broker.DenialStatement
		if err := strictjson.Unmarshal(payload, &d); err != nil {
			t.Fatal(err)
		}
		if d.Request != whole(b, attest.PurposeRelease, q) {
			t.Errorf("%s: for request %s", name, d.Request)
		}
		page, err := b.Admin.ListDecisions(t.Context(), &pb.ListDecisionsRequest{Limit: 5})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, e := range page.GetDecisions() {
			found = found || strings.Contains(e.GetEntry(), `"id":"`+d.ID+`"`)
		}
		if !found {
			t.Errorf("%s: the log has no record %s", name, d.ID)
		}
	}
	if len(size) != 1 {
		t.Errorf("denials of sizes %v", size)
	}
}

// whole is by what a denial names the request, by proto/README.md.
func whole(b *Broker, p attest.Purpose, q *pb.ReleaseRequest) string {
	var evidence []attest.Evidence
	for _, e := range q.GetEvidence() {
		evidence = append(evidence, attest.Evidence{Type: attest.Type(e.GetType()), Report: e.GetReport(), Endorsements: e.GetEndorsements(), EventLog: e.GetEventLog()})
	}
	d := attest.Transcript{
		Nonce: q.GetNonce(), BrokerID: sha256.Sum256(b.Server.Identity()), KeyAlgorithm: q.GetKeyAlgorithm(), PublicKey: q.GetPublicKey(),
		OfferedSuites: q.GetOfferedSuites(), Resources: q.GetResources(),
	}.Whole(p, evidence...)
	return base64.RawURLEncoding.EncodeToString(d[:])
}

// TestDenialOfSomebodyElse: whoever a guest talks to its broker through, with a
// certificate that the guest trusts, has the broker deny what it made of the
// guest's request. The statement is not for what the guest sent, so it ends nothing.
func TestDenialOfSomebodyElse(t *testing.T) {
	b := Start(t, nil)
	b.put(t, "db/orders", "one")
	denials := 0
	for name, forge := range map[string]func(q *pb.ReleaseRequest){
		"evidence of its own":        func(q *pb.ReleaseRequest) { q.Evidence[0].Report[200] ^= 1 },
		"no endorsements":            func(q *pb.ReleaseRequest) { q.Evidence[0].Endorsements = nil },
		"broken endorsements":        func(q *pb.ReleaseRequest) { q.Evidence[0].Endorsements[40] ^= 1 },
		"a type of its own":          func(q *pb.ReleaseRequest) { q.Evidence[0].Type = "sev-snp" },
		"a device that is none":      func(q *pb.ReleaseRequest) { q.Evidence = append(q.Evidence, q.Evidence[0]) },
		"other resources":            func(q *pb.ReleaseRequest) { q.Resources = []string{"nothing/here"} },
		"a key of its own":           func(q *pb.ReleaseRequest) { q.PublicKey = newKey(t).Public() },
		"fewer suites":               func(q *pb.ReleaseRequest) { q.OfferedSuites = append(q.OfferedSuites, "other") },
		"nothing, by another method": func(*pb.ReleaseRequest) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := rawWatch(t, b)
			q := r.request(newKey(t), nil, "db/orders")
			victims := whole(b, attest.PurposeWatch, q)
			forge(q)
			var trailer metadata.MD
			var err error
			if victims == whole(b, attest.PurposeWatch, q) {
				_, err = b.Workload.Attest(t.Context(), &pb.AttestRequest{Request: q}, grpc.Trailer(&trailer))
			} else {
				r.subscribe(&pb.Subscribe{Request: q})
				if _, err = r.st.Recv(); err != nil {
					trailer = r.st.Trailer()
				}
			}
			if err == nil {
				t.Fatal("released")
			}
			if status.Code(err) == codes.PermissionDenied {
				denials++
			}
			for _, statement := range trailer.Get(rpc.DenialTrailer) {
				payload, err := seal.Verify(b.Server.Identity(), seal.TypeDenial, statement)
				if err != nil {
					t.Fatal(err)
				}
				var d broker.DenialStatement
				if err := strictjson.Unmarshal(payload, &d); err != nil {
					t.Fatal(err)
				}
				if d.Request == victims {
					t.Error("the victim is denied")
				}
			}
		})
	}
	if denials < 5 {
		t.Errorf("only %d were denials", denials)
	}
	t.Run("in a session that runs", func(t *testing.T) {
		r := rawWatch(t, b)
		q := r.request(newKey(t), nil, "db/orders")
		r.subscribe(&pb.Subscribe{Request: q})
		if r.recv().GetSession() == nil || r.recv().GetSecret() == nil {
			t.Fatal("no session, or no secret")
		}
		forged := proto.CloneOf(q)
		ch, err := b.Workload.Challenge(t.Context(), &pb.ChallengeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		forged.Nonce = ch.GetNonce()
		r.subscribe(&pb.Subscribe{Request: forged})
		for {
			if _, err = r.st.Recv(); err != nil {
				break
			}
		}
		statements := r.st.Trailer().Get(rpc.DenialTrailer)
		if status.Code(err) != codes.PermissionDenied || len(statements) != 1 {
			t.Fatalf("ended with %v, trailer %v", err, r.st.Trailer())
		}
		payload, err := seal.Verify(b.Server.Identity(), seal.TypeDenial, statements[0])
		if err != nil {
			t.Fatal(err)
		}
		var d broker.DenialStatement
		if err := strictjson.Unmarshal(payload, &d); err != nil {
			t.Fatal(err)
		}
		if d.Request != whole(b, attest.PurposeWatch, forged) || d.Request == whole(b, attest.PurposeWatch, q) {
			t.Errorf("the denial is for %s", d.Request)
		}
	})
}

// TestWrongPin is told as such by the guest, not as a denial without a reason.
func TestWrongPin(t *testing.T) {
	b := Start(t, nil)
	other, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := b.Server.Addresses()
	cfg := b.clientConfig(t, teesim.ReportOptions{}, addr)
	cfg.Identity = other.PublicKey()
	says := &trouble{}
	cfg.Trouble = says.tell
	c, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := c.Get(t.Context(), "db/orders"); !errors.Is(err, agent.ErrNotOurBroker) || !strings.Contains(err.Error(), "the pin is wrong") {
		t.Errorf("got %v", err)
	}
	// A watch says so, and waits for a pin that is right.
	right := b.Server.Identity()
	cfg.Pin = func() ([]byte, error) {
		if says.about("the pin is wrong") {
			return right, nil
		}
		return other.PublicKey(), nil
	}
	w, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b.put(t, "db/orders", "one")
	if s := watch(t, w, "db/orders").next(t, 20*time.Second); string(s.Value) != "one" {
		t.Errorf("got %q", s.Value)
	}
}
