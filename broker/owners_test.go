package broker

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// ownersWith are a session's owners: those it makes leases with, and those that were in the record once.
func ownersWith(known []string, all ...*Owner) *owners {
	o := &owners{bySource: map[string]*Owner{}, known: map[string]bool{}}
	for _, x := range all {
		o.bySource[x.Source] = x
	}
	for _, id := range known {
		o.known[id] = true
	}
	return o
}

func leasesOf(resources map[string]string) map[string]Leased {
	of := map[string]Leased{}
	for id, r := range resources {
		of[id] = Leased{Resource: r, Version: "v-" + id}
	}
	return of
}

// TestAddTo: what a session adds to its record, and what it leaves alone there.
func TestAddTo(t *testing.T) {
	type want struct {
		owners   []string
		leases   map[string][]string // by owner
		retiring []string
	}
	for name, tt := range map[string]struct {
		o    *owners
		r    LeaseRecord
		want want
	}{
		"new owners, by their sources' names": {
			ownersWith(nil, &Owner{ID: "b1", Source: "b", Leases: []string{"l1"}, Of: leasesOf(map[string]string{"l1": "r1"})}, &Owner{ID: "a1", Source: "a"}),
			LeaseRecord{}, want{[]string{"a1", "b1"}, map[string][]string{"b1": {"l1"}}, nil},
		},
		"a new lease replaces that of its resource, and no other": {
			ownersWith([]string{"a1", "l1", "l2"}, &Owner{ID: "a1", Source: "a", Leases: []string{"l1", "l2", "l3"}, Of: leasesOf(map[string]string{"l1": "r1", "l2": "r2", "l3": "r1"})}),
			LeaseRecord{Owners: []Owner{{ID: "a1", Source: "a", Leases: []string{"l1", "l2"}, Of: leasesOf(map[string]string{"l1": "r1", "l2": "r2"})}}},
			want{[]string{"a1"}, map[string][]string{"a1": {"l2", "l3"}}, nil},
		},
		"also that of another owner, which retires then": {
			ownersWith([]string{"a1", "l1"}, &Owner{ID: "a2", Source: "a", Leases: []string{"l2"}, Of: leasesOf(map[string]string{"l2": "r1"})}),
			LeaseRecord{Owners: []Owner{{ID: "a1", Source: "a", Leases: []string{"l1"}, Of: leasesOf(map[string]string{"l1": "r1"})}}},
			want{[]string{"a2"}, map[string][]string{"a2": {"l2"}}, []string{"a1"}},
		},
		"an owner with leases left does not retire": {
			ownersWith([]string{"a1", "l1", "l0"}, &Owner{ID: "a2", Source: "a", Leases: []string{"l2"}, Of: leasesOf(map[string]string{"l2": "r1"})}),
			LeaseRecord{Owners: []Owner{{ID: "a1", Source: "a", Leases: []string{"l0", "l1"}, Of: leasesOf(map[string]string{"l0": "r0", "l1": "r1"})}}},
			want{[]string{"a1", "a2"}, map[string][]string{"a1": {"l0"}, "a2": {"l2"}}, nil},
		},
		"nor one of a source that the session does not use": {
			ownersWith(nil, &Owner{ID: "a1", Source: "a"}),
			LeaseRecord{Owners: []Owner{{ID: "b1", Source: "b"}}},
			want{[]string{"b1", "a1"}, nil, nil},
		},
		"a lease of nothing that it says replaces none": {
			ownersWith([]string{"a1", "l1"}, &Owner{ID: "a1", Source: "a", Leases: []string{"l2"}}),
			LeaseRecord{Owners: []Owner{{ID: "a1", Source: "a", Leases: []string{"l1"}}}},
			want{[]string{"a1"}, map[string][]string{"a1": {"l1", "l2"}}, nil},
		},
		"an owner that ended meanwhile does not come back": {
			ownersWith([]string{"a1"}, &Owner{ID: "a1", Source: "a", Leases: []string{"l1"}}),
			LeaseRecord{Owners: []Owner{{ID: "b1", Source: "b"}}},
			want{[]string{"b1"}, nil, nil},
		},
		"nor does a lease": {
			ownersWith([]string{"a1", "l1"}, &Owner{ID: "a1", Source: "a", Leases: []string{"l1"}, Of: leasesOf(map[string]string{"l1": "r1"})}),
			LeaseRecord{Owners: []Owner{{ID: "a1", Source: "a"}}},
			want{[]string{"a1"}, nil, nil},
		},
		"what is there is not there twice": {
			ownersWith(nil, &Owner{ID: "a1", Source: "a", Leases: []string{"l1", "l2"}, Of: leasesOf(map[string]string{"l1": "r1", "l2": "r2"})}),
			LeaseRecord{Owners: []Owner{{ID: "a1", Source: "a", Leases: []string{"l1"}, Of: leasesOf(map[string]string{"l1": "r1"})}}},
			want{[]string{"a1"}, map[string][]string{"a1": {"l1", "l2"}}, nil},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := slices.Clone(tt.r.Owners)
			r := tt.r
			tt.o.addTo(&r)
			var ids, retiring []string
			for _, x := range r.Owners {
				ids = append(ids, x.ID)
				if !slices.Equal(x.Leases, tt.want.leases[x.ID]) {
					t.Errorf("%s has %v, want %v", x.ID, x.Leases, tt.want.leases[x.ID])
				}
				if len(x.Of) > len(x.Leases) {
					t.Errorf("%s says of %v", x.ID, x.Of)
				}
				for _, id := range x.Leases {
					if x.Source == "" || x.Of[id].Resource != "" && x.Of[id].Version != "v-"+id {
						t.Errorf("%s of %q says of %s: %+v", x.ID, x.Source, id, x.Of[id])
					}
				}
			}
			for _, x := range r.Retiring {
				retiring = append(retiring, x.ID)
			}
			if !slices.Equal(ids, tt.want.owners) || !slices.Equal(retiring, tt.want.retiring) {
				t.Errorf("owners %v, want %v; retiring %v, want %v", ids, tt.want.owners, retiring, tt.want.retiring)
			}
			for i, x := range before { // a write that is tried again starts from what was read
				if tt.r.Owners[i].ID != x.ID || !slices.Equal(tt.r.Owners[i].Leases, x.Leases) {
					t.Errorf("it changed what it was given: %+v", tt.r.Owners[i])
				}
			}
		})
	}
}

// TestAdopt: what a session takes over of a record that others changed.
func TestAdopt(t *testing.T) {
	usable := func(id, source string, leases ...string) *Owner {
		return &Owner{ID: id, Source: source, Secret: []byte("s"), Leases: leases}
	}
	for name, tt := range map[string]struct {
		o      *owners
		r      LeaseRecord
		uses   map[string]string // owner by source
		leases []string          // of source a's
	}{
		"a keeper dropped a lease": {ownersWith([]string{"a1", "l1", "l2"}, usable("a1", "a", "l1", "l2")),
			LeaseRecord{Owners: []Owner{*usable("a1", "a", "l2")}}, map[string]string{"a": "a1"}, []string{"l2"}},
		"an owner ended": {ownersWith([]string{"a1"}, usable("a1", "a")), LeaseRecord{}, map[string]string{}, nil},
		"one that is not written down yet stays": {ownersWith(nil, usable("a1", "a", "l1")), LeaseRecord{Owners: []Owner{*usable("b1", "b")}},
			map[string]string{"a": "a1", "b": "b1"}, []string{"l1"}},
		"of two of a source the one in use stays": {ownersWith([]string{"a2"}, usable("a2", "a")),
			LeaseRecord{Owners: []Owner{*usable("a1", "a", "l1"), *usable("a2", "a")}}, map[string]string{"a": "a2"}, nil},
		"unless it cannot be used": {ownersWith(nil, &Owner{ID: "a1", Source: "a"}),
			LeaseRecord{Owners: []Owner{{ID: "a1", Source: "a"}, *usable("a2", "a", "l1")}}, map[string]string{"a": "a2"}, []string{"l1"}},
		"all are another broker's": {ownersWith(nil), LeaseRecord{Owners: []Owner{*usable("a1", "a", "l1"), *usable("b1", "b")}},
			map[string]string{"a": "a1", "b": "b1"}, []string{"l1"}},
	} {
		t.Run(name, func(t *testing.T) {
			tt.r.Session = "S"
			tt.o.adopt(tt.r)
			for source, id := range tt.uses {
				if x := tt.o.bySource[source]; x == nil || x.ID != id {
					t.Errorf("of %s it uses %+v, want %s", source, x, id)
				}
			}
			if x := tt.o.bySource["a"]; len(tt.o.bySource) != len(tt.uses) || x != nil && !slices.Equal(x.Leases, tt.leases) {
				t.Errorf("uses %d owners, leases %+v", len(tt.o.bySource), x)
			}
			for _, x := range tt.r.Owners {
				for _, id := range append(x.Leases, x.ID) {
					if !tt.o.known[id] {
						t.Errorf("%s is not known", id)
					}
				}
			}
			if tt.o.rec.Session != "S" {
				t.Errorf("record %+v", tt.o.rec)
			}
		})
	}
}

// TestOwnerOf: only leased kinds have an owner.
func TestOwnerOf(t *testing.T) {
	o := ownersWith(nil, &Owner{ID: "a1", Source: "a"})
	if o.of(CatalogEntry{Kind: KindDatabase, Source: "a"}) == nil || o.of(CatalogEntry{Kind: KindKV, Source: "a"}) != nil || (*owners)(nil).of(CatalogEntry{Kind: KindDatabase, Source: "a"}) != nil {
		t.Error("wrong owner")
	}
}

// TestRecordLeases: a version is leased by an owner of its source, if one lease is of its resource and of that version.
func TestRecordLeases(t *testing.T) {
	r := LeaseRecord{Owners: []Owner{
		{Source: "a", Leases: []string{"l1"}, Of: leasesOf(map[string]string{"l1": "r1", "l9": "r9"})}, {Source: "b", Leases: []string{"l2"}, Of: leasesOf(map[string]string{"l2": "r2"})},
		{Source: "old", Leases: []string{"l3"}}, {Source: "empty"},
	}}
	for _, tt := range []struct {
		source, resource, version string
		want                      bool
	}{
		{"a", "r1", "v-l1", true}, {"a", "r1", "v-l2", false}, {"a", "r2", "v-l1", false}, {"b", "r1", "v-l1", false}, {"b", "r2", "v-l2", true},
		{"a", "r9", "v-l9", false}, {"old", "r7", "7", true}, {"empty", "r1", "v-l1", false},
	} {
		if got := r.leases(tt.source, tt.resource, tt.version); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestRenewalTimes: what failed is tried again ever later, at most every quarter of a minute, and what succeeded when it says.
func TestRenewalTimes(t *testing.T) {
	now := time.Unix(0, 0)
	s := &kept{renewal: map[string]*renewal{}}
	if !s.due("x", now) {
		t.Error("what was never renewed is not due")
	}
	for _, wait := range []time.Duration{3, 6, 12, 15, 15, 15, 15, 15, 15, 15, 15} {
		s.failed("x", now)
		wait *= time.Second
		if s.due("x", now.Add(wait-1)) || !s.due("x", now.Add(wait)) {
			t.Errorf("want another try after %s, have one after %s", wait, s.renewal["x"].next.Sub(now))
		}
	}
	s.succeeded("x", now.Add(time.Minute))
	if s.due("x", now.Add(time.Minute-1)) || !s.due("x", now.Add(time.Minute)) {
		t.Errorf("next %s", s.renewal["x"].next)
	}
	s.failed("x", now)
	if !s.due("x", now.Add(3*time.Second)) {
		t.Error("a success does not start over")
	}
}

// TestRenewError: what is true of a renewal as a whole is true of its owner, or of each lease of all that there were.
func TestRenewError(t *testing.T) {
	busy, slow := errors.New("too busy"), errors.New("too slow")
	for name, tt := range map[string]struct {
		err    RenewError
		is     []error
		isNot  []error
		prints string
	}{
		"the owner":               {RenewError{Owner: busy}, []error{busy}, []error{slow}, "too busy"},
		"the owner, and a lease":  {RenewError{Owner: busy, Leases: map[string]error{"l": slow}}, []error{busy}, []error{slow}, "too busy; too slow"},
		"all leases":              {RenewError{Leases: map[string]error{"l1": slow, "l2": slow}, All: true}, []error{slow}, []error{busy}, "too slow; too slow"},
		"not all leases":          {RenewError{Leases: map[string]error{"l1": slow}}, nil, []error{slow, busy}, "too slow"},
		"all, for several causes": {RenewError{Leases: map[string]error{"l2": slow, "l1": busy}, All: true}, nil, []error{slow, busy}, "too busy; too slow"},
	} {
		for _, target := range tt.is {
			if !errors.Is(&tt.err, target) {
				t.Errorf("%s: it is not %v", name, target)
			}
		}
		for _, target := range tt.isNot {
			if errors.Is(&tt.err, target) {
				t.Errorf("%s: it is %v", name, target)
			}
		}
		if got := tt.err.Error(); got != tt.prints {
			t.Errorf("%s: prints %q", name, got)
		}
	}
}

// TestLeaseTTL is the owner's, or what policy and catalog say if that is shorter.
func TestLeaseTTL(t *testing.T) {
	o := Owner{Of: map[string]Leased{"short": {Cap: time.Minute}, "long": {Cap: time.Hour}, "any": {}, "tiny": {Cap: 1}}}
	for id, want := range map[string]time.Duration{"short": time.Minute, "long": 2 * time.Minute, "any": 2 * time.Minute, "unknown": 2 * time.Minute, "tiny": 1} {
		if got := o.LeaseTTL(id, 2*time.Minute); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
}
