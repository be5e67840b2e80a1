// Package feed tells the brokers of a cluster when a secret has a new version.
// Each followed secret is asked about by one broker at a time, once per
// interval, however many brokers and guests follow it; what it learns is shared
// through the state. It never reads a secret.
package feed

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/state"
)

const (
	versions = "versions/" // the newest known version, by secret
	polls    = "polls/"    // which broker asks about it

	// claimFor is how long a broker that asks is believed to live after its last word.
	claimFor = 3 * time.Second
	// concurrency bounds the questions to sources at a time.
	concurrency = 8
)

// Config of a Feed.
type Config struct {
	KV       state.KV
	Sources  map[string]broker.Source // those that are broker.Versioner are asked
	Instance string                   // names this process among the brokers
	Interval time.Duration            // between two questions about a secret; 0: 1 s
	Logger   *slog.Logger
	Now      func() time.Time
}

// Feed implements broker.Versions.
type Feed struct {
	cfg Config

	mu       sync.Mutex
	followed map[string]*secret // guarded by mu; by key
	current  map[string]string  // guarded by mu; version and edition, with a NUL between them, by key
}

type secret struct {
	entry   broker.CatalogEntry
	wakes   map[int]chan<- struct{}
	next    int
	claimed time.Time // until when this broker is the one that asks
	checked time.Time // when the claim was last looked at
}

// New makes a feed; Run makes it work.
func New(cfg Config) *Feed {
	if cfg.Interval == 0 {
		cfg.Interval = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Feed{cfg: cfg, followed: map[string]*secret{}, current: map[string]string{}}
}

// key names a secret in its source, whatever catalog entry leads to it.
func key(e broker.CatalogEntry) string {
	id := strings.Join([]string{e.Source, string(cmp.Or(e.Kind, broker.KindKV)), e.Mount, e.Key}, "\x00")
	return base64.RawURLEncoding.EncodeToString([]byte(id))
}

// Follow implements broker.Versions.
func (f *Feed) Follow(e broker.CatalogEntry, wake chan<- struct{}) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := key(e)
	s, ok := f.followed[k]
	if !ok {
		s = &secret{entry: e, wakes: map[int]chan<- struct{}{}}
		f.followed[k] = s
	}
	id := s.next
	s.next++
	s.wakes[id] = wake
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(s.wakes, id)
		if len(s.wakes) == 0 && f.followed[k] == s {
			delete(f.followed, k)
		}
	}
}

// Current implements broker.Versions.
func (f *Feed) Current(e broker.CatalogEntry) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	version, _, _ := strings.Cut(f.current[key(e)], "\x00")
	return version
}

// Edition implements broker.Editions.
func (f *Feed) Edition(e broker.CatalogEntry) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, edition, _ := strings.Cut(f.current[key(e)], "\x00")
	return edition
}

// Run follows what other brokers learn, and asks about what nobody else asks about, until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { f.watch(ctx) })
	t := time.NewTicker(f.cfg.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			f.pass(ctx)
		}
	}
}

// watch takes over what any broker learnt.
func (f *Feed) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.cfg.KV.Watch(ctx, versions, f.apply, func(time.Time) {})
		if ctx.Err() != nil {
			return
		}
		f.cfg.Logger.WarnContext(ctx, "lost the view of versions, trying again", "error", err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (f *Feed) apply(u state.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range u.Pairs {
		if p.Deleted {
			continue // what is known stays known
		}
		f.learn(strings.TrimPrefix(p.Key, versions), string(p.Value))
	}
}

// learn notes a version and wakes its followers. f.mu is held.
func (f *Feed) learn(k, version string) {
	if f.current[k] == version {
		return
	}
	f.current[k] = version
	if s, ok := f.followed[k]; ok {
		for _, wake := range s.wakes {
			select {
			case wake <- struct{}{}:
			default: // it is awake already
			}
		}
	}
}

// pass asks about every followed secret that this broker is to ask about.
func (f *Feed) pass(ctx context.Context) {
	f.mu.Lock()
	todo := make([]*secret, 0, len(f.followed))
	for _, s := range f.followed {
		todo = append(todo, s)
	}
	f.mu.Unlock()
	slots := make(chan struct{}, concurrency)
	var wg sync.WaitGroup
	for _, s := range todo {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if !f.claim(ctx, s) {
				return
			}
			if err := f.ask(ctx, s.entry); err != nil && ctx.Err() == nil && !errors.Is(err, broker.ErrNoSecret) {
				f.cfg.Logger.WarnContext(ctx, "cannot ask for a secret's version", "source", s.entry.Source, "key", s.entry.Key, "error", err)
			}
		})
	}
	wg.Wait()
}

// claim says whether this broker asks about the secret for now. Only pass touches the claim's times.
func (f *Feed) claim(ctx context.Context, s *secret) bool {
	now := f.cfg.Now()
	if now.Add(f.cfg.Interval).Before(s.claimed) {
		return true
	}
	// Somebody else asks: look again when that may have ended.
	if s.claimed.IsZero() && now.Sub(s.checked) < f.cfg.Interval {
		return false
	}
	s.checked = now
	type claim struct {
		Instance string    `json:"instance"`
		Until    time.Time `json:"until"`
	}
	k := polls + key(s.entry)
	b, rev, err := f.cfg.KV.Get(ctx, k)
	if err != nil {
		return false
	}
	var c claim
	if rev != 0 {
		if err := json.Unmarshal(b, &c); err == nil && c.Instance != f.cfg.Instance && now.Before(c.Until) {
			s.claimed = time.Time{}
			return false
		}
	}
	c = claim{f.cfg.Instance, now.Add(claimFor + f.cfg.Interval)}
	if b, err = json.Marshal(c); err != nil {
		return false
	}
	won, err := f.cfg.KV.PutIf(ctx, k, b, rev)
	if err != nil || !won {
		s.claimed = time.Time{}
		return false
	}
	s.claimed = c.Until
	return true
}

// ask asks the source and shares the answer.
func (f *Feed) ask(ctx context.Context, e broker.CatalogEntry) error {
	src, ok := f.cfg.Sources[e.Source].(broker.Versioner)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	version, err := current(ctx, src, e)
	if err != nil {
		return err
	}
	k := key(e)
	f.mu.Lock()
	known := f.current[k] == version
	f.mu.Unlock()
	if known {
		return nil
	}
	if err := f.cfg.KV.Put(ctx, versions+k, []byte(version)); err != nil {
		return fmt.Errorf("share version: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.learn(k, version)
	return nil
}

// current is the version and, if the source knows editions, a NUL and the edition.
func current(ctx context.Context, src broker.Versioner, e broker.CatalogEntry) (string, error) {
	ed, ok := src.(broker.Editioner)
	if !ok {
		return src.CurrentVersion(ctx, e)
	}
	version, edition, err := ed.CurrentEdition(ctx, e)
	if edition != "" {
		version += "\x00" + edition
	}
	return version, err
}

// Notify asks about a secret at once, because somebody says that it changed.
func (f *Feed) Notify(ctx context.Context, e broker.CatalogEntry) error { return f.ask(ctx, e) }

// Hint is Notify for those who know a secret's place only: whoever follows it here is told. Others poll.
func (f *Feed) Hint(ctx context.Context, source, mount, path string) {
	f.mu.Lock()
	var hit []broker.CatalogEntry
	for _, s := range f.followed {
		if s.entry.Source == source && s.entry.Key == path && (s.entry.Mount == "" || s.entry.Mount == mount) {
			hit = append(hit, s.entry)
		}
	}
	f.mu.Unlock()
	for _, e := range hit {
		if err := f.ask(ctx, e); err != nil && ctx.Err() == nil {
			f.cfg.Logger.WarnContext(ctx, "cannot ask for a secret's version", "source", source, "key", path, "error", err)
		}
	}
}
