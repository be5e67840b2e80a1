package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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
	// ErrTooCostly says that a policy took more steps than Config.EvalSteps. It does so on any machine, however busy.
	ErrTooCostly = errors.New("the policy takes too long")
)

// Config says where policies come from and what they may cost.
type Config struct {
	Dir string // folder with an unpacked bundle, *.tar.gz bundles, or both
	// Keep is a folder of the engine's own for good bundles, so that a pin and the bundle in force survive a restart. Empty: they do not.
	Keep   string
	Limits Limits
	Logger *slog.Logger     // default: none
	Clock  func() time.Time // default: time.Now

	Poll          time.Duration // how often Run looks at Dir; default 500 ms
	EvalSteps     int           // expressions evaluated for one decision; default 500,000, about a quarter of a second; the example policies take 200
	EvalTimeout   time.Duration // for one decision, where a single step takes long; default 5 s
	MaxInputBytes int           // strings and keys of one input; default 1 MiB

	// VerificationKeys by key id. If there are any, only bundles signed by one of them load.
	VerificationKeys map[string]VerificationKey

	// ExtraData becomes data.claviger.config: the operator's switches, such as
	// allow_simulated. It is part of the digest.
	ExtraData map[string]any

	// OnChange is called after the status changed. It must not call the engine.
	OnChange func(Status)

	unvetted bool // tests of evaluation load what vet refuses
}

// Status says what is in force.
type Status struct {
	Digest   string   `json:"digest"`
	Revision string   `json:"revision,omitempty"`
	Packages []string `json:"packages"` // "claviger.release.disks", sorted
	// ReferencesOf is, by the name of a policy, whose reference sets it sees beside its own: names of policies, or "*".
	ReferencesOf map[string][]string `json:"references_of,omitempty"`
	LoadedAt     time.Time           `json:"loaded_at"`
	// Pin is the digest of the bundle that must be in force, or empty: the newest good one is.
	Pin        string      `json:"pin,omitempty"`
	Candidates []Candidate `json:"candidates"` // the other bundles that can be activated, newest first
	// Blocked is why no bundle is in force and nothing is released, or empty.
	Blocked string `json:"blocked,omitempty"`
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

	decisions atomic.Uint64

	keeper keeper

	mu       sync.Mutex     // guards all below, and every change of inForce
	kept     []*compiled    // good bundles, newest last, at most keep and the pinned one
	pin      string         // the digest that must be in force; empty: the newest
	refs     *references    // data.reference
	unusable error          // why there are sets that are not in refs
	config   map[string]any // data.claviger.config
	err      error          // of the last load
	errAt    time.Time
	seen     [32]byte // fingerprint of the folder at the last load
}

// snapshot is a bundle and the reference values, together.
type snapshot struct {
	*compiled
	blocked error                    // if not nil, nothing is decided, and the rest is empty
	stores  map[string]storage.Store // by policy: each sees its own reference sets
	steps   int                      // see Config.EvalSteps
}

const defaultSteps = 500_000

// budget ends an evaluation after so many steps: OPA asks Cancelled before each. Time does
// not count, so that a policy that is good on a quiet machine is good on a busy one.
type budget struct {
	cancelled atomic.Bool
	steps     int // those that are left; only the evaluation touches it
}

// Cancel implements topdown.Cancel.
func (b *budget) Cancel() { b.cancelled.Store(true) }

// Cancelled implements topdown.Cancel.
func (b *budget) Cancelled() bool {
	b.steps--
	return b.steps < 0 || b.cancelled.Load()
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
	if cfg.EvalSteps <= 0 {
		cfg.EvalSteps = defaultSteps
	}
	if cfg.EvalTimeout <= 0 {
		cfg.EvalTimeout = 5 * time.Second
	}
	if cfg.MaxInputBytes <= 0 {
		cfg.MaxInputBytes = 1 << 20
	}
	cfg.Limits = cfg.Limits.withDefaults()
	e := &Engine{cfg: cfg, caps: capabilities(), refs: &references{}, keeper: keeper{cfg.Keep}}
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
	e.block(errors.New("no bundle was loaded yet"))
	e.restore()
	if err := e.load(); err != nil {
		if len(e.kept) == 0 {
			return nil, fmt.Errorf("loading policies from %s: %w", cfg.Dir, err)
		}
		// What was in force before the restart still is, as it would be without the restart.
		cfg.Logger.Error("policy bundle refused, the one before the restart stays in force", "error", err)
		if err := e.apply(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// restore takes over the bundles that were kept. e.mu is held.
func (e *Engine) restore() {
	all, err := e.keeper.all()
	if err != nil {
		e.cfg.Logger.Warn("kept policy bundles cannot be read", "error", err)
	}
	for _, raw := range all {
		c, err := e.compileContained(raw)
		if err != nil { // its key is not trusted any more, or a newer version refuses it
			e.cfg.Logger.Warn("a kept policy bundle is not usable any more", "error", err)
			continue
		}
		e.remember(c)
	}
}

// remember makes c the newest good bundle. e.mu is held.
func (e *Engine) remember(c *compiled) {
	e.kept = slices.DeleteFunc(e.kept, func(k *compiled) bool { return k.digest == c.digest })
	e.kept = append(e.kept, c)
}

// Decide evaluates the policy that in.Resource names. It denies unless allow is
// exactly true, deny is empty, and the policy waives what is left of the library's floor_denials. With an error it denies, too, and the
// decision then says so for the record.
func (e *Engine) Decide(ctx context.Context, in broker.PolicyInput) (d broker.Decision, err error) {
	s, name := e.inForce.Load(), in.Resource.Policy
	defer s.contain(name, &d, &err)
	if s.blocked != nil {
		return s.failed(name, fmt.Errorf("%w: %w", broker.ErrUnavailable, s.blocked))
	}
	input, err := e.conv.convert(in, e.cfg.MaxInputBytes)
	if err != nil {
		return s.failed(name, fmt.Errorf("policy input: %w", err))
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.EvalTimeout)
	defer cancel()
	e.decisions.Add(1)
	return s.decide(ctx, name, input, in.Time, nil)
}

func (s *snapshot) decide(ctx context.Context, name string, input *ast.Term, now time.Time, tracer topdown.QueryTracer) (d broker.Decision, err error) {
	defer s.contain(name, &d, &err)
	d = broker.Decision{Package: pkgName(name), PolicyDigest: s.digest}
	query, ok := s.queries[name]
	if !ok {
		return s.failed(name, fmt.Errorf("%w: %q", ErrUnknownPolicy, clip(name)))
	}
	a, err := s.ask(ctx, s.stores[name], query, input, now, tracer)
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

func (s *snapshot) ask(ctx context.Context, store storage.Store, query ast.Body, input *ast.Term, now time.Time, tracer topdown.QueryTracer) (answer, error) {
	a, _, err := s.counted(ctx, store, query, input, now, tracer)
	return a, err
}

// counted is ask, with the steps that are left.
func (s *snapshot) counted(ctx context.Context, store storage.Store, query ast.Body, input *ast.Term, now time.Time, tracer topdown.QueryTracer) (_ answer, left int, _ error) {
	if err := ctx.Err(); err != nil {
		return answer{}, s.steps, fmt.Errorf("evaluating policy: %w", err)
	}
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return answer{}, s.steps, fmt.Errorf("evaluating policy: %w", err)
	}
	defer store.Abort(ctx, txn)
	stop := &budget{steps: s.steps}
	defer context.AfterFunc(ctx, stop.Cancel)()

	q := topdown.NewQuery(query).
		WithCompiler(s.compiler).
		WithStore(store).
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
		a = answer{allow: only(r["allow"]), deny: only(r["deny"]), obligations: only(r["obligations"]), waived: only(r["waived"]), floor: only(r["unless_waived"])}
		return nil
	})
	if cerr := ctx.Err(); cerr != nil {
		// Late is late, even if an answer came: the time limit must not depend on luck.
		return answer{}, stop.steps, fmt.Errorf("evaluating policy: %w", cerr)
	}
	if stop.steps < 0 {
		return answer{}, stop.steps, fmt.Errorf("evaluating policy: %w: more than %d steps", ErrTooCostly, s.steps)
	}
	if err != nil {
		return answer{}, stop.steps, fmt.Errorf("evaluating policy: %w", err)
	}
	if n != 1 {
		return answer{}, stop.steps, fmt.Errorf("evaluating policy: %d answers", n)
	}
	return a, stop.steps, nil
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
	var last [32]byte
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
		// Files that are copied one by one are loaded once all are there: nothing changed between two looks.
		if changed && (err != nil || fp == last) {
			_ = e.Reload(ctx) // reported in Status and in the log
		}
		last = fp
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
	case after.Blocked != "" && after.Blocked != before.Blocked:
		e.cfg.Logger.Error("no policy is in force, nothing is released", "error", after.Blocked)
	case after.Digest != before.Digest:
		e.cfg.Logger.Info("policy bundle in force", "digest", after.Digest, "revision", after.Revision, "pin", after.Pin)
	case len(after.Candidates) == len(before.Candidates) && after.Pin == before.Pin && after.Error == before.Error &&
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

func (e *Engine) loadBundle() error {
	r := reader{limits: e.cfg.Limits}
	raw, err := r.folder(e.cfg.Dir)
	if err != nil {
		return err
	}
	if fp, err := fingerprint(e.cfg.Dir); err != nil || fp != e.seen {
		e.seen = [32]byte{} // look again
		return errors.Join(errors.New("the folder changed while it was read"), err)
	}
	c, err := e.compileContained(raw)
	if err != nil {
		return err
	}
	if err := e.keeper.save(c.digest, raw); err != nil {
		// It is in force all the same, but it cannot be pinned: see Pinnable.
		e.cfg.Logger.Error("policy bundle would not survive a restart", "digest", c.digest, "error", err)
	}
	e.remember(c) // a bundle that came back counts as the newest
	if err := e.apply(); err != nil {
		return err
	}
	e.evict()
	return nil
}

// compileContained is compile; a panic of OPA is an error.
func (e *Engine) compileContained(raw []rawBundle) (c *compiled, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("loading bundle: panic: %v", p)
		}
	}()
	s, err := gather(raw, e.keys, e.caps, e.cfg.Limits)
	if err != nil {
		return nil, err
	}
	return compileSources(s, e.lib, e.caps, e.config, e.cfg.Clock(), !e.cfg.unvetted)
}

// apply puts in force what should be: the pinned bundle, or else the newest. If the
// pinned one is not here, none is, and nothing is released. e.mu is held.
func (e *Engine) apply() error {
	if len(e.kept) == 0 {
		return nil // blocked already
	}
	want := e.kept[len(e.kept)-1]
	if e.pin != "" {
		i := slices.IndexFunc(e.kept, func(c *compiled) bool { return c.digest == e.pin })
		if i < 0 {
			e.block(fmt.Errorf("policy %s is pinned, and this broker does not have it: nothing is released until it is in %s, or another one is activated", clip(e.pin), e.cfg.Dir))
			return nil
		}
		want = e.kept[i]
	}
	return e.enforce(want)
}

// block puts nothing in force. e.mu is held.
func (e *Engine) block(why error) { e.inForce.Store(&snapshot{compiled: &compiled{}, blocked: why}) }

// evict drops the oldest beyond keep, but never the pinned one. e.mu is held.
func (e *Engine) evict() {
	for len(e.kept) > keep {
		i := 0
		if e.kept[0].digest == e.pin {
			i = 1
		}
		e.keeper.drop(e.kept[i].digest)
		e.kept = slices.Delete(e.kept, i, i+1)
	}
}

// enforce builds the store and swaps the snapshot. e.mu is held.
func (e *Engine) enforce(c *compiled) error {
	stores, err := newStores(c, e.refs, e.config)
	if err != nil {
		return err
	}
	if e.unusable != nil {
		for name, s := range stores {
			stores[name] = withoutReferences{s, fmt.Errorf("%w: reference values: %w", broker.ErrUnavailable, e.unusable)}
		}
	}
	e.inForce.Store(&snapshot{compiled: c, stores: stores, steps: e.cfg.EvalSteps})
	return nil
}

// withoutReferences is a store whose reference values must not be relied on: what reads them fails, and nothing else.
type withoutReferences struct {
	storage.Store
	why error
}

func (s withoutReferences) Read(ctx context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	if len(path) == 0 || path[0] == "reference" || path[0] == "reference_index" {
		return nil, s.why
	}
	return s.Store.Read(ctx, txn, path)
}

// newStores makes a store for each policy.
func newStores(c *compiled, refs *references, config map[string]any) (map[string]storage.Store, error) {
	docs := refs.forPolicies(c)
	byDoc, out := map[seen]storage.Store{}, make(map[string]storage.Store, len(c.names))
	for _, name := range c.names {
		s, ok := byDoc[docs[name]]
		if !ok {
			var err error
			if s, err = newStore(c.data, docs[name], config); err != nil {
				return nil, err
			}
			byDoc[docs[name]] = s
		}
		out[name] = s
	}
	return out, nil
}

// newStore makes a store that nobody writes to again, so that a decision under
// way keeps what it started with. Values are kept in Rego's form: reading
// them costs no conversion.
func newStore(data map[string]any, refs seen, config map[string]any) (storage.Store, error) {
	root := maps.Clone(data)
	if root == nil {
		root = map[string]any{}
	}
	root["claviger"] = map[string]any{"config": config}
	root["reference"] = map[string]any{}
	// (Not under claviger, where the rules of the library are: OPA finds it sooner here.)
	if refs.doc != nil {
		root["reference"], root["reference_index"] = refs.doc, refs.index
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

// SetReferences replaces data.reference for all decisions that start afterwards.
// unusable, if not nil, says why there are sets that are not among these: until
// the next call every decision that comes to read reference values is a denial, because what
// it is not shown might have forbidden what it would allow. An error has the same effect.
func (e *Engine) SetReferences(sets []broker.ReferenceSet, unusable error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	refs, err := newReferences(sets, e.refs)
	if err == nil {
		e.refs = refs
	}
	e.unusable = errors.Join(unusable, err)
	return errors.Join(err, e.apply())
}

// SetVerificationKeys changes whose signatures count, for all bundles: what a
// restart with these keys would not put in force is in force no more.
func (e *Engine) SetVerificationKeys(keys map[string]VerificationKey) error {
	vc, err := verificationConfig(keys)
	if err != nil {
		return err
	}
	e.mu.Lock()
	before := e.status()
	e.keys, e.kept = vc, nil
	e.restore()
	err = e.load()
	switch {
	case len(e.kept) == 0:
		e.block(fmt.Errorf("no bundle is signed by a key that counts: %w", err))
		err = nil
	case err != nil: // told in Status; one that was kept takes its place
		err = e.apply()
	}
	after := e.status()
	e.mu.Unlock()
	e.changed(before, after)
	return err
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

// Pin has the engine decide by this bundle only, whatever the folder holds; "" has it
// follow the folder. A bundle that is not here blocks all decisions until it is: in
// its place an older, or a newer, one might release more.
func (e *Engine) Pin(digest string) error {
	e.mu.Lock()
	before := e.status()
	e.pin = digest
	err := e.apply()
	if err == nil {
		e.evict()
	}
	after := e.status()
	e.mu.Unlock()
	e.changed(before, after)
	return err
}

// Pinnable says why a pin of the digest could not be honoured by this engine, now and after a restart.
func (e *Engine) Pinnable(digest string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.ContainsFunc(e.kept, func(c *compiled) bool { return c.digest == digest }) {
		return fmt.Errorf("%w: %s", ErrUnknownDigest, clip(digest))
	}
	if e.keeper.dir != "" && !e.keeper.has(digest) {
		return fmt.Errorf("bundle %s could not be written to %s, so it would be gone after a restart", digest, e.keeper.dir)
	}
	return nil
}

// Decisions counts those that a policy was asked for, errors included.
func (e *Engine) Decisions() uint64 { return e.decisions.Load() }

// Status reports what is in force.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status()
}

func (e *Engine) status() Status {
	cur := e.inForce.Load()
	s := Status{Digest: cur.digest, Revision: cur.revision, LoadedAt: cur.loadedAt, Pin: e.pin, Candidates: []Candidate{}}
	if cur.blocked != nil {
		s.Blocked = cur.blocked.Error()
	}
	for _, n := range cur.names {
		s.Packages = append(s.Packages, pkgName(n))
		if others := cur.others[n]; len(others) > 0 {
			if s.ReferencesOf == nil {
				s.ReferencesOf = map[string][]string{}
			}
			s.ReferencesOf[n] = slices.Clone(others)
		}
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
