// Package collateral finds certificates, CRLs and TCB information: in a signed
// offline bundle, a local folder, a cache, or at the vendor's service (or a
// mirror), in that order. It knows no vendor's key: a Checker says whether a
// piece is genuine before it is compared with others, kept or served, and the
// verifiers look at its signature once more when they use it.
package collateral

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/internal/durable"
)

// Age limits a kind of collateral.
type Age struct {
	Refresh time.Duration // older: still served, and fetched again in the background
	Max     time.Duration // older: not served
}

// DefaultAges are those of DESIGN §4, per kind.
func DefaultAges() map[attest.CollateralKind]Age {
	day := 24 * time.Hour
	return map[attest.CollateralKind]Age{
		attest.SNPChain:     {30 * day, 400 * day},
		attest.SNPVCEK:      {90 * day, 400 * day}, // never changes for a chip and TCB
		attest.SNPCRL:       {day, 30 * day},
		attest.TDXTCBInfo:   {day, 30 * day},
		attest.SGXTCBInfo:   {day, 30 * day},
		attest.TDXQEID:      {day, 30 * day},
		attest.SGXQEID:      {day, 30 * day},
		attest.PCKCRL:       {day, 30 * day},
		attest.IntelRootCRL: {day, 90 * day},
	}
}

// Checker says whether a piece is the one that its reference names, signed by
// its authority, up to a root that the broker is configured with. It is not
// about dates, which say which of two pieces is the newer, nor about what a
// piece says of anybody: a list that revokes a root is as good as another.
type Checker interface {
	// CheckCollateral is called once for what a service answers, and for what
	// lies in a file as often as the file changes, and now and then. c has the
	// issuers and lists that it may need. An error of ReasonCollateralInvalid
	// says that the piece is not genuine, any other that it could not be told.
	// It is safe for concurrent use.
	CheckCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) error
}

// Config of a Source. Empty paths and URLs switch the source they name off.
type Config struct {
	Checker  Checker
	Bundle   *Bundle
	Folder   string
	CacheDir string
	Services Services
	Client   *http.Client // nil: one with a 10 s timeout
	Ages     map[attest.CollateralKind]Age
	Logger   *slog.Logger
	Now      func() time.Time
}

const (
	maxItems = 16384 // in memory
	// maxChips bounds the certificates of chips on disk: of one chip that exists,
	// anybody can ask for as many as there are versions of firmware.
	maxChips = 65536
	// retryAfter keeps a failing service from being asked again at once; it doubles up to retryMax.
	retryAfter = 30 * time.Second
	retryMax   = 5 * time.Minute
	// maxQuiet bounds how long a service can have itself left alone (Retry-After).
	maxQuiet     = time.Hour
	fetchTimeout = 10 * time.Second
)

// Source is an attest.Collateral.
type Source struct {
	cfg     Config
	bundle  atomic.Pointer[Bundle]
	flight  singleflight.Group
	limiter *rate.Limiter // of requests to services
	chips   *rate.Limiter // of those for VCEKs: who makes up chip ids must not keep CRLs from being fetched

	mu        sync.Mutex
	items     *simplelru.LRU[attest.CollateralRef, piece]   // guarded by mu
	files     *simplelru.LRU[origin, verdict]               // guarded by mu
	fails     *simplelru.LRU[attest.CollateralRef, failure] // guarded by mu
	quiet     map[service]time.Time                         // guarded by mu; until when a service wants to be left alone
	worse     int                                           // guarded by mu
	forged    int                                           // guarded by mu
	chipFiles int                                           // guarded by mu; certificates of chips in the cache on disk
}

// origin is where a piece lies: in the bundle, the folder or the cache on disk.
type origin struct {
	ref    attest.CollateralRef
	source string
}

// verdict is what the Checker said of the bytes there. A file is read for each
// request, and checked when it has changed.
type verdict struct {
	piece piece
	err   error
	until time.Time
}

func (v verdict) about(it attest.CollateralItem) bool {
	return bytes.Equal(v.piece.Data, it.Data) && bytes.Equal(v.piece.IssuerChain, it.IssuerChain)
}

// service is whom a piece is asked of. Chips are apart, for the reason above.
type service struct {
	base  string
	chips bool
}

type failure struct {
	until time.Time
	n     int // in a row
	err   error
}

// New makes a source.
func New(cfg Config) (*Source, error) {
	ages := DefaultAges()
	maps.Copy(ages, cfg.Ages)
	for k, a := range ages {
		if a.Refresh <= 0 || a.Max < a.Refresh {
			return nil, fmt.Errorf("collateral age of %s: want 0 < refresh (%s) <= max (%s)", k, a.Refresh, a.Max)
		}
	}
	cfg.Ages = ages
	if cfg.Checker == nil {
		return nil, errors.New("collateral: no checker")
	}
	if cfg.Client == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxResponseHeaderBytes = 256 << 10 // issuers come in headers, of 4 KiB
		cfg.Client = &http.Client{Timeout: fetchTimeout, Transport: transport}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CacheDir != "" {
		if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
			return nil, fmt.Errorf("make collateral cache: %w", err)
		}
	}
	s := &Source{cfg: cfg, limiter: rate.NewLimiter(10, 50), chips: rate.NewLimiter(10, 50), quiet: map[service]time.Time{}}
	s.bundle.Store(cfg.Bundle)
	if cfg.CacheDir != "" {
		var err error
		if s.chipFiles, err = chipsOnDisk(cfg.CacheDir); err != nil {
			return nil, fmt.Errorf("read collateral cache: %w", err)
		}
	}
	s.items, _ = simplelru.NewLRU[attest.CollateralRef, piece](maxItems, nil) // an error only for a size below 1
	s.files, _ = simplelru.NewLRU[origin, verdict](maxItems, nil)
	s.fails, _ = simplelru.NewLRU[attest.CollateralRef, failure](maxItems, nil)
	return s, nil
}

// Worse is how many answers of services were older than what was there already, or out of date.
func (s *Source) Worse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.worse
}

// Forged is how many pieces, of services or in files, were not genuine.
func (s *Source) Forged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forged
}

// validKey keeps a guest-influenced key from naming anything but a file below the kind's folder.
var validKey = regexp.MustCompile(`^([a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*)?$`)

// Get implements attest.Collateral.
func (s *Source) Get(ctx context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	age, ok := s.cfg.Ages[ref.Kind]
	if !ok || !validKey.MatchString(ref.Key) || len(ref.Key) > 256 {
		return attest.CollateralItem{}, attest.Errorf("collateral", attest.ReasonUnsupported, "no collateral is named %s %q", ref.Kind, ref.Key)
	}
	best, why := s.best(ref)
	now := s.cfg.Now()
	switch {
	case best == nil:
	case best.edition.expired(now): // as good as none, if there is a better one
	case best.Source == "bundle" || best.Source == "folder" || s.age(*best) < age.Refresh:
		return best.CollateralItem, nil
	default:
		best.Stale = s.refreshInBackground(ref)
		return best.CollateralItem, nil
	}
	it, err := s.fetch(ctx, ref)
	if err == nil {
		return it, nil
	}
	if best != nil {
		best.Stale = !errors.Is(err, errNoService)
		return best.CollateralItem, nil
	}
	return attest.CollateralItem{}, why.with(ref, err)
}

// atHand is a Source that asks no service: what lies in a file is checked with
// what is there, so that no request has to wait for it.
type atHand struct{ *Source }

func (s atHand) Get(_ context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	best, why := s.best(ref)
	if best == nil {
		return attest.CollateralItem{}, why.with(ref, errors.New("no other is at hand"))
	}
	return best.CollateralItem, nil
}

// absence is why none of the pieces that are there can be used.
type absence struct {
	tooOld  []string
	max     time.Duration
	refused error
}

// with adds why none could be fetched.
func (a absence) with(ref attest.CollateralRef, err error) error {
	reason := attest.ReasonCollateralMissing
	if a.refused != nil {
		err = fmt.Errorf("%w, and: %w", a.refused, err)
	}
	switch {
	case len(a.tooOld) > 0:
		reason = attest.ReasonCollateralExpired
		err = fmt.Errorf("at most %s old is accepted, %s, and: %w", a.max, strings.Join(a.tooOld, ", "), err)
	case errors.Is(err, errForged):
		reason = attest.ReasonCollateralInvalid
	}
	return attest.Errorf("collateral", reason, "%s: %w", strings.TrimSpace(string(ref.Kind)+" "+ref.Key), err)
}

// best is the newest genuine piece among those that are young enough to be used;
// of equals the first, in the order bundle, folder, cache.
func (s *Source) best(ref attest.CollateralRef) (best *piece, why absence) {
	candidates, refused := s.operators(ref)
	why.refused = refused
	p, err := s.remembered(ref)
	if err != nil {
		why.refused = err
	} else if p != nil {
		candidates = append(candidates, *p)
	}
	why.max = s.cfg.Ages[ref.Kind].Max
	now := s.cfg.Now()
	for _, it := range candidates {
		switch {
		case s.age(it) >= why.max:
			why.tooOld = append(why.tooOld, fmt.Sprintf("%s has one of %s ago", it.Source, s.age(it).Round(time.Minute)))
		case best == nil, best.edition.worse(it.edition, now) != nil && it.edition.worse(best.edition, now) == nil:
			best = &it
		}
	}
	return best, why
}

func (s *Source) age(it piece) time.Duration { return s.cfg.Now().Sub(it.FetchedAt) }

// operators are the genuine pieces among those that the operator keeps. refused says why one is not.
func (s *Source) operators(ref attest.CollateralRef) (found []piece, refused error) {
	for _, it := range s.local(ref) {
		p, err := s.checked(ref, it)
		if err != nil {
			refused = err
			continue
		}
		found = append(found, p)
	}
	return found, refused
}

// SetBundle replaces Config.Bundle. What is newer elsewhere stays in use.
func (s *Source) SetBundle(b *Bundle) { s.bundle.Store(b) }

// local looks in the bundle and the folder.
func (s *Source) local(ref attest.CollateralRef) (found []attest.CollateralItem) {
	if b := s.bundle.Load(); b != nil {
		if it, ok := b.items[fileName(ref)]; ok {
			found = append(found, it)
		}
	}
	if s.cfg.Folder == "" {
		return found
	}
	path := filepath.Join(s.cfg.Folder, fileName(ref))
	data, err := readBounded(path)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			s.cfg.Logger.Warn("cannot read collateral", "path", path, "error", err)
		}
		return found
	}
	info, err := os.Stat(path)
	if err != nil {
		return found
	}
	chain, _ := readBounded(path + chainSuffix)
	return append(found, attest.CollateralItem{Data: data, IssuerChain: chain, FetchedAt: info.ModTime(), Source: "folder"})
}

// check makes a piece of an item that is genuine. c has what else is needed for that.
func (s *Source) check(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) (p piece, err error) {
	defer func() {
		// A bug in a parser must not stop the broker.
		if r := recover(); r != nil {
			p, err = piece{}, fmt.Errorf("from the %s: panic: %v", it.Source, r)
		}
	}()
	if err := s.cfg.Checker.CheckCollateral(ctx, ref, it, c); err != nil {
		reason := attest.ReasonOf(err)
		if e, ok := errors.AsType[*attest.Error](err); ok && e.Err != nil {
			err = e.Err
		}
		if reason == attest.ReasonCollateralInvalid {
			return piece{}, fmt.Errorf("from the %s: %w: %w", it.Source, errForged, err)
		}
		return piece{}, fmt.Errorf("from the %s: %v", it.Source, err) // another piece may be forged, and not this one
	}
	return newPiece(ref.Kind, it)
}

// checked is check for what lies in a file: once for the same bytes, and again
// after a while, since issuers get revoked and replaced.
func (s *Source) checked(ref attest.CollateralRef, it attest.CollateralItem) (piece, error) {
	at, now := origin{ref, it.Source}, s.cfg.Now()
	s.mu.Lock()
	v, ok := s.files.Get(at)
	s.mu.Unlock()
	if ok && v.about(it) && now.Before(v.until) {
		v.piece.FetchedAt = it.FetchedAt // a file can be touched
		return v.piece, v.err
	}
	p, err := s.check(context.Background(), ref, it, atHand{s})
	fresh := verdict{p, err, now.Add(s.cfg.Ages[ref.Kind].Refresh)}
	if err != nil {
		fresh.piece.CollateralItem, fresh.until = it, now.Add(retryAfter)
	}
	s.mu.Lock()
	v, ok = s.files.Get(at)
	told := ok && v.about(it) && v.err != nil // or another request was quicker
	s.files.Add(at, fresh)
	if errors.Is(err, errForged) && !told {
		s.forged++
	}
	s.mu.Unlock()
	if err != nil && !told {
		s.cfg.Logger.Warn("cannot use collateral", "kind", ref.Kind, "key", ref.Key, "error", err)
	}
	return p, err
}

const chainSuffix = ".chain.pem"

// fileName is where a piece lies below a folder, in a bundle or in the cache.
func fileName(ref attest.CollateralRef) string {
	key := ref.Key
	if key == "" {
		key = "default"
	}
	return filepath.Join(string(ref.Kind), filepath.FromSlash(key))
}

// remembered looks in memory, then in the cache on disk; nil if there is nothing.
// All that memory holds was found genuine.
func (s *Source) remembered(ref attest.CollateralRef) (*piece, error) {
	s.mu.Lock()
	p, ok := s.items.Get(ref)
	s.mu.Unlock()
	if ok {
		return &p, nil
	}
	if s.cfg.CacheDir == "" {
		return nil, nil
	}
	raw, err := readBounded(filepath.Join(s.cfg.CacheDir, fileName(ref)) + ".json")
	if err != nil {
		return nil, nil
	}
	var f cacheFile
	if err := strictjson.Unmarshal(raw, &f); err != nil {
		return nil, nil
	}
	p, err = s.checked(ref, attest.CollateralItem{Data: f.Data, IssuerChain: f.IssuerChain, FetchedAt: f.FetchedAt, Source: "cache"})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if newer, ok := s.items.Get(ref); ok { // fetched meanwhile
		return &newer, nil
	}
	s.items.Add(ref, p)
	return &p, nil
}

type cacheFile struct {
	FetchedAt   time.Time `json:"fetched_at"`
	Data        []byte    `json:"data"`
	IssuerChain []byte    `json:"issuer_chain,omitempty"`
}

func (s *Source) remember(ref attest.CollateralRef, it piece) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items.Add(ref, it)
}

// refreshInBackground fetches again without making the caller wait, and says
// whether the last attempt failed: only then is the piece called stale.
func (s *Source) refreshInBackground(ref attest.CollateralRef) (failed bool) {
	s.mu.Lock()
	failed = s.fails.Contains(ref)
	s.mu.Unlock()
	s.start(ref)
	return failed
}

var (
	errBackoff = errors.New("the last attempt failed a moment ago")
	errWorse   = errors.New("the answer is older")
	errForged  = errors.New("not genuine")
)

// fetch asks the service and waits for the answer.
func (s *Source) fetch(ctx context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	if it, err := s.landed(ref); err != nil {
		return attest.CollateralItem{}, err
	} else if it != nil {
		return *it, nil
	}
	if _, _, err := s.cfg.Services.url(ref); err != nil {
		return attest.CollateralItem{}, err
	}
	// Anybody can name a chip that nobody knows: who waits here is in nobody's way.
	back, err := attest.Leave(ctx)
	if err != nil {
		return attest.CollateralItem{}, err
	}
	var got attest.CollateralItem
	select {
	case r := <-s.start(ref):
		if err = r.Err; err == nil {
			got = r.Val.(attest.CollateralItem)
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if berr := back(ctx); berr != nil {
		return attest.CollateralItem{}, berr
	}
	return got, err
}

// start asks the service, once for all who want the same piece.
func (s *Source) start(ref attest.CollateralRef) <-chan singleflight.Result {
	return s.flight.DoChan(string(ref.Kind)+"|"+ref.Key, func() (any, error) {
		// A flight may have landed between the caller's look and this one.
		it, err := s.landed(ref)
		if it != nil {
			return *it, nil
		}
		if err != nil {
			return nil, err
		}
		// The flight outlives any one caller, and has none's place (attest.Leave).
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer cancel()
		who, limiter := service{s.cfg.Services.base(ref.Kind), ref.Kind == attest.SNPVCEK}, s.limiter
		if who.chips {
			limiter = s.chips
		}
		if err := s.leftAlone(who); err != nil {
			return nil, err
		}
		item, err := s.cfg.Services.fetch(ctx, s.cfg.Client, limiter, ref)
		if err != nil {
			s.heed(who, err)
			s.fail(ref, err)
			return nil, err
		}
		item.FetchedAt, item.Source = s.cfg.Now(), "service"
		got, err := s.check(ctx, ref, item, s)
		if err == nil {
			err = s.outdone(ref, got)
		}
		if err != nil {
			s.fail(ref, err)
			return nil, err
		}
		s.store(ref, item)
		s.remember(ref, got)
		if got.edition.expired(s.cfg.Now()) { // the best that there is; a better one is asked for soon
			s.fail(ref, fmt.Errorf("%w than its own date", errWorse))
			return item, nil
		}
		s.mu.Lock()
		s.fails.Remove(ref)
		s.mu.Unlock()
		return item, nil
	})
}

// outdone says why a genuine answer must not be taken beside what is there, or is nil.
func (s *Source) outdone(ref attest.CollateralRef, got piece) error {
	there, _ := s.operators(ref)
	cached, err := s.remembered(ref)
	switch {
	case cached != nil:
		there = append(there, *cached)
	case err != nil && !errors.Is(err, errForged):
		return fmt.Errorf("compare it with what is cached: %w", err)
	}
	for _, held := range there {
		// A certificate that is too old to be served stands in nobody's way. What
		// counts its editions does not go back, however long it was not refreshed.
		if held.edition.number == nil && s.age(held) >= s.cfg.Ages[ref.Kind].Max {
			continue
		}
		worse := got.edition.worse(held.edition, s.cfg.Now())
		if worse == nil {
			continue
		}
		// Who signed it may have been revoked since.
		if _, err := s.check(context.Background(), ref, held.CollateralItem, atHand{s}); errors.Is(err, errForged) {
			continue
		}
		return fmt.Errorf("%w than the one of %s: %w", errWorse, held.FetchedAt.UTC().Format(time.RFC3339), worse)
	}
	return nil
}

// landed is the outcome of an attempt that is too recent for another one, or nil twice.
func (s *Source) landed(ref attest.CollateralRef) (*attest.CollateralItem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.fails.Peek(ref); ok && s.cfg.Now().Before(f.until) {
		return nil, fmt.Errorf("%w: %w", errBackoff, f.err)
	}
	if it, ok := s.items.Peek(ref); ok && s.age(it) < s.cfg.Ages[ref.Kind].Refresh && !it.edition.expired(s.cfg.Now()) {
		return &it.CollateralItem, nil
	}
	return nil, nil
}

func (s *Source) fail(ref attest.CollateralRef, err error) {
	if errors.Is(err, errNoService) {
		return
	}
	s.mu.Lock()
	f, _ := s.fails.Peek(ref)
	again := errors.Is(err, errWorse) && errors.Is(f.err, errWorse) || errors.Is(err, errForged) && errors.Is(f.err, errForged)
	f = failure{s.cfg.Now().Add(min(retryAfter<<min(f.n, 8), retryMax)), f.n + 1, err}
	s.fails.Add(ref, f)
	switch {
	case errors.Is(err, errWorse):
		s.worse++
	case errors.Is(err, errForged):
		s.forged++
	}
	s.mu.Unlock()
	if !again {
		s.cfg.Logger.Warn("cannot fetch collateral", "kind", ref.Kind, "key", ref.Key, "error", err)
	}
}

// heed leaves a service alone that asks for it.
func (s *Source) heed(who service, err error) {
	asked, ok := errors.AsType[retryLater](err)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quiet[who] = s.cfg.Now().Add(min(asked.after, maxQuiet))
}

// leftAlone is an error while a service wants to be left alone.
func (s *Source) leftAlone(who service) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until, ok := s.quiet[who]; ok && s.cfg.Now().Before(until) {
		return fmt.Errorf("%s: asked to be left alone until %s", who.base, until.UTC().Format(time.RFC3339))
	}
	delete(s.quiet, who)
	return nil
}

// store writes the cache on disk, atomically. That it cannot be written is worth a log line, not a denial.
func (s *Source) store(ref attest.CollateralRef, it attest.CollateralItem) {
	if s.cfg.CacheDir == "" {
		return
	}
	path := filepath.Join(s.cfg.CacheDir, fileName(ref)) + ".json"
	if ref.Kind == attest.SNPVCEK && !s.roomForChip(path) {
		return
	}
	raw, err := json.Marshal(cacheFile{it.FetchedAt, it.Data, it.IssuerChain})
	if err == nil {
		err = writeFile(path, raw)
	}
	if err != nil {
		s.cfg.Logger.Warn("cannot write the collateral cache", "path", path, "error", err)
	}
}

// roomForChip counts the file of a chip's certificate, if it is a new one.
func (s *Source) roomForChip(path string) bool {
	if _, err := os.Stat(path); err == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chipFiles >= maxChips {
		return false
	}
	if s.chipFiles++; s.chipFiles == maxChips {
		s.cfg.Logger.Warn("the cache on disk is full of certificates of chips: no more are kept", "folder", filepath.Join(s.cfg.CacheDir, string(attest.SNPVCEK)), "files", maxChips)
	}
	return true
}

// chipsOnDisk counts the certificates of chips in the cache of an earlier run.
func chipsOnDisk(cache string) (n int, err error) {
	err = filepath.WalkDir(filepath.Join(cache, string(attest.SNPVCEK)), func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() {
			n++
		}
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return n, err
}

func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(path, data, 0o600)
}

// WriteFolder puts a piece that is genuine where a Source with that folder finds
// it, and returns its path. It does not put an older one in the place of a newer.
func (s *Source) WriteFolder(ctx context.Context, folder string, ref attest.CollateralRef, it attest.CollateralItem) (string, error) {
	if !validKey.MatchString(ref.Key) {
		return "", fmt.Errorf("malformed key %q", ref.Key)
	}
	got, err := s.check(ctx, ref, it, s)
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", ref.Kind, ref.Key, err)
	}
	path := filepath.Join(folder, fileName(ref))
	if data, err := readBounded(path); err == nil {
		chain, _ := readBounded(path + chainSuffix)
		held, err := s.check(ctx, ref, attest.CollateralItem{Data: data, IssuerChain: chain, Source: "folder"}, s)
		switch {
		case err == nil:
			if err := got.edition.worse(held.edition, s.cfg.Now()); err != nil {
				return "", fmt.Errorf("%s is newer (delete it if it is not): %w", path, err)
			}
		case !errors.Is(err, errForged):
			return "", fmt.Errorf("compare with %s: %w", path, err)
		}
	}
	if err := writeFile(path, it.Data); err != nil {
		return "", fmt.Errorf("write collateral: %w", err)
	}
	if len(it.IssuerChain) > 0 {
		if err := writeFile(path+chainSuffix, it.IssuerChain); err != nil {
			return "", fmt.Errorf("write collateral: %w", err)
		}
	}
	return path, nil
}
