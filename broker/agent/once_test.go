package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func (s *sealing) ActivateTPM(_ context.Context, r *pb.ActivateTPMRequest) (*pb.ActivateTPMResponse, error) {
	return s.activate(r)
}

func (s *sealing) ProveInclusion(_ context.Context, r *pb.ProveInclusionRequest) (*pb.ProveInclusionResponse, error) {
	return s.prove(r)
}

// deviceFunc is a Device.
type deviceFunc func(context.Context, attest.Transcript) (attest.Evidence, error)

func (d deviceFunc) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d(ctx, t)
}

// activated is a device whose key the broker is shown first.
type activated struct {
	Device
	activate func(context.Context, func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error
}

func (d activated) Activate(ctx context.Context, ask func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error {
	return d.activate(ctx, ask)
}

// TestNew: what is missing is said by name, and what is given is kept.
func TestNew(t *testing.T) {
	key, err := seal.GenerateKey(seal.X25519)
	if err != nil {
		t.Fatal(err)
	}
	pin := func() ([]byte, error) { return nil, nil }
	good := Config{Address: "broker.invalid:1", TLS: &tls.Config{}, Identity: []byte{1}, Device: noDevice{}}
	own := good
	logged, now := 0, time.Unix(1, 0)
	own.Logf = func(string, ...any) { logged++ }
	own.Missing = func(error) string { return "all" }
	own.Now = func() time.Time { return now }
	c, err := New(own)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.cfg.Logf("x"); logged != 1 || c.cfg.Missing(nil) != "all" || c.cfg.Now() != now {
		t.Error("what is given is not kept")
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string // of the error
		suite  seal.Suite
		skew   time.Duration
	}{
		"defaults":             {func(*Config) {}, "", seal.Hybrid, 5 * time.Minute},
		"a pin for identity":   {func(c *Config) { c.Identity, c.Pin = nil, pin }, "", seal.Hybrid, 5 * time.Minute},
		"suite":                {func(c *Config) { c.Suite = seal.X25519 }, "", seal.X25519, 5 * time.Minute},
		"the key's suite":      {func(c *Config) { c.Suite, c.Key = seal.RSA, key }, "", seal.X25519, 5 * time.Minute},
		"skew":                 {func(c *Config) { c.Skew = time.Second }, "", seal.Hybrid, time.Second},
		"no identity, no pin":  {func(c *Config) { c.Identity = nil }, "no pinned broker identity", "", 0},
		"no TLS configuration": {func(c *Config) { c.TLS = nil }, "no TLS configuration", "", 0},
		"no device":            {func(c *Config) { c.Device = nil }, "no device", "", 0},
		"no port":              {func(c *Config) { c.Address = "broker" }, "not host:port", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			c, err := New(cfg)
			if tt.want != "" {
				if err == nil || c != nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.cfg.Suite != tt.suite || c.cfg.Skew != tt.skew {
				t.Errorf("suite %s, skew %s", c.cfg.Suite, c.cfg.Skew)
			}
			c.cfg.Logf("nobody reads %s", "this")
			if m := c.cfg.Missing(errors.New("x")); m != "" || time.Since(c.cfg.Now()) > time.Hour {
				t.Errorf("missing %q, now %s", m, c.cfg.Now())
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if err := c.Close(); err == nil {
				t.Error("closed, and still there")
			}
		})
	}
}

// TestGetRetries what may pass, and ends at what another attempt would only repeat.
func TestGetRetries(t *testing.T) {
	down := status.Error(codes.Unavailable, "no etcd")
	failures := func(errs ...error) func(*testing.T, *Client, *sealing, func()) {
		return func(_ *testing.T, _ *Client, s *sealing, end func()) {
			s.fail = func(ctx context.Context, n int) error {
				if n <= len(errs) {
					return errs[n-1]
				}
				end()
				<-ctx.Done()
				return ctx.Err()
			}
		}
	}
	device := func(d func(n int, end func()) error) func(*testing.T, *Client, *sealing, func()) {
		return func(_ *testing.T, c *Client, _ *sealing, end func()) {
			n := 0
			sign := c.devices[0].Device
			c.devices[0] = newHasty(deviceFunc(func(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
				n++
				if err := d(n, end); err != nil {
					return attest.Evidence{}, err
				}
				return sign.Evidence(ctx, t)
			}))
		}
	}
	for name, tt := range map[string]struct {
		setup     func(t *testing.T, c *Client, s *sealing, end func())
		want, not string // of the error; without: it works
		is        error
		nonces    int // asked for
	}{
		"a broker that comes back":       {failures(down, down, nil), "", "", nil, 3},
		"nothing before the end":         {failures(), "after 1 attempts; the last: broker.invalid:1: release: ", "left alone", ErrUnreachable, 1},
		"the end after a failure":        {failures(down), "after 2 attempts; the last: broker.invalid:1: release: rpc error: code = Unavailable desc = no etcd", "", ErrUnreachable, 2},
		"the end after another one":      {failures(down, status.Error(codes.Unavailable, "no disk")), "after 3 attempts; the last: broker.invalid:1: release: rpc error: code = Unavailable desc = no disk", "", ErrUnreachable, 3},
		"not acceptable":                 {failures(status.Error(codes.InvalidArgument, "too many")), "too many", "", ErrRefused, 1},
		"denied":                         {failures(status.Error(codes.PermissionDenied, "no")), "audit log", "", ErrDenied, 1},
		"a device that fails":            {device(func(int, func()) error { return errors.New("no quote") }), "make evidence: no quote", "", nil, 1},
		"a device that a broker keeps":   {device(func(n int, _ func()) error { return map[int]error{1: down}[n] }), "", "", nil, 2},
		"a device that fails at the end": {device(func(_ int, end func()) error { end(); return errors.New("no quote") }), "the last: broker.invalid:1: make evidence: ", "", ErrUnreachable, 1},
		"no pin": {func(_ *testing.T, c *Client, _ *sealing, _ func()) {
			c.cfg.Pin = func() ([]byte, error) { return nil, errors.New("no file") }
		}, "pinned identity: no file", "", nil, 0},
		"an unknown suite": {func(_ *testing.T, c *Client, _ *sealing, _ func()) { c.cfg.Suite = "rot13" }, "rot13", "", nil, 1},
		"a challenge that fails": {func(_ *testing.T, _ *Client, s *sealing, _ func()) {
			s.challenge = func(context.Context) (*pb.ChallengeResponse, error) {
				return nil, status.Error(codes.Unimplemented, "not here")
			}
		}, "not here", "", ErrRefused, 1},
		"another device that fails": {func(_ *testing.T, c *Client, _ *sealing, _ func()) {
			c.devices = append(c.devices, newHasty(deviceFunc(func(context.Context, attest.Transcript) (attest.Evidence, error) {
				return attest.Evidence{}, errors.New("no GPU")
			})))
		}, "make evidence: no GPU", "", nil, 1},
		"another broker by its id": {func(_ *testing.T, _ *Client, s *sealing, _ func()) {
			s.challenge = func(context.Context) (*pb.ChallengeResponse, error) {
				return &pb.ChallengeResponse{Nonce: []byte("n"), BrokerId: bytes.Repeat([]byte{0xab}, 40)}, nil
			}
		}, strings.Repeat("ab", 32) + ", and the identity pinned here", strings.Repeat("ab", 33), ErrNotOurBroker, 1},
		"a short id": {func(_ *testing.T, _ *Client, s *sealing, _ func()) {
			s.challenge = func(context.Context) (*pb.ChallengeResponse, error) {
				return &pb.ChallengeResponse{Nonce: []byte("n"), BrokerId: []byte{0xab}}, nil
			}
		}, "its id is ab,", "", ErrNotOurBroker, 1},
		"its own id": {func(t *testing.T, _ *Client, s *sealing, _ func()) {
			id := s.id.ID()
			s.challenge = func(ctx context.Context) (*pb.ChallengeResponse, error) {
				md, _ := metadata.FromIncomingContext(ctx)
				if got := md.Get("claviger-broker-id"); !slices.Equal(got, []string{hex.EncodeToString(id[:])}) {
					t.Errorf("the broker is told %q", got)
				}
				return &pb.ChallengeResponse{Nonce: []byte("n"), BrokerId: id[:]}, nil
			}
		}, "", "", nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := sealed(t)
				ctx, end := context.WithCancel(t.Context())
				defer end()
				missing := 0
				c.cfg.Missing = func(err error) string {
					if missing++; missing == 1 && s.nonces > 0 {
						t.Error("asked what is missing only after the broker")
					}
					return ""
				}
				var logged []string
				c.cfg.Logf = func(format string, args ...any) { logged = append(logged, fmt.Sprintf(format, args...)) }
				tt.setup(t, c, s, end)
				secrets, _, err := c.Get(ctx, "a")
				if s.nonces != tt.nonces || missing == 0 {
					t.Errorf("asked for %d nonces, want %d; %d times what is missing", s.nonces, tt.nonces, missing)
				}
				if want := max(tt.nonces-1, 0); tt.is != ErrUnreachable && len(logged) != want {
					t.Errorf("logged %q", logged)
				}
				if tt.want == "" {
					if err != nil || len(secrets) != 1 || c.brokers.list[0].failures != 0 || !c.brokers.list[0].resting.IsZero() {
						t.Errorf("%d secrets, %v, %d failures", len(secrets), err, c.brokers.list[0].failures)
					}
					return
				}
				if err == nil || len(secrets) > 0 || !strings.Contains(err.Error(), tt.want) || tt.not != "" && strings.Contains(err.Error(), tt.not) || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("got %v; want %q, not %q", err, tt.want, tt.not)
				}
			})
		})
	}
}

// TestWaiting: what is missing is looked at while a broker rests.
func TestWaiting(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *Client) error{
		"get":   func(ctx context.Context, c *Client) error { _, _, err := c.Get(ctx, "a"); return err },
		"watch": func(ctx context.Context, c *Client) error { return c.Watch(ctx, []string{"a"}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := sealed(t)
				ctx, end := context.WithCancel(t.Context())
				defer end()
				cause := errors.New("no route")
				var asked []error
				c.cfg.Missing = func(err error) string { asked = append(asked, err); return "" }
				s.challenge = func(context.Context) (*pb.ChallengeResponse, error) {
					end()
					return nil, status.Error(codes.Unavailable, "x")
				}
				e := c.brokers.list[0]
				e.resting = time.Now().Add(10 * firstWait)
				e.last.set(cause)
				if err := ask(ctx, c); err == nil {
					t.Error("got an answer")
				}
				if len(asked) < 10 || asked[0] != nil || slices.ContainsFunc(asked[1:], func(err error) bool { return err != cause }) {
					t.Errorf("asked what is missing for %v", asked)
				}
			})
		})
	}
}

// TestAttemptEnds: a device that hangs costs one attempt, and not the deadline.
func TestAttemptEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := sealed(t)
		sign := c.devices[0].Device
		n := 0
		c.devices[0] = newHasty(deviceFunc(func(ctx context.Context, tr attest.Transcript) (attest.Evidence, error) {
			if n++; n == 1 {
				if end, ok := ctx.Deadline(); !ok || time.Until(end) != 30*time.Second {
					t.Errorf("an attempt ends in %s", time.Until(end))
				}
				<-ctx.Done()
				return attest.Evidence{}, ctx.Err()
			}
			return sign.Evidence(ctx, tr)
		}))
		if _, _, err := c.Get(t.Context(), "a"); err != nil || s.nonces != 2 {
			t.Errorf("after %d nonces: %v", s.nonces, err)
		}
	})
}

// TestSkew: a clock may be off by as much as the guest says, and no more.
func TestSkew(t *testing.T) {
	for ahead, ok := range map[time.Duration]bool{4 * time.Minute: true, 6 * time.Minute: false} {
		synctest.Test(t, func(t *testing.T) {
			c, s, _ := sealed(t)
			s.change = func(a *answer) {
				a.secrets[0].IssuedAt, a.secrets[0].Expires = time.Now().Add(ahead).Unix(), time.Now().Add(time.Hour).Unix()
			}
			if _, _, err := c.Get(t.Context(), "a"); (err == nil) != ok || err != nil && !errors.Is(err, seal.ErrTime) {
				t.Errorf("%s ahead: %v", ahead, err)
			}
		})
	}
}

// TestOwnKey: a key held elsewhere is used as it is.
func TestOwnKey(t *testing.T) {
	c, s, _ := sealed(t)
	key, err := seal.GenerateKey(seal.X25519)
	if err != nil {
		t.Fatal(err)
	}
	c.cfg.Key = key
	if _, _, err := c.Get(t.Context(), "a"); err != nil || !bytes.Equal(s.asked[0].GetPublicKey(), key.Public()) {
		t.Error("another key was sent", err)
	}
}

// TestExplain: what a person can mend takes the place of what gRPC says, if the broker was not reached.
func TestExplain(t *testing.T) {
	now := time.Now()
	expired := x509.CertificateInvalidError{Cert: &x509.Certificate{NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}, Reason: x509.Expired}
	for name, tt := range map[string]struct {
		code    codes.Code
		last    error
		missing string
		want    string // of its text; without: the error itself
		is      error
	}{
		"unreachable":                 {codes.Unavailable, errors.New("no route"), "no link", "no link (x: rpc error", nil},
		"silent":                      {codes.DeadlineExceeded, errors.New("no route"), "no link", "no link (x: rpc error", nil},
		"reached":                     {codes.ResourceExhausted, errors.New("no route"), "no link", "", nil},
		"nothing is missing":          {codes.Unavailable, errors.New("no route"), "", "", nil},
		"certificate that has lapsed": {codes.Unavailable, expired, "no link", "looks right", ErrExpired},
	} {
		err := fmt.Errorf("x: %w", status.Error(tt.code, "y"))
		e := &endpoint{last: &lastError{err: tt.last}}
		c := &Client{cfg: Config{Now: func() time.Time { return now }, Missing: func(cause error) string {
			if cause != tt.last {
				t.Errorf("%s: asked about %v", name, cause)
			}
			return tt.missing
		}}}
		got := c.explain(e, err)
		if tt.want == "" && got != err || tt.want != "" && (!strings.Contains(got.Error(), tt.want) || tt.is == nil && !errors.Is(got, err) || tt.is != nil && !errors.Is(got, tt.is)) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestEvidenceIsSentWhole: all that a device hands over arrives, and is what a denial names.
func TestEvidenceIsSentWhole(t *testing.T) {
	full := func(name string) Device {
		return deviceFunc(func(context.Context, attest.Transcript) (attest.Evidence, error) {
			return attest.Evidence{Type: attest.Type(name), Report: []byte(name + " report"), Endorsements: []byte(name + " endorsements"), EventLog: []byte(name + " log")}, nil
		})
	}
	c, s, _ := sealed(t, full("gpu"))
	c.devices[0] = newHasty(full("cpu"))
	id, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(by *seal.Identity, payload string) string {
		statement, err := by.Sign(seal.TypeDenial, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		return string(statement)
	}
	for name, tt := range map[string]struct {
		denials func(request string) []string // what the trailer says
		want    string
	}{
		"signed": {func(r string) []string { return []string{sign(s.id, `{"jti":"the-id","request":"`+r+`"}`)} }, "under id the-id"},
		"among others": {func(r string) []string {
			return []string{"x", sign(id, "{}"), sign(s.id, "{"), sign(s.id, `{"jti":"the-id","request":"`+r+`"}`), sign(s.id, `{"jti":"other","request":"AA"}`), "x"}
		}, "under id the-id"},
		"by another broker":      {func(r string) []string { return []string{sign(id, `{"jti":"the-id","request":"`+r+`"}`)} }, ""},
		"of no readable request": {func(r string) []string { return []string{sign(s.id, `{"jti":"the-id","request":"`+r+`!"}`)} }, ""},
		"of another form":        {func(r string) []string { return []string{sign(s.id, `{"jti":"the-id","request":"`+r+`","iat":"now"}`)} }, ""},
		"nobody's":               {func(string) []string { return nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s.fail = func(ctx context.Context, _ int) error {
				q := s.asked[len(s.asked)-1]
				var evidence []attest.Evidence
				for i, e := range q.GetEvidence() {
					want := []string{"cpu", "gpu"}[i]
					if e.GetType() != want || string(e.GetReport()) != want+" report" || string(e.GetEndorsements()) != want+" endorsements" || string(e.GetEventLog()) != want+" log" {
						t.Errorf("evidence %v", e)
					}
					evidence = append(evidence, attest.Evidence{Type: attest.Type(e.GetType()), Report: e.GetReport(), Endorsements: e.GetEndorsements(), EventLog: e.GetEventLog()})
				}
				whole := attest.Transcript{
					Nonce: q.GetNonce(), BrokerID: s.id.ID(), KeyAlgorithm: q.GetKeyAlgorithm(), PublicKey: q.GetPublicKey(), OfferedSuites: q.GetOfferedSuites(), Resources: q.GetResources(),
				}.Whole(attest.PurposeRelease, evidence...)
				md := metadata.MD{"claviger-denial": tt.denials(base64.RawURLEncoding.EncodeToString(whole[:]))}
				_ = grpc.SetTrailer(ctx, md)
				return status.Error(codes.PermissionDenied, "denied")
			}
			c.brokers.worked(c.brokers.list[0]) // the denial before is no reason to wait
			_, _, err := c.Get(t.Context(), "a")
			if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), tt.want) || tt.want == "" && strings.Contains(err.Error(), "under id") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestActivation: a TPM's keys are shown to the broker, and its answer to the TPM.
func TestActivation(t *testing.T) {
	asked := attest.TPMActivation{EKCertificates: [][]byte{{1}, {2}}, EKPublic: []byte{3}, AKPublic: []byte{4}}
	for name, tt := range map[string]struct {
		err    error // the broker's
		fails  error // the device's
		want   string
		is     error
		nonces int
	}{
		"works":         {nil, nil, "", nil, 1},
		"broker busy":   {status.Error(codes.ResourceExhausted, "later"), nil, "", nil, 2},
		"broker denies": {status.Error(codes.PermissionDenied, "no"), nil, "audit log", ErrDenied, 1},
		"broker cannot": {status.Error(codes.Unimplemented, "no TPMs here"), nil, "no TPMs here", ErrRefused, 1},
		"TPM fails":     {nil, errors.New("locked out"), "make evidence: locked out", nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := sealed(t)
				expires := time.Now().Add(time.Minute)
				times := 0
				s.activate = func(r *pb.ActivateTPMRequest) (*pb.ActivateTPMResponse, error) {
					if times++; times == 1 && tt.err != nil {
						return nil, tt.err
					}
					if ek := r.GetEkCertificates(); len(ek) != 2 || ek[1][0] != 2 || r.GetEkPublic()[0] != 3 || r.GetAkPublic()[0] != 4 {
						t.Errorf("the broker is shown %v", r)
					}
					return &pb.ActivateTPMResponse{CredentialBlob: []byte{5}, EncryptedSecret: []byte{6}, Ticket: []byte{7}, ExpiresAt: timestamppb.New(expires)}, nil
				}
				c.devices[0] = newHasty(activated{c.devices[0].Device, func(ctx context.Context, ask func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error {
					ch, err := ask(ctx, asked)
					if err != nil {
						return err
					}
					if ch.CredentialBlob[0] != 5 || ch.EncryptedSecret[0] != 6 || ch.Ticket[0] != 7 || !ch.Expires.Equal(expires) {
						t.Errorf("the TPM is shown %+v", ch)
					}
					return tt.fails
				}})
				_, _, err := c.Get(t.Context(), "a")
				if s.nonces != tt.nonces {
					t.Errorf("asked for %d nonces", s.nonces)
				}
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			})
		})
	}
}

// TestOneByte is an input as well.
func TestOneByte(t *testing.T) {
	bound, sent := withInputs([]string{"a", "b"}, map[string][]byte{"b": {1}})
	if len(bound) != 2 || len(bound[0]) != 0 || len(bound[1]) != 1 || len(sent) != 1 || sent[0].GetResource() != "b" {
		t.Errorf("bound %x, sent %v", bound, sent)
	}
}

// TestProve waits until the log has published the release.
func TestProve(t *testing.T) {
	pending := status.Error(codes.FailedPrecondition, "not published")
	for name, tt := range map[string]struct {
		err   func(n int) error
		want  string
		is    error
		asked int
	}{
		"at once":       {func(int) error { return nil }, "", nil, 1},
		"after a while": {func(n int) error { return map[bool]error{true: pending}[n < 7] }, "", nil, 7},
		"refused":       {func(int) error { return status.Error(codes.OutOfRange, "no such entry") }, "no such entry", nil, 1},
		"not in time":   {func(int) error { return pending }, "prove inclusion", ErrUnreachable, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := sealed(t)
				ctx, end := context.WithCancel(t.Context())
				defer end()
				asked := 0
				var last time.Time
				s.prove = func(r *pb.ProveInclusionRequest) (*pb.ProveInclusionResponse, error) {
					asked++
					if wait, d := firstWait<<max(asked-2, 0), time.Since(last); asked > 1 && (d < wait/2 || d > wait*3/2) {
						t.Errorf("asked for the %dth time after %s", asked, d)
					}
					last = time.Now()
					if r.GetLogIndex() != 7 {
						t.Errorf("asked for entry %d", r.GetLogIndex())
					}
					if err := tt.err(asked); err != nil {
						return nil, err
					}
					return &pb.ProveInclusionResponse{Checkpoint: []byte("checkpoint"), Proof: [][]byte{{1}}}, nil
				}
				if tt.is != nil {
					time.AfterFunc(firstWait/4, end) // before it would be asked again
				}
				r := Receipt{LogIndex: 7}
				err := c.Prove(ctx, &r)
				if asked != tt.asked {
					t.Errorf("asked %d times", asked)
				}
				if tt.want == "" {
					if err != nil || string(r.Checkpoint) != "checkpoint" || len(r.Path) != 1 {
						t.Errorf("%+v, %v", r, err)
					}
				} else if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) || r.Path != nil {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			})
		})
	}
}
