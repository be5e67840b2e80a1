package broker

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Cache keeps copies of secrets, encrypted, for all brokers and over restarts,
// so that disks unlock while Vault is sealed or gone. GetCopy returns
// ErrNoSecret where there is none. Safe for concurrent use.
type Cache interface {
	PutCopy(ctx context.Context, key string, c Copy) error
	GetCopy(ctx context.Context, key string) (Copy, error)
	DeleteCopy(ctx context.Context, key string) error
}

// Copy is a secret as its source gave it once. Wipe it after use.
type Copy struct {
	Value       []byte
	Version     string
	ContentType string
	At          time.Time // when the source gave it
	Until       time.Time // when it may be forgotten
}

// copies remembers what was written down, so that a copy is renewed now and then, not at every release.
type copies struct {
	mu      sync.Mutex
	written map[string]writtenCopy // guarded by mu
}

type writtenCopy struct {
	version, edition string
	at               time.Time
}

const maxCopies = 100_000

// cacheable kinds are those where an earlier answer is still an answer.
func cacheable(k Kind) bool { return k == "" || k == KindKV }

func cacheKey(e CatalogEntry) string {
	return strings.Join([]string{e.Source, string(cmp.Or(e.Kind, KindKV)), e.Mount, e.Key, e.Field, strconv.FormatBool(e.Base64())}, "\x00")
}

// keepCopy writes a copy down if the policy allows one. A failure costs a later stand-in, nothing else.
func (b *Broker) keepCopy(ctx context.Context, g allowed, s Secret, now time.Time) {
	if b.cfg.Cache == nil || g.cache == 0 || g.entry.PinVersion != 0 || len(g.input) > 0 || !cacheable(g.entry.Kind) {
		return
	}
	key := cacheKey(g.entry)
	b.cache.mu.Lock()
	last, ok := b.cache.written[key]
	fresh := ok && last.version == s.Version && last.edition == s.Edition && now.Sub(last.at) < g.cache/4
	b.cache.mu.Unlock()
	if fresh {
		return
	}
	err := b.cfg.Cache.PutCopy(ctx, key, Copy{Value: s.Value, Version: s.Version, ContentType: s.ContentType, At: now, Until: now.Add(g.cache)})
	if err != nil {
		b.cfg.Logger.WarnContext(ctx, "cannot keep a copy of a secret", "resource", g.path, "error", err)
		return
	}
	b.cache.mu.Lock()
	defer b.cache.mu.Unlock()
	if b.cache.written == nil || len(b.cache.written) >= maxCopies {
		b.cache.written = map[string]writtenCopy{}
	}
	b.cache.written[key] = writtenCopy{s.Version, s.Edition, now}
}

// standIn is a copy that is young enough for this policy, in place of a source that does not answer.
func (b *Broker) standIn(ctx context.Context, g allowed, now time.Time) (Secret, bool) {
	if b.cfg.Cache == nil || g.cache == 0 || g.entry.PinVersion != 0 || len(g.input) > 0 || !cacheable(g.entry.Kind) {
		return Secret{}, false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	c, err := b.cfg.Cache.GetCopy(ctx, cacheKey(g.entry))
	if err != nil {
		if !errors.Is(err, ErrNoSecret) {
			b.cfg.Logger.WarnContext(ctx, "cannot read the copy of a secret", "resource", g.path, "error", err)
		}
		return Secret{}, false
	}
	if age := now.Sub(c.At); age > g.cache || age < -time.Minute {
		clear(c.Value)
		return Secret{}, false
	}
	return Secret{Value: c.Value, Version: c.Version, ContentType: c.ContentType, FromCache: true}, true
}

// forgetCopy drops the copy of what its source says is not there any more.
func (b *Broker) forgetCopy(ctx context.Context, g allowed) {
	if b.cfg.Cache == nil || g.cache == 0 || len(g.input) > 0 || !cacheable(g.entry.Kind) {
		return
	}
	key := cacheKey(g.entry)
	b.cache.mu.Lock()
	delete(b.cache.written, key)
	b.cache.mu.Unlock()
	if err := b.cfg.Cache.DeleteCopy(ctx, key); err != nil {
		b.cfg.Logger.WarnContext(ctx, "cannot forget the copy of a deleted secret; it ages out", "resource", g.path, "error", err)
	}
}
