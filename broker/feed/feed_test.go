package feed

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/etcd"
)

// source counts the questions and can stop answering.
type source struct {
	mu      sync.Mutex
	version string
	asked   int
	fault   error
}

func (s *source) Fetch(context.Context, *broker.Grant) (broker.Secret, error) {
	panic("the feed never reads a secret")
}

func (s *source) CurrentVersion(context.Context, broker.CatalogEntry) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.version, s.fault
}

func (s *source) set(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version = version
}

func (s *source) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

var entry = broker.CatalogEntry{Source: "vault", Key: "db/orders"}

const interval = 50 * time.Millisecond

// brokers are n feeds over one real (embedded) etcd and one source.
func brokers(t *testing.T, n int, src *source) (feeds []*Feed, stops []func()) {
	t.Helper()
	kv, err := etcd.StartMember(t.Context(), etcd.Member{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kv.Close() })
	for i := range n {
		f := New(Config{KV: kv, Sources: map[string]broker.Source{"vault": src}, Instance: fmt.Sprint("b", i), Interval: interval})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = f.Run(ctx) }()
		stop := func() { cancel(); <-done }
		t.Cleanup(stop)
		feeds, stops = append(feeds, f), append(stops, stop)
	}
	return feeds, stops
}

func woken(t *testing.T, wake <-chan struct{}, f *Feed, version string, within time.Duration) {
	t.Helper()
	deadline := time.After(within)
	for {
		if f.Current(entry) == version {
			return
		}
		select {
		case <-wake:
		case <-deadline:
			t.Fatalf("knows %q, want %q", f.Current(entry), version)
		}
	}
}

// TestAskedOncePerCluster: however many brokers and guests follow a secret, its
// source is asked once per interval, and all learn the answer.
func TestAskedOncePerCluster(t *testing.T) {
	src := &source{version: "7"}
	feeds, _ := brokers(t, 3, src)
	var wakes []chan struct{}
	for i := range 30 {
		wake := make(chan struct{}, 1)
		t.Cleanup(feeds[i%3].Follow(entry, wake))
		wakes = append(wakes, wake)
	}
	for i, w := range wakes {
		woken(t, w, feeds[i%3], "7", 5*time.Second)
	}
	before := src.questions()
	time.Sleep(20 * interval)
	if asked := src.questions() - before; asked > 25 || asked < 5 {
		t.Errorf("asked %d times in 20 intervals", asked)
	}
	src.set("8")
	for i, w := range wakes {
		woken(t, w, feeds[i%3], "8", 5*time.Second)
	}
}

// TestTakeover: when the broker that asks is gone, another one asks.
func TestTakeover(t *testing.T) {
	src := &source{version: "1"}
	feeds, stops := brokers(t, 2, src)
	wake := make(chan struct{}, 1)
	t.Cleanup(feeds[0].Follow(entry, make(chan struct{}, 1)))
	woken(t, nil, feeds[0], "", time.Millisecond)
	for feeds[0].Current(entry) == "" {
		time.Sleep(interval)
	}
	t.Cleanup(feeds[1].Follow(entry, wake))
	woken(t, wake, feeds[1], "1", 5*time.Second)
	stops[0]()
	src.set("2")
	woken(t, wake, feeds[1], "2", claimFor+5*time.Second)
}

func TestNotify(t *testing.T) {
	src := &source{version: "1"}
	feeds, _ := brokers(t, 2, src)
	wake := make(chan struct{}, 1)
	t.Cleanup(feeds[1].Follow(entry, wake))
	woken(t, wake, feeds[1], "1", 5*time.Second)
	src.set("2")
	if err := feeds[0].Notify(t.Context(), entry); err != nil { // on a broker that does not even follow it
		t.Fatal(err)
	}
	woken(t, wake, feeds[1], "2", 5*time.Second)
	src.set("3")
	feeds[1].Hint(t.Context(), "vault", "secret", "db/other")
	feeds[1].Hint(t.Context(), "vault", "secret", "db/orders")
	if got := feeds[1].Current(entry); got != "3" {
		t.Errorf("a hint was not followed: %q", got)
	}
}

// TestUnfollowed: what nobody follows any more is not asked about.
func TestUnfollowed(t *testing.T) {
	src := &source{version: "1"}
	feeds, _ := brokers(t, 1, src)
	wake := make(chan struct{}, 1)
	stop := feeds[0].Follow(entry, wake)
	woken(t, wake, feeds[0], "1", 5*time.Second)
	stop()
	stop() // harmless
	time.Sleep(2 * interval)
	before := src.questions()
	time.Sleep(5 * interval)
	if n := src.questions() - before; n != 0 {
		t.Errorf("asked %d times for nobody", n)
	}
}

// TestKeysDoNotCollide: two secrets never share a version.
func TestKeysDoNotCollide(t *testing.T) {
	seen := map[string]broker.CatalogEntry{}
	for _, e := range []broker.CatalogEntry{
		{Source: "a", Key: "b"}, {Source: "a", Mount: "b"}, {Source: "a", Key: "b", Kind: broker.KindDatabaseStatic},
		{Source: "a", Mount: "b", Key: "c"}, {Source: "a", Key: "b/c"}, {Source: "ab"},
	} {
		k := key(e)
		if strings.ContainsAny(k, "/\x00") {
			t.Errorf("key %q", k)
		}
		if o, ok := seen[k]; ok {
			t.Errorf("%+v and %+v share %q", e, o, k)
		}
		seen[k] = e
	}
	if key(broker.CatalogEntry{Source: "a", Key: "b"}) != key(broker.CatalogEntry{Source: "a", Key: "b", Kind: broker.KindKV, Field: "x"}) {
		t.Error("two fields of one secret are asked about twice")
	}
}
