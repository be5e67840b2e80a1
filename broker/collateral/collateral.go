// Package collateral finds certificates, CRLs and TCB information: in a signed
// offline bundle, a local folder, a cache, or at the vendor's service (or a
// mirror), in that order. It checks shape and age; the verifiers check
// signatures, so nothing here has to be trusted.
package collateral

import (
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/claviger/claviger/broker/attest"
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

// Config of a Source. Empty paths and URLs switch the source they name off.
type Config struct {
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
	// retryAfter keeps a failing service from being asked again at once.
	retryAfter   = 30 * time.Second
	fetchTimeout = 10 * time.Second
)

// Source is an attest.Collateral.
type Source struct {
	cfg     Config
	flight  singleflight.Group
	limiter *rate.Limiter // of requests to services
	chips   *rate.Limiter // of those for VCEKs: who makes up chip ids must not keep CRLs from being fetched

	mu    sync.Mutex
	items map[attest.CollateralRef]*list.Element // guarded by mu
	lru   *list.List                             // of *cached, the newest in front; guarded by mu
	fails map[attest.CollateralRef]failure       // guarded by mu
}

type cached struct {
	ref  attest.CollateralRef
	item attest.CollateralItem
}

type failure struct {
	at  time.Time
	err error
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
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: fetchTimeout}
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
	return &Source{
		cfg: cfg, limiter: rate.NewLimiter(10, 50), chips: rate.NewLimiter(10, 50), items: map[attest.CollateralRef]*list.Element{}, lru: list.New(),
		fails: map[attest.CollateralRef]failure{},
	}, nil
}

// validKey keeps a guest-influenced key from naming anything but a file below the kind's folder.
var validKey = regexp.MustCompile(`^([a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*)?$`)

// Get implements attest.Collateral.
func (s *Source) Get(ctx context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	age, ok := s.cfg.Ages[ref.Kind]
	if !ok || !validKey.MatchString(ref.Key) || len(ref.Key) > 256 {
		return attest.CollateralItem{}, attest.Errorf("collateral", attest.ReasonUnsupported, "no collateral is named %s %q", ref.Kind, ref.Key)
	}
	var tooOld []string
	for _, it := range s.local(ref) {
		if s.age(it) < age.Max {
			return it, nil
		}
		tooOld = append(tooOld, fmt.Sprintf("%s has one of %s ago", it.Source, s.age(it).Round(time.Minute)))
	}
	if it, ok := s.remembered(ref); ok {
		switch a := s.age(it); {
		case a < age.Refresh:
			return it, nil
		case a < age.Max:
			it.Stale = s.refreshInBackground(ctx, ref)
			return it, nil
		default:
			tooOld = append(tooOld, fmt.Sprintf("%s has one of %s ago", it.Source, a.Round(time.Minute)))
		}
	}
	it, err := s.fetch(ctx, ref)
	if err == nil {
		return it, nil
	}
	if len(tooOld) > 0 {
		return attest.CollateralItem{}, attest.Errorf("collateral", attest.ReasonCollateralExpired,
			"%s %s: at most %s old is accepted, %s, and: %w", ref.Kind, ref.Key, age.Max, strings.Join(tooOld, ", "), err)
	}
	return attest.CollateralItem{}, attest.Errorf("collateral", attest.ReasonCollateralMissing, "%s %s: %w", ref.Kind, ref.Key, err)
}

func (s *Source) age(it attest.CollateralItem) time.Duration { return s.cfg.Now().Sub(it.FetchedAt) }

// local looks in the bundle and the folder, which the operator keeps.
func (s *Source) local(ref attest.CollateralRef) (found []attest.CollateralItem) {
	if s.cfg.Bundle != nil {
		if it, ok := s.cfg.Bundle.items[fileName(ref)]; ok {
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
	if err := plausible(ref.Kind, data); err != nil {
		s.cfg.Logger.Warn("collateral in the folder is not what its name says", "path", path, "error", err)
		return found
	}
	return append(found, attest.CollateralItem{Data: data, IssuerChain: chain, FetchedAt: info.ModTime(), Source: "folder"})
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

// remembered looks in memory, then in the cache on disk.
func (s *Source) remembered(ref attest.CollateralRef) (attest.CollateralItem, bool) {
	s.mu.Lock()
	if e, ok := s.items[ref]; ok {
		s.lru.MoveToFront(e)
		it := e.Value.(*cached).item
		s.mu.Unlock()
		return it, true
	}
	s.mu.Unlock()
	if s.cfg.CacheDir == "" {
		return attest.CollateralItem{}, false
	}
	raw, err := readBounded(filepath.Join(s.cfg.CacheDir, fileName(ref)) + ".json")
	if err != nil {
		return attest.CollateralItem{}, false
	}
	var f cacheFile
	if err := json.Unmarshal(raw, &f); err != nil || plausible(ref.Kind, f.Data) != nil {
		return attest.CollateralItem{}, false
	}
	it := attest.CollateralItem{Data: f.Data, IssuerChain: f.IssuerChain, FetchedAt: f.FetchedAt, Source: "cache"}
	s.remember(ref, it)
	return it, true
}

type cacheFile struct {
	FetchedAt   time.Time `json:"fetched_at"`
	Data        []byte    `json:"data"`
	IssuerChain []byte    `json:"issuer_chain,omitempty"`
}

func (s *Source) remember(ref attest.CollateralRef, it attest.CollateralItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.items[ref]; ok {
		e.Value.(*cached).item = it
		s.lru.MoveToFront(e)
		return
	}
	if s.lru.Len() >= maxItems {
		old := s.lru.Back()
		delete(s.items, old.Value.(*cached).ref)
		s.lru.Remove(old)
	}
	s.items[ref] = s.lru.PushFront(&cached{ref, it})
}

// refreshInBackground fetches again without making the caller wait, and says
// whether the last attempt failed: only then is the piece called stale.
func (s *Source) refreshInBackground(ctx context.Context, ref attest.CollateralRef) (failed bool) {
	s.mu.Lock()
	_, failed = s.fails[ref]
	s.mu.Unlock()
	s.start(ctx, ref)
	return failed
}

var errBackoff = errors.New("the last attempt failed a moment ago")

// fetch asks the service and waits for the answer.
func (s *Source) fetch(ctx context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	select {
	case r := <-s.start(ctx, ref):
		if r.Err != nil {
			return attest.CollateralItem{}, r.Err
		}
		return r.Val.(attest.CollateralItem), nil
	case <-ctx.Done():
		return attest.CollateralItem{}, ctx.Err()
	}
}

// start asks the service, once for all who want the same piece.
func (s *Source) start(ctx context.Context, ref attest.CollateralRef) <-chan singleflight.Result {
	return s.flight.DoChan(string(ref.Kind)+"|"+ref.Key, func() (any, error) {
		// A flight may have landed between the caller's look and this one.
		it, err := s.landed(ref)
		if it != nil {
			return *it, nil
		}
		if err != nil {
			return nil, err
		}
		// The flight outlives any one caller.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		limiter := s.limiter
		if ref.Kind == attest.SNPVCEK {
			limiter = s.chips
		}
		got, err := s.cfg.Services.fetch(ctx, s.cfg.Client, limiter, ref)
		if err != nil {
			s.fail(ref, err)
			return nil, err
		}
		got.FetchedAt, got.Source = s.cfg.Now(), "service"
		s.store(ref, got)
		s.remember(ref, got)
		s.mu.Lock()
		delete(s.fails, ref)
		s.mu.Unlock()
		return got, nil
	})
}

// landed is the outcome of an attempt that is too recent for another one, or nil twice.
func (s *Source) landed(ref attest.CollateralRef) (*attest.CollateralItem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.fails[ref]; ok && s.cfg.Now().Sub(f.at) < retryAfter {
		return nil, fmt.Errorf("%w: %w", errBackoff, f.err)
	}
	if e, ok := s.items[ref]; ok {
		if it := e.Value.(*cached).item; s.age(it) < s.cfg.Ages[ref.Kind].Refresh {
			return &it, nil
		}
	}
	return nil, nil
}

func (s *Source) fail(ref attest.CollateralRef, err error) {
	if errors.Is(err, errNoService) {
		return
	}
	s.cfg.Logger.Warn("cannot fetch collateral", "kind", ref.Kind, "key", ref.Key, "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.fails) >= maxItems {
		clear(s.fails)
	}
	s.fails[ref] = failure{s.cfg.Now(), err}
}

// store writes the cache on disk, atomically. That it cannot be written is worth a log line, not a denial.
func (s *Source) store(ref attest.CollateralRef, it attest.CollateralItem) {
	if s.cfg.CacheDir == "" {
		return
	}
	path := filepath.Join(s.cfg.CacheDir, fileName(ref)) + ".json"
	raw, err := json.Marshal(cacheFile{it.FetchedAt, it.Data, it.IssuerChain})
	if err == nil {
		err = writeAtomic(path, raw)
	}
	if err != nil {
		s.cfg.Logger.Warn("cannot write the collateral cache", "path", path, "error", err)
	}
}

func writeAtomic(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// WriteFolder puts a piece where a Source with that folder finds it, and returns its path.
func WriteFolder(folder string, ref attest.CollateralRef, it attest.CollateralItem) (string, error) {
	if !validKey.MatchString(ref.Key) {
		return "", fmt.Errorf("malformed key %q", ref.Key)
	}
	path := filepath.Join(folder, fileName(ref))
	if err := writeAtomic(path, it.Data); err != nil {
		return "", fmt.Errorf("write collateral: %w", err)
	}
	if len(it.IssuerChain) > 0 {
		if err := writeAtomic(path+chainSuffix, it.IssuerChain); err != nil {
			return "", fmt.Errorf("write collateral: %w", err)
		}
	}
	return path, nil
}
