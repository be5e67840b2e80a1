package rpc

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// fakeState keeps revocations; the rest of State is not asked for here.
type fakeState struct {
	State
	revoked []broker.Revocation
	fault   error
	broken  error // of Unrevoke alone
	unread  error // of ListRevocations alone
}

func (f *fakeState) Revoke(_ context.Context, r broker.Revocation) error {
	if f.fault != nil {
		return f.fault
	}
	f.revoked = append(f.revoked, r)
	return nil
}

func (f *fakeState) Unrevoke(_ context.Context, s broker.Subject) (bool, error) {
	if f.broken != nil {
		return false, f.broken
	}
	for i, r := range f.revoked {
		if r.Subject == s {
			f.revoked = append(f.revoked[:i], f.revoked[i+1:]...)
			return true, f.fault
		}
	}
	return false, f.fault
}

func (f *fakeState) ListRevocations(_ context.Context, after string, _ int) ([]broker.Revocation, string, error) {
	if f.unread != nil {
		return nil, "", f.unread
	}
	if f.fault != nil || len(f.revoked) == 0 {
		return nil, "", f.fault
	}
	if after == "" { // two pages
		return f.revoked[:1], "more", nil
	}
	return f.revoked[1:], "", nil
}

// seenSessions is what a broker has seen.
type seenSessions struct {
	Sessions
	seen     []string
	sessions []broker.Session
	exposure broker.Exposure
	fault    error
	unread   error // of Exposed alone
	asked    broker.Subject
	since    time.Time
}

func (s *seenSessions) Seen(_ context.Context, x broker.Subject) ([]string, error) {
	s.asked = x
	return s.seen, s.fault
}

func (s *seenSessions) Lookup(path string) (broker.CatalogEntry, bool) {
	pattern := "db/{name}"
	if path == "db/orders" {
		pattern = path
	}
	if !strings.HasPrefix(path, "db/") {
		return broker.CatalogEntry{}, false
	}
	return broker.CatalogEntry{Pattern: pattern, Rotatable: path == "db/orders"}, true
}

func (s *seenSessions) Page(_ context.Context, after string, _ int) ([]broker.Session, string, error) {
	return s.sessions, "", s.fault
}

func (s *seenSessions) Exposed(_ context.Context, x broker.Subject, since time.Time) (broker.Exposure, error) {
	s.asked, s.since = x, since
	return s.exposure, s.unread
}

func revoker() (*Admin, *fakeState, *seenSessions) {
	st, se := &fakeState{}, &seenSessions{}
	return &Admin{State: st, Sessions: se, Conflict: func(error) bool { return false }, Now: func() time.Time { return time.Unix(1000, 0) }}, st, se
}

// TestRevokeArgument: what an operator types, or copies from a table, means one thing that exists, or is refused.
func TestRevokeArgument(t *testing.T) {
	chip, other := strings.Repeat("ab", 64), "abcd"+strings.Repeat("ef", 62)
	id := strings.Repeat("A2", 13)
	for name, tt := range map[string]struct {
		kind      broker.RevocationKind
		value     string
		mustExist bool
		seen      []string
		want      string
		code      codes.Code
		says      string
	}{
		"whole, seen":                {broker.RevokeChip, chip, true, []string{chip}, chip, codes.OK, ""},
		"in capitals":                {broker.RevokeChip, strings.ToUpper(chip), true, []string{chip}, chip, codes.OK, ""},
		"seen in capitals":           {broker.RevokeChip, chip, true, []string{strings.ToUpper(chip)}, strings.ToUpper(chip), codes.OK, ""},
		"a beginning":                {broker.RevokeChip, chip[:4], true, []string{chip}, chip, codes.OK, ""},
		"as a table prints it":       {broker.RevokeChip, chip[:12] + "…", false, []string{chip}, chip, codes.OK, ""},
		"of a session":               {broker.RevokeSession, id[:6], true, []string{id}, id, codes.OK, ""},
		"of a policy":                {broker.RevokePolicy, "sha256:00", true, []string{"sha256:" + strings.Repeat("00", 32)}, "sha256:" + strings.Repeat("00", 32), codes.OK, ""},
		"of a workload":              {broker.RevokeWorkload, "0bff", true, []string{"0bff00"}, "0bff00", codes.OK, ""},
		"of a measurement":           {broker.RevokeMeasurement, "1122", true, []string{"112233"}, "112233", codes.OK, ""},
		"too short a beginning":      {broker.RevokeChip, chip[:3], true, []string{chip}, "", codes.InvalidArgument, "too short; do you mean " + chip},
		"two begin so":               {broker.RevokeChip, "abab", true, []string{chip, "abab" + other, chip}, "", codes.InvalidArgument, "is the beginning of 2 chip values"},
		"one of two, whole":          {broker.RevokeChip, chip, true, []string{chip, chip + "00"}, chip, codes.OK, ""},
		"a word is no beginning":     {broker.RevokeAdvisory, "INTEL-SA-00", true, []string{"INTEL-SA-00837"}, "", codes.NotFound, "--force"},
		"never seen":                 {broker.RevokeChip, chip, true, nil, "", codes.NotFound, "nothing is revoked"},
		"never seen, forced":         {broker.RevokeChip, chip, false, nil, chip, codes.OK, ""},
		"cut off, never seen":        {broker.RevokeChip, chip + "…", false, nil, "", codes.NotFound, "give it in full"},
		"part, forced":               {broker.RevokeChip, "12", false, nil, "", codes.InvalidArgument, "a whole chip id"},
		"nonsense, forced":           {broker.RevokeMeasurement, "zz", false, nil, "", codes.InvalidArgument, "a whole digest"},
		"resource":                   {broker.RevokeResource, "db/orders", true, nil, "db/orders", codes.OK, ""},
		"resource by a variable":     {broker.RevokeResource, "db/oders", true, nil, "", codes.NotFound, "nothing is revoked"},
		"resource of nobody":         {broker.RevokeResource, "disks/x", true, nil, "", codes.NotFound, "nothing is revoked"},
		"resource once":              {broker.RevokeResource, "disks/x", true, []string{"disks/x"}, "disks/x", codes.OK, ""},
		"resource cut off":           {broker.RevokeResource, "db/ord…", true, nil, "", codes.NotFound, "give it in full"},
		"pattern":                    {broker.RevokeResource, "db/*", true, nil, "", codes.InvalidArgument, "a path"},
		"version":                    {broker.RevokeSecretVersion, "db/orders@7", true, []string{"db/orders@7"}, "db/orders@7", codes.OK, ""},
		"version of nobody":          {broker.RevokeSecretVersion, "db/orders@9", true, []string{"db/orders@7"}, "", codes.NotFound, "nothing is revoked"},
		"version, forced":            {broker.RevokeSecretVersion, "db/orders@9", false, nil, "db/orders@9", codes.OK, ""},
		"version of a pattern":       {broker.RevokeSecretVersion, "db/*@7", true, nil, "", codes.InvalidArgument, "{resource}@{version}"},
		"forced, in capitals":        {broker.RevokeChip, strings.ToUpper(chip), false, nil, chip, codes.OK, ""},
		"a path of another kind":     {broker.RevokeTCB, "db/orders", false, nil, "", codes.InvalidArgument, "want {hardware model}/{TCB status}"},
		"cut off at a path":          {broker.RevokeResource, "db/orders…", true, []string{"db/orders-archive"}, "", codes.NotFound, "give it in full"},
		"short, forced":              {broker.RevokeChip, chip[:16], false, nil, chip[:16], codes.OK, ""},
		"a short one that is longer": {broker.RevokeChip, chip[:31], false, []string{chip}, chip, codes.OK, ""},
		"a whole one, forced":        {broker.RevokeChip, chip[:32], false, []string{chip}, chip[:32], codes.OK, ""},
		"seen shorter":               {broker.RevokeChip, chip[:20], true, []string{chip[:18], chip}, chip, codes.OK, ""},
		"more than can be said":      {broker.RevokeChip, "abab", true, []string{"abab1", "abab2", "abab3", "abab4", "abab5", "abab6"}, "", codes.InvalidArgument, "6 chip values: abab1, abab2, abab3, abab4, abab5"},
		"one of 4 characters":        {broker.RevokeResource, "ab", true, []string{"ab"}, "ab", codes.OK, ""},
		"the one in this case":       {broker.RevokeResource, "Orders", true, []string{"orders", "Orders"}, "Orders", codes.OK, ""},
		"kind of nothing":            {"none", "x", false, nil, "", codes.InvalidArgument, "revocation.kind"},
		"nothing":                    {broker.RevokeChip, "", false, nil, "", codes.InvalidArgument, "revocation.value"},
	} {
		t.Run(name, func(t *testing.T) {
			a, st, se := revoker()
			se.seen = tt.seen
			resp, err := a.Revoke(context.WithValue(t.Context(), operatorKey{}, "olga"), &pb.RevokeRequest{
				Revocation: &pb.Revocation{Kind: string(tt.kind), Value: tt.value, Reason: "stolen"}, MustExist: tt.mustExist,
			})
			if status.Code(err) != tt.code || resp.GetValue() != tt.want || err != nil && !strings.Contains(err.Error()+"\n", tt.says) {
				t.Fatalf("%q, %v; want %q, %s about %q", resp.GetValue(), err, tt.want, tt.code, tt.says)
			}
			if err != nil {
				if len(st.revoked) > 0 {
					t.Errorf("revoked %+v all the same", st.revoked)
				}
				return
			}
			if r := st.revoked; len(r) != 1 || r[0].Kind != tt.kind || r[0].Value != tt.want || r[0].Reason != "stolen" || r[0].RevokedBy != "olga" || !r[0].RevokedAt.Equal(time.Unix(1000, 0)) {
				t.Errorf("revoked %+v", r)
			}
		})
	}
}

// TestRevokeFails: what is not durable is not acknowledged.
func TestRevokeFails(t *testing.T) {
	a, st, se := revoker()
	req := &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "resource", Value: "db/orders"}}
	st.fault = errors.New("no leader")
	if _, err := a.Revoke(t.Context(), req); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	st.fault, se.fault = nil, errors.New("log unreadable")
	req = &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: strings.Repeat("ab", 64)}, MustExist: true}
	if _, err := a.Revoke(t.Context(), req); status.Code(err) != codes.Unavailable || len(st.revoked) > 0 {
		t.Error(err)
	}
}

// TestRevokeByForce needs nothing but the shared state, where the value is whole: what was seen is for those who type a part of it.
func TestRevokeByForce(t *testing.T) {
	for value, tt := range map[string]struct {
		kind broker.RevocationKind
		code codes.Code
	}{
		strings.Repeat("ab", 64): {broker.RevokeChip, codes.OK},
		strings.Repeat("ab", 16): {broker.RevokeChip, codes.OK},
		strings.Repeat("ab", 15): {broker.RevokeChip, codes.Unavailable}, // may be a part
		"disks/x":                {broker.RevokeResource, codes.OK},
		"disks/x@7":              {broker.RevokeSecretVersion, codes.OK},
		"INTEL-SA-00837":         {broker.RevokeAdvisory, codes.Unavailable},
	} {
		a, st, se := revoker()
		se.fault = errors.New("log unreadable")
		_, err := a.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: string(tt.kind), Value: value}})
		if status.Code(err) != tt.code || len(st.revoked) == 1 != (tt.code == codes.OK) {
			t.Errorf("%s %q: %v, revoked %v", tt.kind, value, err, st.revoked)
		}
	}
}

// TestUnrevoke takes back one revocation, by the beginning of its value as well.
func TestUnrevoke(t *testing.T) {
	chip, other := strings.Repeat("ab", 64), strings.Repeat("cd", 64)
	for name, tt := range map[string]struct {
		kind, value string
		code        codes.Code
		left        int
	}{
		"whole":           {"chip", chip, codes.OK, 2},
		"a beginning":     {"chip", chip[:8], codes.OK, 2},
		"cut off":         {"chip", chip[:8] + "…", codes.OK, 2},
		"on a later page": {"chip", other[:8], codes.OK, 2},
		"of another kind": {"workload", chip[:8], codes.NotFound, 3},
		"not revoked":     {"chip", "0000", codes.NotFound, 3},
	} {
		t.Run(name, func(t *testing.T) {
			a, st, _ := revoker()
			for _, s := range []broker.Subject{{Kind: broker.RevokeChip, Value: chip}, {Kind: broker.RevokeChip, Value: other}, {Kind: broker.RevokeSession, Value: "S"}} {
				st.revoked = append(st.revoked, broker.Revocation{Subject: s})
			}
			resp, err := a.Unrevoke(t.Context(), &pb.UnrevokeRequest{Kind: tt.kind, Value: tt.value})
			if status.Code(err) != tt.code || resp == nil && err == nil || len(st.revoked) != tt.left {
				t.Errorf("%v, %d left", err, len(st.revoked))
			}
			st.fault = errors.New("no leader")
			if _, err := a.Unrevoke(t.Context(), &pb.UnrevokeRequest{Kind: "session", Value: "none"}); status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
		})
	}
}

// TestUnrevokeOneOfMany: a beginning means one revocation of its kind, or none; what cannot be read or written is no answer.
func TestUnrevokeOneOfMany(t *testing.T) {
	a, st, _ := revoker()
	for _, s := range []broker.Subject{{Kind: broker.RevokeChip, Value: "abab1"}, {Kind: broker.RevokeWorkload, Value: "abab2"}, {Kind: broker.RevokeSession, Value: "CDCD1"}, {Kind: broker.RevokeSession, Value: "CDCD2"}} {
		st.revoked = append(st.revoked, broker.Revocation{Subject: s})
	}
	unrevoke := func(kind, value string) error {
		_, err := a.Unrevoke(t.Context(), &pb.UnrevokeRequest{Kind: kind, Value: value})
		return err
	}
	if err := unrevoke("session", "CDCD"); status.Code(err) != codes.InvalidArgument || len(st.revoked) != 4 {
		t.Errorf("two begin so: %v", err)
	}
	st.unread = errors.New("no leader")
	if err := unrevoke("chip", "abab"); status.Code(err) != codes.Unavailable || len(st.revoked) != 4 {
		t.Errorf("cannot be read: %v", err)
	}
	st.unread, st.broken = nil, errors.New("no leader")
	if err := unrevoke("chip", "none"); status.Code(err) != codes.Unavailable {
		t.Errorf("cannot be written: %v", err)
	}
	st.broken = nil
	if err := unrevoke("chip", "abab"); err != nil || len(st.revoked) != 3 {
		t.Errorf("another kind has one that begins so: %v, %v", err, st.revoked)
	}
}

// TestBlastRadius says what went to a subject and how many sessions end, devices included.
func TestBlastRadius(t *testing.T) {
	a, _, se := revoker()
	gpu := strings.Repeat("0a", 16)
	se.seen = []string{gpu}
	se.sessions = []broker.Session{{ID: "1", Subjects: []broker.Subject{{Kind: broker.RevokeChip, Value: gpu}}}, {ID: "2"}, {ID: "3", Subjects: []broker.Subject{{Kind: broker.RevokeChip, Value: strings.ToUpper(gpu)}}}}
	first, last, since := time.Unix(10, 0), time.Unix(20, 0), time.Unix(5, 0)
	se.exposure = broker.Exposure{Log: "log", Entries: 9, Pruned: 2, Releases: 4, Versions: []broker.ExposedVersion{
		{Resource: "db/orders", Version: "7", Releases: 3, First: first, Last: last}, {Resource: "db/users", Version: "1", Releases: 1, First: last, Last: last},
	}}
	r, err := a.BlastRadius(t.Context(), &pb.BlastRadiusRequest{Kind: "chip", Value: gpu[:6], MustExist: true, Since: stamp(since)})
	if err != nil {
		t.Fatal(err)
	}
	if r.GetValue() != gpu || r.GetSessions() != 2 || r.GetReleases() != 4 || r.GetEntries() != 9 || r.GetPruned() != 2 || r.GetLogOrigin() != "log" || len(r.GetExposures()) != 2 ||
		se.asked != (broker.Subject{Kind: broker.RevokeChip, Value: gpu}) || !se.since.Equal(since) {
		t.Errorf("got %v; asked about %s since %s", r, se.asked, se.since)
	}
	if x := r.GetExposures()[0]; x.GetResource() != "db/orders" || x.GetVersion() != "7" || x.GetReleases() != 3 || !x.GetRotatable() || !x.GetFirst().AsTime().Equal(first) || !x.GetLast().AsTime().Equal(last) {
		t.Errorf("got %v", x)
	}
	if r.GetExposures()[1].GetRotatable() {
		t.Error("db/users is not rotatable")
	}
	req := &pb.BlastRadiusRequest{Kind: "chip", Value: gpu, PageSize: 1}
	if r, err := a.BlastRadius(t.Context(), req); err != nil || len(r.GetExposures()) != 1 || r.GetExposures()[0].GetResource() != "db/orders" {
		t.Fatalf("the first page: %v, %v", r, err)
	} else if req.PageToken = r.GetNextPageToken(); req.PageToken == "" {
		t.Fatal("no second page")
	}
	if r, err := a.BlastRadius(t.Context(), req); err != nil || len(r.GetExposures()) != 1 || r.GetExposures()[0].GetResource() != "db/users" || r.GetNextPageToken() != "" {
		t.Errorf("the second page: %v, %v", r, err)
	}
	req.PageToken = "?"
	if _, err := a.BlastRadius(t.Context(), req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token that is none: %v", err)
	}
	if _, err := a.BlastRadius(t.Context(), &pb.BlastRadiusRequest{Kind: "chip", Value: "zz", MustExist: true}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	se.unread = errors.New("log unreadable")
	if _, err := a.BlastRadius(t.Context(), &pb.BlastRadiusRequest{Kind: "resource", Value: "db/orders"}); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	se.unread = nil
	se.fault = errors.New("no leader")
	if _, err := a.BlastRadius(t.Context(), &pb.BlastRadiusRequest{Kind: "resource", Value: "db/orders"}); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

// TestRequest: all that a guest sends reaches the broker, in its place.
func TestRequest(t *testing.T) {
	r := &pb.ReleaseRequest{
		Nonce: []byte("n"), KeyAlgorithm: "alg", PublicKey: []byte("key"), OfferedSuites: []string{"alg"}, Resources: []string{"a", "b", "c"},
		Evidence: []*pb.Evidence{
			{Type: "sev-snp", Report: []byte("r"), Endorsements: []byte("e"), EventLog: []byte("l")}, {Type: "nvidia-gpu", Report: []byte("g")},
		},
		Inputs: []*pb.ResourceInput{{Resource: "b", Input: []byte("csr")}},
	}
	got, err := request(from("10.0.0.7"), r)
	if err != nil {
		t.Fatal(err)
	}
	if got.Peer.String() != "10.0.0.7" || string(got.Nonce) != "n" || got.KeyAlgorithm != "alg" || string(got.PublicKey) != "key" || len(got.OfferedSuites) != 1 || len(got.Resources) != 3 ||
		got.Evidence.Type != attest.TypeSNP || string(got.Evidence.Report) != "r" || string(got.Evidence.Endorsements) != "e" || string(got.Evidence.EventLog) != "l" ||
		len(got.Devices) != 1 || got.Devices[0].Type != attest.TypeNVIDIA || string(got.Devices[0].Report) != "g" ||
		len(got.Inputs) != 3 || got.Inputs[0] != nil || string(got.Inputs[1]) != "csr" || got.Inputs[2] != nil {
		t.Errorf("request %+v", got)
	}
	r.Inputs[0].Resource = "a" // the first as well
	if got, err := request(t.Context(), r); err != nil || string(got.Inputs[0]) != "csr" {
		t.Errorf("inputs %q: %v", got.Inputs, err)
	}
	for want, inputs := range map[string][]*pb.ResourceInput{
		"not among the resources": {{Resource: "d", Input: []byte("x")}},
		"two for":                 {{Resource: "a", Input: []byte("x")}, {Resource: "a", Input: []byte("y")}},
	} {
		r.Inputs = inputs
		if _, err := request(t.Context(), r); !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	r.Inputs = nil
	if got, err := request(t.Context(), r); err != nil || got.Inputs != nil {
		t.Errorf("inputs %q: %v", got.Inputs, err)
	}
}
