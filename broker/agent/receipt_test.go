package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// sealing is a broker with the pinned identity that answers as the test says.
type sealing struct {
	pb.UnimplementedKeyBrokerServer
	t         *testing.T
	id        *seal.Identity
	change    func(*answer)
	asked     []*pb.ReleaseRequest
	challenge func(context.Context) (*pb.ChallengeResponse, error) // nil: a new nonce each time
	fail      func(ctx context.Context, asked int) error           // nil, or its error: in place of a release
	activate  func(*pb.ActivateTPMRequest) (*pb.ActivateTPMResponse, error)
	prove     func(*pb.ProveInclusionRequest) (*pb.ProveInclusionResponse, error)
	streams   []func(*session) error // what it does in each Watch
	sessions  []*session
	nonces    int
}

// answer is what it is about to send: of each secret the statement, and the receipt's promise.
type answer struct {
	secrets []seal.Statement
	promise promise
	payload []byte // in place of the promise, if not nil
	index   uint64
	signer  *seal.Identity // of the receipt
}

func (s *sealing) Challenge(ctx context.Context, _ *pb.ChallengeRequest) (*pb.ChallengeResponse, error) {
	s.nonces++
	if s.challenge == nil && s.nonces == 1 {
		return &pb.ChallengeResponse{Nonce: []byte("the nonce")}, nil
	} else if s.challenge == nil {
		return &pb.ChallengeResponse{Nonce: fmt.Append(nil, "the nonce ", s.nonces)}, nil
	}
	return s.challenge(ctx)
}

func (s *sealing) Release(ctx context.Context, req *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	s.asked = append(s.asked, req)
	if s.fail != nil {
		if err := s.fail(ctx, len(s.asked)); err != nil {
			return nil, err
		}
	}
	return s.answer(req)
}

// answer seals a secret for each resource.
func (s *sealing) answer(req *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	leaf := sha256.Sum256(nil)
	a := answer{promise: promise{ID: "decision", Log: "log", Index: 3, LeafHash: base64.RawURLEncoding.EncodeToString(leaf[:])}, index: 3, signer: s.id}
	for _, r := range req.GetResources() {
		a.secrets = append(a.secrets, seal.Statement{
			Resource: r, Decision: "decision", IssuedAt: time.Now().Unix(), Expires: time.Now().Add(time.Minute).Unix(), Version: "8", Lease: "lease",
			Nonce: base64.RawURLEncoding.EncodeToString(req.GetNonce()), Policy: "sha256:00", ContentType: "text/plain", Secret: []byte("secret of " + r),
		})
	}
	if s.change != nil {
		s.change(&a)
	}
	to, err := seal.ParseRecipient(seal.Suite(req.GetKeyAlgorithm()), req.GetPublicKey())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	resp := &pb.ReleaseResponse{}
	for _, st := range a.secrets {
		jwe, err := seal.Seal(s.id, to, st)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		resp.Secrets = append(resp.Secrets, &pb.WrappedSecret{Resource: st.Resource, Jwe: jwe})
	}
	payload, err := json.Marshal(a.promise)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if a.payload != nil {
		payload = a.payload
	}
	jws, err := a.signer.Sign(seal.TypeReceipt, payload)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp.Receipt = &pb.Receipt{Promise: string(jws), LogIndex: a.index}
	return resp, nil
}

// signing is a device whose report is the transcript's digest.
type signing struct{ said *[]attest.Transcript }

func (d signing) Evidence(_ context.Context, t attest.Transcript) (attest.Evidence, error) {
	*d.said = append(*d.said, t)
	sum := t.Digest64()
	return attest.Evidence{Type: attest.TypeSNP, Report: sum[:]}, nil
}

// sealed is a client of a sealing broker.
func sealed(t *testing.T, devices ...Device) (*Client, *sealing, *[]attest.Transcript) {
	t.Helper()
	id, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	s := &sealing{t: t, id: id}
	lis := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	pb.RegisterKeyBrokerServer(g, s)
	go func() { _ = g.Serve(lis) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	said := &[]attest.Transcript{}
	c, err := New(Config{Address: "broker.invalid:1", TLS: &tls.Config{}, Identity: id.PublicKey(), Device: signing{said}, Devices: devices, Suite: seal.X25519, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.brokers.list[0].rpc = pb.NewKeyBrokerClient(conn)
	return c, s, said
}

// TestGet: what the guest is told is what the broker signed.
func TestGet(t *testing.T) {
	c, s, said := sealed(t)
	var expires int64
	s.change = func(a *answer) { expires = a.secrets[0].Expires }
	secrets, receipt, err := c.GetWith(t.Context(), map[string][]byte{"b": []byte("csr")}, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"a", "b"} {
		got := secrets[i]
		if got.Resource != want || string(got.Value) != "secret of "+want || got.Version != "8" || got.Lease != "lease" || got.Policy != "sha256:00" ||
			got.ContentType != "text/plain" || got.Expires != time.Unix(expires, 0) || !got.PreviousRetires.IsZero() {
			t.Errorf("secret %+v", got)
		}
		got.Wipe()
		if !slices.Equal(got.Value, make([]byte, len("secret of a"))) {
			t.Errorf("wiped, and still %q", got.Value)
		}
	}
	if receipt.LogIndex != 3 || receipt.Log != "log" || len(receipt.LeafHash) != 32 || receipt.Promise == "" || !slices.Equal(receipt.Identity, s.id.PublicKey()) {
		t.Errorf("receipt %+v", receipt)
	}
	// The evidence binds all that was asked.
	tr, req := (*said)[0], s.asked[0]
	if tr.BrokerID != s.id.ID() || string(tr.Nonce) != "the nonce" || tr.KeyAlgorithm != req.GetKeyAlgorithm() || !slices.Equal(tr.PublicKey, req.GetPublicKey()) ||
		!slices.Equal(tr.OfferedSuites, req.GetOfferedSuites()) || !slices.Equal(tr.Resources, req.GetResources()) ||
		len(tr.Inputs) != 2 || len(tr.Inputs[0]) != 0 || string(tr.Inputs[1]) != "csr" {
		t.Errorf("transcript %+v", tr)
	}
	if in := req.GetInputs(); len(in) != 1 || in[0].GetResource() != "b" || string(in[0].GetInput()) != "csr" {
		t.Errorf("inputs %v", in)
	}
	if _, _, err := c.GetWith(t.Context(), map[string][]byte{"c": nil}, "a"); err == nil || len(s.asked) != 1 {
		t.Errorf("input for what is not asked for: %v", err)
	}
	if _, _, err := c.GetWith(t.Context(), map[string][]byte{"a": nil}, "a"); err != nil || (*said)[1].Inputs != nil {
		t.Errorf("no input is bound as some: %v %+v", err, (*said)[1].Inputs)
	}
}

// TestReceiptIsForThisRelease: a receipt is taken only from the pinned broker, for the decision that the secrets come from.
func TestReceiptIsForThisRelease(t *testing.T) {
	other, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*answer)
		want   string
	}{
		"of another decision":         {func(a *answer) { a.promise.ID = "earlier" }, "another decision"},
		"of no decision":              {func(a *answer) { a.promise.ID = "" }, "another decision"},
		"by another broker":           {func(a *answer) { a.signer = other }, "receipt: verify broker signature"},
		"index beside it":             {func(a *answer) { a.index = 4 }, "signed index"},
		"without a leaf":              {func(a *answer) { a.promise.LeafHash = "" }, "leaf hash"},
		"leaf of another size":        {func(a *answer) { a.promise.LeafHash = "AAAA" }, "leaf hash"},
		"leaf that is no base64url":   {func(a *answer) { a.promise.LeafHash = "!" }, "leaf hash"},
		"secrets of two decisions":    {func(a *answer) { a.secrets[1].Decision = "earlier" }, "another decision than a"},
		"one secret of two":           {func(a *answer) { a.secrets = a.secrets[:1] }, "asked for 2 secrets, got 1"},
		"three secrets":               {func(a *answer) { a.secrets = append(a.secrets, a.secrets[0]) }, "asked for 2 secrets, got 3"},
		"secrets in another order":    {func(a *answer) { slices.Reverse(a.secrets) }, `secret is for "b"`},
		"secret of another challenge": {func(a *answer) { a.secrets[1].Nonce = "AAAA" }, "another challenge"},
		"promise that is no JSON":     {func(a *answer) { a.payload = []byte("{") }, "receipt: decode"},
		"promise of another form": {func(a *answer) {
			a.payload = fmt.Appendf(nil, `{"jti":"decision","log":1,"index":3,"leaf_hash":%q}`, a.promise.LeafHash)
		}, "receipt: decode"},
		"expired secret": {func(a *answer) { a.secrets[0].Expires = time.Now().Add(-time.Hour).Unix() }, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			c, s, _ := sealed(t)
			s.change = tt.change
			secrets, _, err := c.GetWith(t.Context(), nil, "a", "b")
			// (Whose clock is wrong, ours or the broker's, a guest cannot tell.)
			if errors.Is(err, ErrNotOurBroker) == (name == "expired secret") || err == nil || !strings.Contains(err.Error(), tt.want) || len(secrets) > 0 || len(s.asked) != 1 {
				t.Errorf("got %d secrets after %d requests, %v; want %q", len(secrets), len(s.asked), err, tt.want)
			}
		})
	}
}

// TestDevicesAreBound: each device signs the request, and the first one signs what the others made.
func TestDevicesAreBound(t *testing.T) {
	var gpu []attest.Transcript
	c, s, cpu := sealed(t, signing{&gpu})
	if _, _, err := c.GetWith(t.Context(), nil, "a"); err != nil {
		t.Fatal(err)
	}
	ev := s.asked[0].GetEvidence()
	if len(ev) != 2 || len(gpu) != 1 || len(gpu[0].Devices) != 0 || len((*cpu)[0].Devices) != 1 {
		t.Fatalf("%d pieces of evidence; the device signs %+v", len(ev), gpu)
	}
	second := attest.Evidence{Type: attest.Type(ev[1].GetType()), Report: ev[1].GetReport()}
	if (*cpu)[0].Devices[0] != second.Digest() {
		t.Error("the first device does not vouch for the second")
	}
}

// TestWatchReceiptIsForThisVersion: of a version in a session as well.
func TestWatchReceiptIsForThisVersion(t *testing.T) {
	c, s, _ := sealed(t)
	key, err := seal.GenerateKey(seal.X25519)
	if err != nil {
		t.Fatal(err)
	}
	ask := &pb.ReleaseRequest{Nonce: []byte("n"), KeyAlgorithm: string(seal.X25519), PublicKey: key.Public(), Resources: []string{"a"}}
	w := &watcher{c: c, identity: c.cfg.Identity, key: key, resources: []string{"a"}, nonce: []byte("n")}
	version := func(sequence uint64, decision string) *pb.SecretVersion {
		s.change = func(a *answer) { a.secrets[0].Sequence, a.promise.ID = sequence, decision }
		resp, err := s.Release(t.Context(), ask)
		if err != nil {
			t.Fatal(err)
		}
		return &pb.SecretVersion{Secret: resp.GetSecrets()[0], Receipt: resp.GetReceipt()}
	}
	if _, err := w.open(version(1, "earlier")); err == nil || !strings.Contains(err.Error(), "another decision") || w.sequence != 0 {
		t.Errorf("sequence %d: %v", w.sequence, err)
	}
	if _, err := w.open(version(1, "decision")); err != nil || w.sequence != 1 {
		t.Errorf("sequence %d: %v", w.sequence, err)
	}
}
