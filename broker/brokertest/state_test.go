package brokertest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker/etcd"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func demoSet(state string) *pb.ReferenceSet {
	m := teesim.Measurement("")
	return &pb.ReferenceSet{Name: "demo-image", Type: "sev-snp", State: state, Owner: &pb.ReferenceOwner{Policies: []string{"*"}}, Values: map[string]*pb.ReferenceValues{"measurement": {Values: []string{hex.EncodeToString(m[:])}}}}
}

func (b *Broker) putEntry(t *testing.T, pattern string) error {
	t.Helper()
	_, err := b.Admin.PutCatalogEntry(t.Context(), &pb.PutCatalogEntryRequest{Entry: &pb.CatalogEntry{Pattern: pattern, Source: "local", Key: "db/orders", Policy: "disks"}})
	return err
}

// TestRefusedSetsBlockNoOthers: a set that policies could not be given is refused,
// and what is done to the other sets is in force when it is acknowledged.
func TestRefusedSetsBlockNoOthers(t *testing.T) {
	b := Start(t, nil)
	c := b.Client(t, teesim.ReportOptions{})
	get(t, c, "disks/vm-1")
	for what, bad := range map[string]func(*pb.ReferenceSet){
		"the year 2300":  func(s *pb.ReferenceSet) { s.NotAfter = timestamppb.New(time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)) },
		"nobody's":       func(s *pb.ReferenceSet) { s.Owner = nil },
		"another's":      func(s *pb.ReferenceSet) { s.Owner.Policies = []string{"diskz"} },
		"an odd pattern": func(s *pb.ReferenceSet) { s.Owner.Resources = []string{"disks/*"} },
		"an odd state":   func(s *pb.ReferenceSet) { s.State = "disabled" },
		"an odd type":    func(s *pb.ReferenceSet) { s.Type = "snp" },
		"no values":      func(s *pb.ReferenceSet) { s.Values = nil },
		"a short digest": func(s *pb.ReferenceSet) { s.Values["measurement"].Values[0] = "00" },
		"ended before then": func(s *pb.ReferenceSet) {
			s.NotBefore, s.NotAfter = timestamppb.Now(), timestamppb.New(time.Unix(0, 0))
		},
		"too much": func(s *pb.ReferenceSet) {
			for i := range 1000 {
				s.Values["measurement"].Values = append(s.Values["measurement"].Values, fmt.Sprintf("%096x", i))
			}
		},
	} {
		s := demoSet("active")
		s.Name = "other"
		bad(s)
		if _, err := b.Admin.PutReferenceSet(t.Context(), &pb.PutReferenceSetRequest{Set: s}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, step := range []struct {
		state string
		given bool
	}{{"retired", false}, {"active", true}, {"retiring", true}, {"", false}} {
		var err error
		if step.state == "" {
			_, err = b.Admin.DeleteReferenceSet(t.Context(), &pb.DeleteReferenceSetRequest{Name: "demo-image"})
		} else {
			_, err = b.Admin.PutReferenceSet(t.Context(), &pb.PutReferenceSetRequest{Set: demoSet(step.state)})
		}
		if err != nil {
			t.Fatal(err)
		}
		if !step.given { // the answer said so
			denied(t, c, "disks/vm-1")
		} else {
			get(t, c, "disks/vm-1")
		}
	}
}

// TestCatalogIsOne: of two entries put at once that do not go together one is
// refused, and later changes take effect.
func TestCatalogIsOne(t *testing.T) {
	b := Start(t, nil)
	c := b.Client(t, teesim.ReportOptions{})
	if err := b.putEntry(t, "shared/orders"); err != nil {
		t.Fatal(err)
	}
	get(t, c, "shared/orders") // at once
	for i := range 20 {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for j, v := range []string{"a", "b"} {
			wg.Go(func() { errs[j] = b.putEntry(t, fmt.Sprintf("race%d/{%s}", i, v)) })
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("of two entries for the same paths: %v, %v", errs[0], errs[1])
		}
		for _, err := range errs {
			if err != nil && status.Code(err) != codes.InvalidArgument {
				t.Errorf("refused with %v", err)
			}
		}
	}
	if err := b.putEntry(t, "db/{name}"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "configuration file") {
		t.Errorf("an entry of the configuration file was put: %v", err)
	}
	if _, err := b.Admin.DeleteCatalogEntry(t.Context(), &pb.DeleteCatalogEntryRequest{Pattern: "shared/orders"}); err != nil {
		t.Fatal(err)
	}
	denied(t, c, "shared/orders")
}

// TestUnusableRecordsStopWhatTheyConcern: records that an older broker, or a
// hand, left in the store. Each stops the releases that it concerns, shows in
// the status, and is mended by the command for its kind (G9).
func TestUnusableRecordsStopWhatTheyConcern(t *testing.T) {
	cluster := testservers.StartEtcd(t, 1)
	env, err := dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	env.Config.Listen, env.Config.Admin.Listen, env.Config.Metrics = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	sealKey := filepath.Join(env.Dir, "seal.key")
	if err := os.WriteFile(sealKey, []byte(strings.Repeat("ab", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	b := StartEnv(t, env, func(c *server.Config) { c.SealKey, c.Etcd.Endpoints = sealKey, cluster.Endpoints })
	kv, err := etcd.Dial(t.Context(), etcd.Cluster{Endpoints: cluster.Endpoints})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	if err := b.putEntry(t, "shared/{any}"); err != nil {
		t.Fatal(err)
	}
	c := b.Client(t, teesim.ReportOptions{})
	entry := func(pattern string) string {
		return "config/catalog/" + base64.RawURLEncoding.EncodeToString([]byte(pattern))
	}
	for _, tc := range []struct {
		what, key, value string
		name             string // as the status has it
		stopped, given   []string
		ready            bool
		mend             func() error
	}{
		{
			what: "set of the year 2300", key: "config/references/far", value: `{"name":"far","type":"sev-snp","state":"active","not_after":"2300-01-01T00:00:00Z","values":{}}`, name: "far",
			stopped: []string{"shared/orders", "disks/vm-1"}, ready: true,
			mend: func() error {
				_, err := b.Admin.DeleteReferenceSet(t.Context(), &pb.DeleteReferenceSetRequest{Name: "far"})
				return err
			},
		}, {
			what: "set mended by another of its name", key: "config/references/far", value: `{`, name: "far",
			stopped: []string{"shared/orders"}, ready: true,
			mend: func() error {
				s := demoSet("canary")
				s.Name = "far"
				_, err := b.Admin.PutReferenceSet(t.Context(), &pb.PutReferenceSetRequest{Set: s})
				return err
			},
		}, {
			what: "entry that shadows a laxer one", key: entry("shared/orders"), value: `{"pattern":"shared/orders","policy":`, name: "shared/orders",
			stopped: []string{"shared/orders"}, given: []string{"shared/invoices", "disks/vm-1"}, ready: true,
			mend: func() error {
				_, err := b.Admin.DeleteCatalogEntry(t.Context(), &pb.DeleteCatalogEntryRequest{Pattern: "shared/orders"})
				return err
			},
		}, {
			what: "entry that does not go with another", key: entry("shared/{other}"), value: `{"pattern":"shared/{other}","source":"local","key":"db/orders","policy":"disks"}`, name: "shared/{other}",
			stopped: []string{"shared/orders"}, given: []string{"disks/vm-1"}, ready: true,
			mend: func() error {
				_, err := b.Admin.DeleteCatalogEntry(t.Context(), &pb.DeleteCatalogEntryRequest{Pattern: "shared/{other}"})
				return err
			},
		}, {
			what: "entry of no pattern", key: "config/catalog/!", value: `{}`, name: "config/catalog/!",
			stopped: []string{"disks/vm-1"},
			mend: func() error {
				_, err := b.Admin.DeleteCatalogEntry(t.Context(), &pb.DeleteCatalogEntryRequest{Pattern: "config/catalog/!"})
				return err
			},
		}, {
			what: "revocation", key: "config/revocations/x", value: `?`, name: "config/revocations/x",
			stopped: []string{"disks/vm-1"},
			mend: func() error {
				_, err := b.Admin.Unrevoke(t.Context(), &pb.UnrevokeRequest{Kind: "chip", Value: "config/revocations/x"})
				return err
			},
		}, {
			what: "policy pin", key: "config/policy-pin", value: "", name: "config/policy-pin",
			stopped: []string{"disks/vm-1"},
			mend: func() error {
				_, err := b.Admin.ActivatePolicy(t.Context(), &pb.ActivatePolicyRequest{})
				return err
			},
		},
	} {
		t.Run(tc.what, func(t *testing.T) {
			get(t, c, "shared/orders")
			if err := kv.Put(t.Context(), tc.key, []byte(tc.value)); err != nil {
				t.Fatal(err)
			}
			var problem *pb.Problem
			for end := time.Now().Add(time.Minute); problem == nil; time.Sleep(10 * time.Millisecond) {
				st, err := b.Admin.GetStatus(t.Context(), &pb.GetStatusRequest{})
				if err != nil || time.Now().After(end) {
					t.Fatalf("no problem is reported: %v", err)
				}
				if ps := st.GetProblems(); len(ps) > 0 {
					problem = ps[0]
				}
			}
			if problem.GetName() != tc.name || problem.GetReason() == "" || problem.GetStops() == "" || problem.GetStopsAll() == tc.ready {
				t.Errorf("reported as %v", problem)
			}
			for _, r := range tc.stopped {
				b.notGiven(t, r)
			}
			for _, r := range tc.given {
				get(t, c, r)
			}
			if code := b.readyz(t); (code == http.StatusOK) != tc.ready {
				t.Errorf("/readyz answers %d", code)
			}
			if err := tc.mend(); err != nil {
				t.Fatal(err)
			}
			get(t, c, "shared/orders") // at once
			if code := b.readyz(t); code != http.StatusOK {
				t.Errorf("mended, /readyz answers %d", code)
			}
			if st, err := b.Admin.GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil || len(st.GetProblems()) > 0 {
				t.Errorf("mended, the status has %v: %v", st.GetProblems(), err)
			}
		})
	}
}

// notGiven asks for a resource once, without the patience of a client.
func (b *Broker) notGiven(t *testing.T, resource string) {
	t.Helper()
	req := releaseRequest(t, b, resource)
	if r, err := b.Workload.Release(t.Context(), req); err == nil {
		t.Errorf("%s was given: %v", resource, r)
	}
}

func (b *Broker) readyz(t *testing.T) int {
	t.Helper()
	_, _, addr := b.Server.Addresses()
	r, err := http.Get("http://" + addr + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	return r.StatusCode
}

// TestReferenceOwners: an image that is registered for one policy opens nothing by
// another one, and operators are told who uses it.
func TestReferenceOwners(t *testing.T) {
	const text = `

import data.claviger.lib.reference

default allow := false

allow if reference.match("sev-snp", ["measurement"])
`
	b := Start(t, func(c *server.Config) {
		addPolicy(t, c, "team", "package claviger.release.team"+text)
		addPolicy(t, c, "guest", "package claviger.release.guest"+text+"\nreferences_of contains \"team\"\n")
		for _, name := range []string{"team", "guest"} {
			c.Catalog = append(c.Catalog, server.Entry{Pattern: name + "/{vm}", Source: "local", Key: name + "/{vm}", Policy: name, CreateBytes: 32},
				server.Entry{Pattern: name + "/{vm}/more", Source: "local", Key: name + "/{vm}/more", Policy: name, CreateBytes: 32})
		}
	})
	debug := teesim.Measurement("debug")
	b.putReferences(t, &pb.ReferenceSet{Name: "debug", Type: "sev-snp", State: "active",
		Owner:  &pb.ReferenceOwner{Policies: []string{"team"}, Resources: []string{"{any}/{vm}"}},
		Values: map[string]*pb.ReferenceValues{"measurement": {Values: []string{hex.EncodeToString(debug[:])}}}})
	c := b.Client(t, teesim.ReportOptions{Measurement: debug})
	get(t, c, "team/vm-1")
	get(t, c, "guest/vm-1")
	denied(t, c, "team/vm-1/more")
	denied(t, c, "disks/vm-1")
	r, err := b.Admin.ListReferenceUses(t.Context(), &pb.ListReferenceUsesRequest{Name: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	var uses []string
	for _, u := range r.GetUses() {
		uses = append(uses, fmt.Sprint(u.GetPolicy(), " ", u.GetWhy(), " ", u.GetPatterns()))
	}
	if want := []string{"guest references_of [guest/{vm}]", "team owner [team/{vm}]"}; !slices.Equal(uses, want) {
		t.Errorf("used by %q, want %q", uses, want)
	}
}
