package state

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/broker"
)

// changePeriod is how often OnChange is called at most. It has every watching
// session looked at again, which bulk writes must not do for each record.
const changePeriod = 100 * time.Millisecond

var bundleDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Kinds of Problem. KindStore is of those who have a store to tell about.
const (
	KindRevocation = "revocation"
	KindIdentity   = "identity"
	KindReference  = "reference_set"
	KindCatalog    = "catalog_entry"
	KindPin        = "policy_pin"
	KindUnknown    = "unknown"
	KindView       = "view"
	KindStore      = "store"
)

// Problem is a part of the shared state that is not in force, and what stops because of it (G9).
type Problem struct {
	Kind string
	// Name is what the command that deletes it calls it: a set's name, an entry's
	// pattern; otherwise the record's key.
	Name     string
	Reason   string
	Stops    string // which releases, in words
	StopsAll bool
}

// record is a pair of the shared configuration, decoded.
type record struct {
	machine []string // identities
	key     string
	deleted bool
	subject broker.Subject
	set     broker.ReferenceSet
	entry   broker.CatalogEntry
	pin     string
	blocks  []string // patterns of a catalog entry that does not decode
	problem *Problem
}

// decodeAll decodes on all processors: at a start there may be 100,000.
func decodeAll(pairs []Pair) []record {
	out := make([]record, len(pairs))
	share := max(len(pairs)/runtime.GOMAXPROCS(0)+1, 1000)
	var wg sync.WaitGroup
	for from := 0; from < len(pairs); from += share {
		wg.Go(func() {
			for i := from; i < min(from+share, len(pairs)); i++ {
				out[i] = decode(pairs[i])
			}
		})
	}
	wg.Wait()
	return out
}

// decode never fails: what cannot be used is a record with a problem.
func decode(p Pair) record {
	r := record{key: p.Key, deleted: p.Deleted}
	if p.Deleted {
		return r
	}
	switch {
	case strings.HasPrefix(p.Key, revocations):
		var v broker.Revocation
		err := json.Unmarshal(p.Value, &v) // members that a newer broker knows make it no less a revocation
		if err == nil {
			err = v.Validate()
		}
		r.subject = v.Canonical()
		if err != nil { // it might be about anything
			r.problem = &Problem{Kind: KindRevocation, Name: p.Key, Reason: fmt.Sprintf("does not decode: %v", err), Stops: "all", StopsAll: true}
		}
	case strings.HasPrefix(p.Key, identities):
		var m machine
		err := json.Unmarshal(p.Value, &m)
		if r.machine = m.Identities; err != nil || len(r.machine) < 2 || len(r.machine) > broker.MaxIdentities {
			r.machine = nil
			r.problem = &Problem{Kind: KindIdentity, Name: p.Key, Reason: fmt.Sprintf("does not decode, or has not 2 to %d identities: %v", broker.MaxIdentities, err), Stops: "none"}
		}
	case strings.HasPrefix(p.Key, references):
		name := strings.TrimPrefix(p.Key, references)
		err := unmarshal(p.Value, &r.set)
		if err == nil && r.set.Name != name {
			err = fmt.Errorf("name: %q is in the place of another", r.set.Name)
		}
		if err == nil {
			err = r.set.Usable()
		}
		if err != nil {
			r.problem = &Problem{Kind: KindReference, Name: name, Reason: fmt.Sprintf("cannot be used: %v", err), Stops: "all whose policy reads reference values"}
		}
	case strings.HasPrefix(p.Key, catalog):
		r.decodeEntry(p)
	case p.Key == policyPin:
		if r.pin = string(p.Value); !bundleDigest.MatchString(r.pin) {
			r.problem = &Problem{Kind: KindPin, Name: p.Key, Reason: "names no bundle: want sha256: and 64 hex digits", Stops: "all", StopsAll: true}
		}
	default:
		r.problem = &Problem{Kind: KindUnknown, Name: p.Key, Reason: "this broker knows no such record: was it written by a newer one, or by hand?", Stops: "none"}
	}
	return r
}

func (r *record) decodeEntry(p Pair) {
	named, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(p.Key, catalog))
	pattern := string(named)
	if err == nil {
		err = broker.ValidPattern(pattern)
	}
	if err != nil { // no pattern to block
		r.problem = &Problem{Kind: KindCatalog, Name: p.Key, Reason: fmt.Sprintf("its key is that of no pattern: %v", err), Stops: "all", StopsAll: true}
		return
	}
	err = unmarshal(p.Value, &r.entry)
	if err == nil && r.entry.Pattern != pattern {
		err = fmt.Errorf("pattern: %q is in the place of another", r.entry.Pattern)
	}
	if err == nil {
		err = r.entry.Validate()
	}
	if err == nil {
		return
	}
	r.blocks = []string{pattern}
	if r.entry.Pattern != pattern && broker.ValidPattern(r.entry.Pattern) == nil {
		r.blocks = append(r.blocks, r.entry.Pattern)
	}
	r.problem = &Problem{Kind: KindCatalog, Name: pattern, Reason: fmt.Sprintf("cannot be used: %v", err), Stops: "those of paths that match " + strings.Join(r.blocks, " or ")}
}

// unmarshal refuses members that this broker does not know: they may restrict what it would release.
func unmarshal(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}

// view is the shared configuration as it was at a revision.
type view struct {
	revision int64
	revoked  map[broker.Subject]int            // how many records revoke it
	digests  map[int]map[string]broker.Subject // revoked measurements by length, and key of the record
	subjects map[string]broker.Subject
	machines map[string][]string        // identities of one machine
	of       map[string]map[string]bool // by identity, the keys of machines that have it
	sets     map[string]broker.ReferenceSet
	entries  map[string]broker.CatalogEntry
	blocked  map[string][]string // patterns of entries that cannot be used
	pin      string
	bad      map[string]Problem
	stop     string // the key of a record that stops all releases, "" if there is none

	// All but the first two are by the record's key.
}

func newView() *view {
	return &view{
		revoked: map[broker.Subject]int{}, digests: map[int]map[string]broker.Subject{}, subjects: map[string]broker.Subject{}, machines: map[string][]string{}, of: map[string]map[string]bool{}, sets: map[string]broker.ReferenceSet{},
		entries: map[string]broker.CatalogEntry{}, blocked: map[string][]string{}, bad: map[string]Problem{},
	}
}

// changes says of which kinds something changed.
type changes struct {
	references, catalog, pin bool
	any                      bool
	since                    time.Time // when the first of the three was seen
}

// take replaces what is known of a record's key.
func (v *view) take(r record, c *changes) {
	v.forget(r.key)
	c.any = c.any || !strings.HasPrefix(r.key, identities) || v.anyRevoked(r.machine)
	switch {
	case strings.HasPrefix(r.key, references):
		c.references = true
	case strings.HasPrefix(r.key, catalog):
		c.catalog = true
	case r.key == policyPin:
		c.pin = true
	}
	switch {
	case r.deleted:
	case r.problem != nil:
		v.bad[r.key] = *r.problem
		if r.problem.StopsAll {
			v.stop = r.key
		}
		if r.blocks != nil {
			v.blocked[r.key] = r.blocks
		}
	case strings.HasPrefix(r.key, revocations):
		v.subjects[r.key] = r.subject
		v.revoked[r.subject]++
		if r.subject.Kind == broker.RevokeMeasurement {
			n := len(r.subject.Value)
			if v.digests[n] == nil {
				v.digests[n] = map[string]broker.Subject{}
			}
			v.digests[n][r.key] = r.subject
		}
	case strings.HasPrefix(r.key, identities):
		v.join(r.key, r.machine)
	case strings.HasPrefix(r.key, references):
		v.sets[r.key] = r.set
		v.join(r.key, r.set.Values[broker.SameMachine])
	case strings.HasPrefix(r.key, catalog):
		v.entries[r.key] = r.entry
	case r.key == policyPin:
		v.pin = r.pin
	}
}

func (v *view) forget(key string) {
	if sub, ok := v.subjects[key]; ok {
		if v.revoked[sub]--; v.revoked[sub] == 0 {
			delete(v.revoked, sub)
		}
		delete(v.subjects, key)
		delete(v.digests[len(sub.Value)], key)
	}
	for _, id := range v.machines[key] {
		if delete(v.of[id], key); len(v.of[id]) == 0 {
			delete(v.of, id)
		}
	}
	delete(v.machines, key)
	delete(v.sets, key)
	delete(v.entries, key)
	delete(v.blocked, key)
	if key == policyPin {
		v.pin = ""
	}
	if _, ok := v.bad[key]; !ok {
		return
	}
	delete(v.bad, key)
	if v.stop == key {
		v.stop = ""
		for k, p := range v.bad {
			if p.StopsAll {
				v.stop = k
			}
		}
	}
}

// join notes that ids are one machine's, as the record under key says.
func (v *view) join(key string, ids []string) {
	for _, id := range ids {
		if v.of[id] == nil {
			v.of[id] = map[string]bool{}
		}
		v.of[id][key] = true
	}
	if len(ids) > 0 {
		v.machines[key] = ids
	}
}

// same is ids and all that records, one after another, say to be the same machine's: at most maxSame.
func (v *view) same(ids []string) []string {
	out, seen := slices.Clone(ids), map[string]bool{}
	for _, id := range out {
		seen[id] = true
	}
	for i := 0; i < len(out) && len(out) < maxSame; i++ {
		for key := range v.of[out[i]] {
			for _, id := range v.machines[key] {
				if !seen[id] {
					seen[id] = true
					out = append(out, id)
				}
			}
		}
	}
	return out
}

// anyRevoked says whether one of the machine's identities is revoked.
func (v *view) anyRevoked(ids []string) bool {
	for _, id := range v.same(ids) {
		if v.revoked[broker.Subject{Kind: broker.RevokeChip, Value: id}] > 0 {
			return true
		}
	}
	return false
}

// count is how many records there are besides key of its kind.
func (v *view) count(key string) int {
	n := 0
	switch {
	case strings.HasPrefix(key, revocations):
		if n = len(v.subjects); hasKey(v.subjects, key) {
			n--
		}
	case strings.HasPrefix(key, identities):
		n = len(v.machines)
	case strings.HasPrefix(key, references):
		if n = len(v.sets); hasKey(v.sets, key) {
			n--
		}
	}
	return n
}

func hasKey[V any](m map[string]V, key string) bool { _, ok := m[key]; return ok }

// Run follows the shared configuration until ctx ends. ready is closed when the
// first view is in force.
func (s *State) Run(ctx context.Context, ready chan<- struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	s.running.Store(true)
	defer s.running.Store(false)
	wg.Go(func() { s.enforce(ctx, ready) })
	wg.Go(func() { s.tellChanges(ctx) })
	for {
		err := s.kv.Watch(ctx, config, s.apply, s.alive)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.log.Warn("lost the view of shared state, trying again", "error", err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *State) alive(asOf time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = asOf
}

// apply takes changes into the view. It costs what the changes cost, however
// much there is; the hooks, which may cost more, are called elsewhere.
func (s *State) apply(u Update) {
	records := decodeAll(u.Pairs)
	for _, r := range records {
		if p := r.problem; p != nil {
			s.log.Error("a record of the shared state is not in force", "key", r.key, "reason", p.Reason, "stops", p.Stops)
		}
	}
	c := changes{any: u.Whole || len(records) == 0}
	next := newView()
	if u.Whole { // built beside the old one, which goes on being asked meanwhile
		c.references, c.catalog, c.pin = true, true, true
		for _, r := range records {
			next.take(r, &c)
		}
	}
	s.mu.Lock()
	if u.Whole {
		s.view = next
	} else {
		for _, r := range records {
			s.view.take(r, &c)
		}
	}
	s.view.revision = u.Revision
	if c.since = s.due.since; c.since.IsZero() && (c.references || c.catalog || c.pin) {
		c.since = s.now()
	}
	s.due = changes{
		references: c.references || s.due.references, catalog: c.catalog || s.due.catalog, pin: c.pin || s.due.pin, any: c.any || s.due.any, since: c.since,
	}
	s.move()
	s.mu.Unlock()
	wake(s.work)
}

// enforce calls the hooks for what changed, until ctx ends. What changes
// meanwhile waits and comes together in the next call.
func (s *State) enforce(ctx context.Context, ready chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.work:
		}
		s.enforceOnce()
		if ready != nil {
			close(ready)
			ready = nil
		}
	}
}

func (s *State) enforceOnce() {
	s.mu.Lock()
	c, rev := s.due, s.view.revision
	s.due, s.telling = changes{}, c
	var sets []broker.ReferenceSet
	var entries []broker.CatalogEntry
	var unusable []error
	blocked := map[string]error{}
	if c.references {
		sets = slices.Collect(maps.Values(s.view.sets))
		for _, p := range s.view.bad {
			if p.Kind == KindReference {
				unusable = append(unusable, fmt.Errorf("reference set %s: %s", p.Name, p.Reason))
			}
		}
	}
	if c.catalog {
		entries = slices.Collect(maps.Values(s.view.entries))
		for key, patterns := range s.view.blocked {
			for _, p := range patterns {
				blocked[p] = errors.New(s.view.bad[key].Reason)
			}
		}
	}
	pin, pinned := s.view.pin, true
	if _, bad := s.view.bad[policyPin]; bad { // nothing is released; which bundle waits meanwhile does not matter
		pinned = false
	}
	refused := maps.Clone(s.refused)
	s.mu.Unlock()

	if refused == nil {
		refused = map[string]Problem{}
	}
	if c.references {
		slices.SortFunc(sets, func(a, b broker.ReferenceSet) int { return cmp.Compare(a.Name, b.Name) })
		delete(refused, references)
		if err := s.OnReferences(sets, errors.Join(unusable...)); err != nil {
			refused[references] = Problem{Kind: KindReference, Reason: err.Error(), Stops: "all whose policy reads reference values"}
		}
	}
	if c.catalog {
		slices.SortFunc(entries, func(a, b broker.CatalogEntry) int { return cmp.Compare(a.Pattern, b.Pattern) })
		maps.DeleteFunc(refused, func(key string, _ Problem) bool { return strings.HasPrefix(key, catalog) })
		for pattern, err := range s.OnCatalog(entries, blocked) {
			refused[catalogKey(pattern)] = Problem{Kind: KindCatalog, Name: pattern, Reason: err.Error(), Stops: "those of paths that match it"}
		}
	}
	if c.pin && pinned {
		s.OnPolicyPin(pin)
	}
	s.mu.Lock()
	s.logNew(refused)
	s.refused, s.telling, s.inForce = refused, changes{}, rev
	s.move()
	s.mu.Unlock()
	if c.any { // a new machine of a fleet concerns nobody else
		wake(s.tell)
	}
}

// move wakes those who wait for a change to be in force. s.mu is held.
func (s *State) move() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// logNew logs what the hooks refuse and did not before. s.mu is held.
func (s *State) logNew(refused map[string]Problem) {
	for key, p := range refused {
		if s.refused[key] != p {
			s.log.Error("a record of the shared state is not in force", "key", key, "reason", p.Reason, "stops", p.Stops)
		}
	}
}

// tellChanges calls OnChange, at once and then at most every changePeriod.
func (s *State) tellChanges(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.tell:
		}
		s.OnChange()
		select {
		case <-ctx.Done():
			return
		case <-time.After(changePeriod):
		}
	}
}

// Revoked implements broker.Revocations: from memory, and never from an old view.
func (s *State) Revoked(subjects ...broker.Subject) (broker.Subject, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if p := s.stopped(); p != nil {
		return broker.Subject{}, false, errors.New(p.Reason)
	}
	for _, sub := range subjects {
		if _, ok := s.view.revoked[sub.Canonical()]; ok {
			return sub, true, nil
		}
	}
	return broker.Subject{}, false, nil
}

// RevokedMeasurement implements broker.Revocations, likewise.
func (s *State) RevokedMeasurement(digits int) (broker.Subject, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if p := s.stopped(); p != nil {
		return broker.Subject{}, false, errors.New(p.Reason)
	}
	for _, sub := range s.view.digests[digits] {
		return sub, true, nil
	}
	return broker.Subject{}, false, nil
}

// stopped says why nothing is released. s.mu is held.
func (s *State) stopped() *Problem {
	now := s.now()
	if age := now.Sub(s.current); age > MaxStaleness {
		return &Problem{Kind: KindView, Reason: fmt.Sprintf("view of revocations is older than %s", MaxStaleness), Stops: "all", StopsAll: true}
	}
	for _, c := range []changes{s.telling, s.due} {
		if !c.since.IsZero() && now.Sub(c.since) > MaxStaleness {
			return &Problem{Kind: KindView, Reason: fmt.Sprintf("a change of reference sets, catalog or policy pin is not in force after %s", MaxStaleness), Stops: "all", StopsAll: true}
		}
	}
	if s.view.stop != "" {
		p := s.view.bad[s.view.stop]
		p.Reason = fmt.Sprintf("%s %s: %s", p.Kind, p.Name, p.Reason)
		return &p
	}
	return nil
}

// Problems lists what is not in force, those that stop most first. It is empty if all is well.
func (s *State) Problems() []Problem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Problem
	if p := s.stopped(); p != nil && p.Kind == KindView {
		out = append(out, *p)
	}
	out = slices.AppendSeq(out, maps.Values(s.view.bad))
	out = slices.AppendSeq(out, maps.Values(s.refused))
	slices.SortFunc(out, func(a, b Problem) int {
		if a.StopsAll != b.StopsAll {
			if a.StopsAll {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
