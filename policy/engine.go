package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/claviger/claviger/broker"
)

// keep is how many good bundles stay in memory, to go back to.
const keep = 4

// Errors of the engine.
var (
	ErrUnknownPolicy = errors.New("no such policy")
	ErrUnknownDigest = errors.New("no bundle with this digest is kept")
)

// Config says where policies come from and what they may cost.
type Config struct {
	Dir    string // folder with an unpacked bundle, *.tar.gz bundles, or both
	Limits Limits
	Logger *slog.Logger     // default: none
	Clock  func() time.Time // default: time.Now

	Poll          time.Duration // how often Run looks at Dir; default 500 ms
	EvalTimeout   time.Duration // for one decision; default 200 ms
	MaxInputBytes int           // strings and keys of one input; default 1 MiB

	// AskAlways shows a policy the whole input, and remembers no decision.
	AskAlways bool

	// VerificationKeys by key id. If there are any, only bundles signed by one of them load.
	VerificationKeys map[string]VerificationKey

	// ExtraData becomes data.claviger.config: the operator's switches, such as
	// allow_simulated. It is part of the digest.
	ExtraData map[string]any

	// OnChange is called after the status changed. It must not call the engine.
	OnChange func(Status)
}

// Status says what is in force.
type Status struct {
	Digest     string      `json:"digest"`
	Revision   string      `json:"revision,omitempty"`
	Packages   []string    `json:"packages"` // "claviger.release.disks", sorted
	LoadedAt   time.Time   `json:"loaded_at"`
	Pinned     bool        `json:"pinned"`
	Candidates []Candidate `json:"candidates"` // the other bundles that can be activated, newest first
	// Error is why the folder's present content is not in force, or empty.
	Error   string    `json:"error,omitempty"`
	ErrorAt time.Time `json:"error_at,omitzero"`
}

// Candidate is a good bundle that is not in force.
type Candidate struct {
	Digest   string    `json:"digest"`
	Revision string    `json:"revision,omitempty"`
	LoadedAt time.Time `json:"loaded_at"`
}

// Engine implements broker.Policy. All methods are safe for concurrent use.
type Engine struct {
	cfg  Config
	caps *ast.Capabilities
	keys *bundle.VerificationConfig
	lib  map[string]*ast.Module
	conv converter

	inForce atomic.Pointer[snapshot]

	anew, recalled atomic.Uint64 // decisions

	mu     sync.Mutex     // guards all below, and every change of inForce
	kept   []*compiled    // good bundles, newest last, at most keep
	pinned bool           // Activate was called
	refs   map[string]any // data.reference
	change []time.Time    // when sets in it begin and cease to be valid
	config map[string]any // data.claviger.config
	err    error          // of the last load
	errAt  time.Time
	seen   [32]byte // fingerprint of the folder at the last load
}

// snapshot is a bundle and the reference values, together.
type snapshot struct {
	*compiled
	store   storage.Store
	changes []time.Time // of the validity of reference sets
	memory  memory
}

var _ broker.Policy = (*Engine)(nil)

// New loads cfg.Dir. With nothing good to put in force it fails.
func New(cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 500 * time.Millisecond
	}
	if cfg.EvalTimeout <= 0 {
		cfg.EvalTimeout = 200 * time.Millisecond
	}
	if cfg.MaxInputBytes <= 0 {
		cfg.MaxInputBytes = 1 << 20
	}
	cfg.Limits = cfg.Limits.withDefaults()
	e := &Engine{cfg: cfg, caps: capabilities(), refs: map[string]any{}}
	var err error
	if e.config, err = document(cfg.ExtraData); err != nil {
		return nil, fmt.Errorf("policy configuration: %w", err)
	}
	if e.keys, err = verificationConfig(cfg.VerificationKeys); err != nil {
		return nil, err
	}
	if e.lib, err = loadLib(e.caps); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.load(); err != nil {
		return nil, fmt.Errorf("loading policies from %s: %w", cfg.Dir, err)
	}
	return e, nil
}

// Decide evaluates the policy that in.Resource names. It denies unless allow is
// exactly true and deny is empty. With an error it denies, too, and the
// decision then says so for the record.
func (e *Engine) Decide(ctx context.Context, in broker.PolicyInput) (d broker.Decision, err error) {
	s, name := e.inForce.Load(), in.Resource.Policy
	defer s.contain(name, &d, &err)
	v := s.views[name]
	if e.cfg.AskAlways {
		v = view{clock: true}
	}
	if !v.clock {
		in.Time = since(s.changes, in.Time)
	}
	shown, err := e.conv.convert(in, v.input, e.cfg.MaxInputBytes)
	if err != nil {
		return s.failed(name, fmt.Errorf("policy input: %w", err))
	}
	if !v.clock {
		if d, ok := s.memory.recall(name, shown); ok {
			e.recalled.Add(1)
			return d, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.EvalTimeout)
	defer cancel()
	e.anew.Add(1)
	d, err = s.decide(ctx, name, shown, in.Time, nil)
	if err == nil && !v.clock {
		s.memory.keep(name, shown, d)
	}
	return d, err
}

func (s *snapshot) decide(ctx context.Context, name string, input *ast.Term, now time.Time, tracer topdown.QueryTracer) (d broker.Decision, err error) {
	defer s.contain(name, &d, &err)
	d = broker.Decision{Package: pkgName(name), PolicyDigest: s.digest}
	query, ok := s.queries[name]
	if !ok {
		return s.failed(name, fmt.Errorf("%w: %q", ErrUnknownPolicy, clip(name)))
	}
	a, err := s.ask(ctx, query, input, now, tracer)
	if err != nil {
		return s.failed(name, err)
	}
	if err := a.apply(&d); err != nil {
		return s.failed(name, fmt.Errorf("policy %s: %w", name, err))
	}
	return d, nil
}

// contain is deferred: OPA runs on what strangers wrote, and its panic denies one request and no more.
func (s *snapshot) contain(name string, d *broker.Decision, err *error) {
	if p := recover(); p != nil {
		*d, *err = s.failed(name, fmt.Errorf("evaluating policy: panic: %v", p))
	}
}

// failed is the denial that goes with an error.
func (s *snapshot) failed(name string, err error) (broker.Decision, error) {
	return broker.Decision{
		Package:      clip(pkgName(name)),
		PolicyDigest: s.digest,
		Reasons:      []broker.DecisionReason{{Rule: RulePolicyError, Message: clip(err.Error())}},
	}, err
}

func pkgName(policy string) string { return "claviger.release." + policy }

func (s *snapshot) ask(ctx context.Context, query ast.Body, input *ast.Term, now time.Time, tracer topdown.QueryTracer) (answer, error) {
	if err := ctx.Err(); err != nil {
		return answer{}, fmt.Errorf("evaluating policy: %w", err)
	}
	txn, err := s.store.NewTransaction(ctx)
	if err != nil {
		return answer{}, fmt.Errorf("evaluating policy: %w", err)
	}
	defer s.store.Abort(ctx, txn)
	stop := topdown.NewCancel()
	defer context.AfterFunc(ctx, stop.Cancel)()

	q := topdown.NewQuery(query).
		WithCompiler(s.compiler).
		WithStore(s.store).
		WithTransaction(txn).
		WithInput(input).
		WithCancel(stop).
		WithTime(now).
		WithMetrics(metrics.NoOp()).
		WithSeed(noSeed{}).
		WithStrictBuiltinErrors(true)
	if tracer != nil {
		q = q.WithQueryTracer(tracer)
	}
	var a answer
	n := 0
	err = q.Iter(ctx, func(r topdown.QueryResult) error {
		n++
		a = answer{allow: only(r["allow"]), deny: only(r["deny"]), obligations: only(r["obligations"])}
		return nil
	})
	if cerr := ctx.Err(); cerr != nil {
		// Late is late, even if an answer came: the time limit must not depend on luck.
		return answer{}, fmt.Errorf("evaluating policy: %w", cerr)
	}
	if err != nil {
		return answer{}, fmt.Errorf("evaluating policy: %w", err)
	}
	if n != 1 {
		return answer{}, fmt.Errorf("evaluating policy: %d answers", n)
	}
	return a, nil
}

// only is the single element of the array that compileQuery wraps an answer in.
func only(t *ast.Term) ast.Value {
	if t == nil {
		return nil
	}
	arr, ok := t.Value.(*ast.Array)
	if !ok || arr.Len() != 1 {
		return nil
	}
	return arr.Elem(0).Value
}

// noSeed is the randomness that policies get: none of them may ask.
type noSeed struct{}

func (noSeed) Read([]byte) (int, error) { return 0, errors.New("policies have no randomness") }

// Run looks at the folder until ctx ends, and loads what changed.
func (e *Engine) Run(ctx context.Context) error {
	t := time.NewTicker(e.cfg.Poll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		// A folder that cannot be listed is reported by load.
		fp, err := fingerprint(e.cfg.Dir)
		e.mu.Lock()
		changed := err != nil || fp != e.seen
		e.mu.Unlock()
		if changed {
			_ = e.Reload(ctx) // reported in Status and in the log
		}
	}
}

// Reload loads the folder now. On an error the bundle in force stays.
func (e *Engine) Reload(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	before := e.status()
	err := e.load()
	after := e.status()
	e.mu.Unlock()
	e.changed(before, after)
	return err
}

// changed logs what is news, once, and tells OnChange.
func (e *Engine) changed(before, after Status) {
	switch {
	case after.Error != "" && after.Error != before.Error:
		e.cfg.Logger.Error("policy bundle refused, the old one stays in force", "error", after.Error, "digest", after.Digest)
	case after.Digest != before.Digest:
		e.cfg.Logger.Info("policy bundle in force", "digest", after.Digest, "revision", after.Revision, "pinned", after.Pinned)
	case len(after.Candidates) == len(before.Candidates) && after.Pinned == before.Pinned && after.Error == before.Error &&
		slices.Equal(after.Candidates, before.Candidates):
		return
	}
	if e.cfg.OnChange != nil {
		e.cfg.OnChange(after)
	}
}

// load reads, compiles and, unless pinned, puts in force. e.mu is held.
func (e *Engine) load() error {
	fp, err := fingerprint(e.cfg.Dir) // before reading: a change meanwhile is then seen next time
	if err == nil {
		e.seen = fp
		err = e.loadBundle()
	}
	if err != nil {
		if e.err == nil || e.err.Error() != err.Error() {
			e.errAt = e.cfg.Clock()
		}
		e.err = err
		return err
	}
	e.err, e.errAt = nil, time.Time{}
	return nil
}

func (e *Engine) loadBundle() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("loading bundle: panic: %v", p)
		}
	}()
	r := reader{limits: e.cfg.Limits}
	raw, err := r.folder(e.cfg.Dir)
	if err != nil {
		return err
	}
	c, err := e.compile(raw)
	if err != nil {
		return err
	}
	// A bundle that came back counts as the newest.
	e.kept = slices.DeleteFunc(e.kept, func(k *compiled) bool { return k.digest == c.digest })
	e.kept = append(e.kept, c)
	if cur := e.inForce.Load(); e.pinned && cur != nil {
		if cur.digest == c.digest {
			return e.enforce(c)
		}
	} else if err := e.enforce(c); err != nil {
		return err
	}
	e.evict()
	return nil
}

func (e *Engine) compile(raw []rawBundle) (*compiled, error) {
	s, err := gather(raw, e.keys, e.caps, e.cfg.Limits)
	if err != nil {
		return nil, err
	}
	return compileSources(s, e.lib, e.caps, e.config, e.cfg.Clock())
}

// evict drops the oldest beyond keep, but never the one in force.
func (e *Engine) evict() {
	cur := e.inForce.Load()
	for len(e.kept) > keep {
		i := 0
		if e.kept[0].digest == cur.digest {
			i = 1
		}
		e.kept = slices.Delete(e.kept, i, i+1)
	}
}

// enforce builds the store and swaps the snapshot. e.mu is held.
func (e *Engine) enforce(c *compiled) error {
	store, err := newStore(c.data, e.refs, e.config)
	if err != nil {
		return err
	}
	e.inForce.Store(&snapshot{compiled: c, store: store, changes: e.change})
	return nil
}

// newStore makes a store that nobody writes to again, so that a decision under
// way keeps what it started with. Values are kept in Rego's form: reading
// them costs no conversion.
func newStore(data, refs, config map[string]any) (storage.Store, error) {
	root := maps.Clone(data)
	if root == nil {
		root = map[string]any{}
	}
	root["claviger"] = map[string]any{"config": config}
	root["reference"] = refs
	// (Not under claviger, where the rules of the library are: OPA finds it sooner here.)
	if len(refs) > 0 {
		root["reference_index"] = index(refs)
	}
	return storeOf(root)
}

func storeOf(root map[string]any) (storage.Store, error) {
	ctx := context.Background()
	st := inmem.NewWithOpts(inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(true))
	txn, err := st.NewTransaction(ctx, storage.WriteParams)
	if err != nil {
		return nil, fmt.Errorf("policy data: %w", err)
	}
	if err := st.Write(ctx, txn, storage.AddOp, storage.RootPath, root); err != nil {
		st.Abort(ctx, txn)
		return nil, fmt.Errorf("policy data: %w", err)
	}
	if err := st.Commit(ctx, txn); err != nil {
		return nil, fmt.Errorf("policy data: %w", err)
	}
	return st, nil
}

// index is data.reference_index: by type, claim and value, the names of the
// reference sets that list it, so that a match among thousands of sets costs what
// it costs among ten. It only proposes: reference.rego holds each candidate
// against data.reference itself. Without an index (tests that put their own
// data.reference in place) the library looks at all sets.
func index(refs map[string]any) map[string]any {
	out := map[string]any{}
	sub := func(m map[string]any, key string) map[string]any {
		if _, ok := m[key]; !ok {
			m[key] = map[string]any{}
		}
		return m[key].(map[string]any)
	}
	for _, name := range slices.Sorted(maps.Keys(refs)) {
		set := refs[name].(map[string]any)
		values, ok := set["values"].(map[string]any)
		if !ok { // null: a set without values
			continue
		}
		for claim, list := range values {
			listed, ok := list.([]any)
			if !ok {
				continue
			}
			byValue := sub(sub(out, set["type"].(string)), claim)
			for _, v := range listed {
				names, _ := byValue[v.(string)].([]any)
				byValue[v.(string)] = append(names, name)
			}
		}
	}
	return out
}

// SetReferences replaces data.reference for all decisions that start afterwards.
func (e *Engine) SetReferences(sets []broker.ReferenceSet) error {
	refs, err := referenceData(sets)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	old, change := e.refs, e.change
	e.refs, e.change = refs, changes(sets)
	if err := e.enforce(e.inForce.Load().compiled); err != nil {
		e.refs, e.change = old, change
		return err
	}
	return nil
}

var setName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,127}$`)

func referenceData(sets []broker.ReferenceSet) (map[string]any, error) {
	byName := make(map[string]any, len(sets))
	for _, s := range sets {
		if !setName.MatchString(s.Name) {
			return nil, fmt.Errorf("reference set %q: bad name", clip(s.Name))
		}
		if _, ok := byName[s.Name]; ok {
			return nil, fmt.Errorf("reference set %q occurs twice", s.Name)
		}
		switch s.State {
		case broker.ReferenceCanary, broker.ReferenceActive, broker.ReferenceRetiring, broker.ReferenceRetired:
		default:
			return nil, fmt.Errorf("reference set %q: unknown state %q", s.Name, clip(string(s.State)))
		}
		for _, t := range []time.Time{s.NotBefore, s.NotAfter} {
			// Rego counts nanoseconds in 64 bits; an error there would deny every request.
			if !t.IsZero() && (t.Year() < 1970 || t.Year() > 2200) {
				return nil, fmt.Errorf("reference set %q: validity in the year %d", s.Name, t.Year())
			}
		}
		byName[s.Name] = s
	}
	return document(byName)
}

// document round-trips m through JSON, so that stores hold plain values.
func document(m map[string]any) (map[string]any, error) {
	if len(m) == 0 {
		return map[string]any{}, nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := util.NewJSONDecoder(bytes.NewReader(b)).Decode(&out); err != nil {
		return nil, err
	}
	return out, nil
}

// Activate puts a kept bundle in force and pins it: what is loaded later is
// only a candidate, until Unpin or another Activate.
func (e *Engine) Activate(digest string) error {
	e.mu.Lock()
	before := e.status()
	err := e.activate(digest)
	after := e.status()
	e.mu.Unlock()
	e.changed(before, after)
	return err
}

func (e *Engine) activate(digest string) error {
	i := slices.IndexFunc(e.kept, func(c *compiled) bool { return c.digest == digest })
	if i < 0 {
		return fmt.Errorf("activating %q: %w", clip(digest), ErrUnknownDigest)
	}
	if err := e.enforce(e.kept[i]); err != nil {
		return err
	}
	e.pinned = true
	return nil
}

// Unpin puts the newest good bundle in force and follows the folder again.
func (e *Engine) Unpin() error {
	e.mu.Lock()
	before := e.status()
	e.pinned = false
	err := e.enforce(e.kept[len(e.kept)-1])
	e.evict()
	after := e.status()
	e.mu.Unlock()
	e.changed(before, after)
	return err
}

// Decisions counts those that a policy was asked for, errors included, and those that were remembered.
func (e *Engine) Decisions() (anew, remembered uint64) { return e.anew.Load(), e.recalled.Load() }

// Status reports what is in force.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status()
}

func (e *Engine) status() Status {
	cur := e.inForce.Load()
	s := Status{Digest: cur.digest, Revision: cur.revision, LoadedAt: cur.loadedAt, Pinned: e.pinned, Candidates: []Candidate{}}
	for _, n := range cur.names {
		s.Packages = append(s.Packages, pkgName(n))
	}
	for _, c := range slices.Backward(e.kept) {
		if c.digest != cur.digest {
			s.Candidates = append(s.Candidates, Candidate{c.digest, c.revision, c.loadedAt})
		}
	}
	if e.err != nil {
		s.Error, s.ErrorAt = clip(e.err.Error()), e.errAt
	}
	return s
}
