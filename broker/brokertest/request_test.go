package brokertest

import (
	"crypto/sha256"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/teesim"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// releaseRequest makes a good request by hand, for tests that replay or change it; for db/orders if nothing else is named.
func releaseRequest(t *testing.T, b *Broker, resources ...string) *pb.ReleaseRequest {
	t.Helper()
	ch, err := b.Workload.Challenge(t.Context(), &pb.ChallengeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		t.Fatal(err)
	}
	if len(resources) == 0 {
		resources = []string{"db/orders"}
	}
	suites := []string{string(seal.Hybrid)}
	ev, err := b.Device(teesim.ReportOptions{}).Evidence(t.Context(), attest.Transcript{
		Nonce: ch.GetNonce(), BrokerID: sha256.Sum256(b.Server.Identity()), KeyAlgorithm: suites[0], PublicKey: key.Public(),
		OfferedSuites: suites, Resources: resources,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &pb.ReleaseRequest{
		Nonce: ch.GetNonce(), KeyAlgorithm: suites[0], PublicKey: key.Public(), OfferedSuites: suites, Resources: resources,
		Evidence: []*pb.Evidence{{Type: string(ev.Type), Report: ev.Report, Endorsements: ev.Endorsements}},
	}
}
