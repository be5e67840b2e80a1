package vault

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
)

// heard collects what a feed tells.
type heard struct {
	mu    sync.Mutex
	paths []string
}

func (h *heard) notify(mount, path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paths = append(h.paths, mount+" "+path)
}

func (h *heard) has(want string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.paths, want)
}

func startFeed(t testing.TB) (Feed, *heard, context.CancelFunc) {
	t.Helper()
	dir, err := os.MkdirTemp("", "feed") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &heard{}
	f := Feed{Socket: filepath.Join(dir, "audit.sock"), Notify: h.notify}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("feed ended with %v", err)
		}
	})
	eventually(t, "socket", func() bool {
		info, err := os.Stat(f.Socket)
		return err == nil && info.Mode().Perm() == 0o660
	})
	return f, h, cancel
}

func TestFeed(t *testing.T) {
	d := deploy(t, "database")
	f, h, cancel := startFeed(t)
	d.write(t, "sys/audit/file", map[string]any{"type": "file", "options": map[string]any{"file_path": filepath.Join(t.TempDir(), "audit.log")}})
	d.write(t, "sys/audit/claviger", map[string]any{"type": "socket", "options": map[string]any{"address": f.Socket, "socket_type": "unix", "elide_list_responses": "true"}})

	kv := d.root.KVv2("secret")
	start := time.Now()
	if _, err := kv.Put(t.Context(), "db/orders/eu", map[string]any{"value": "not-to-be-seen"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the write", func() bool { return h.has("secret db/orders/eu") })
	t.Logf("heard %s after the write began", time.Since(start))
	if err := kv.Delete(t.Context(), "db/gone"); err != nil {
		t.Fatal(err)
	}
	d.write(t, "database/rotate-role/app-static", nil)
	eventually(t, "the rotation", func() bool { return h.has("database app-static") })
	eventually(t, "the deletion", func() bool { return h.has("secret db/gone") })

	// Reading, and writing that was refused, is nothing new.
	if _, err := kv.Get(t.Context(), "db/orders/eu"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.root.Logical().Write("secret/data/db/refused", map[string]any{"data": map[string]any{"a": 1}, "options": map[string]any{"cas": 7}}); err == nil {
		t.Fatal("written")
	}
	if err := d.root.KVv1("cubbyhole").Put(t.Context(), "x", map[string]any{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "db/last", map[string]any{"value": "x"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last", func() bool { return h.has("secret db/last") })
	h.mu.Lock()
	if want := []string{"secret db/orders/eu", "secret db/gone", "database app-static", "secret db/last"}; !slices.Equal(h.paths, want) {
		t.Errorf("heard %q, want %q", h.paths, want)
	}
	h.mu.Unlock()

	// With a file device beside it, Vault goes on when the feed does not.
	cancel()
	eventually(t, "no socket", func() bool { _, err := os.Stat(f.Socket); return err != nil })
	if _, err := d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Key: "db/last"}}); err != nil {
		t.Errorf("without the feed: %v", err)
	}
}

const goodLine = `{"type":"response","request":{"operation":"update","path":"team/kv/data/a/b","mount_point":"team/kv/","mount_type":"kv"}}`

func TestChanged(t *testing.T) {
	edit := func(old, new string) string { return strings.Replace(goodLine, old, new, 1) }
	if mount, path, ok := changed([]byte(goodLine)); !ok || mount != "team/kv" || path != "a/b" {
		t.Fatalf("got %q %q %v", mount, path, ok)
	}
	for name, line := range map[string]string{
		"empty": "", "no JSON": "{", "request": edit(`"response"`, `"request"`), "read": edit("update", "read"), "list": edit("update", "list"),
		"error": edit(`{"type"`, `{"error":"denied","type"`), "another engine": edit(`"kv"}`, `"transit"}`), "metadata": edit("/data/", "/metadata/"),
		"no key": edit("/data/a/b", "/data/"), "outside of its mount": edit(`"team/kv/"`, `"kv/"`), "no mount": edit(`"team/kv/"`, `""`), "numbers": edit(`"update"`, `1`),
	} {
		if mount, path, ok := changed([]byte(line)); ok {
			t.Errorf("%s: %q %q", name, mount, path)
		}
	}
}

// Whoever writes to the socket cannot make us hold more than a line, nor stop us.
func TestFeedHostile(t *testing.T) {
	f, h, _ := startFeed(t)
	conns := []net.Conn{}
	for range maxFeeds + 4 {
		c, err := net.Dial("unix", f.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	c := conns[0]
	for _, line := range []string{strings.Repeat("a", 3*maxLine), "\x00\xff", `{"type":"response"}`, strings.Repeat("[", 20000), goodLine} {
		if _, err := c.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the good line", func() bool { return h.has("team/kv a/b") })
	// A line without an end is not counted.
	conns[1].Write([]byte(strings.Replace(goodLine, "a/b", "cut", 1)))
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "another connection", func() bool {
		c, err := net.Dial("unix", f.Socket)
		if err != nil {
			return false
		}
		defer c.Close()
		c.Write([]byte(strings.Replace(goodLine, "a/b", "later", 1) + "\n"))
		time.Sleep(10 * time.Millisecond)
		return h.has("team/kv later")
	})
	if h.has("team/kv cut") {
		t.Error("took a line without an end")
	}
}

// A file that is no socket stays.
func TestFeedSocketTaken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (Feed{Socket: file}).Run(t.Context()); err == nil {
		t.Error("listened over a file")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file is %q: %v", b, err)
	}
}

func FuzzFeed(f *testing.F) {
	f.Add([]byte(goodLine))
	f.Add([]byte(`{"type":"response","request":{"operation":"update","path":"database/rotate-role/x","mount_point":"database/","mount_type":"database"}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		mount, path, ok := changed(line)
		if ok && (mount == "" || path == "" || !json.Valid(line)) {
			t.Errorf("%q: %q %q", line, mount, path)
		}
	})
}

func FuzzCSR(f *testing.F) {
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		if csr, err := checkCSR(der, names{}); err == nil && (len(csr.DNSNames) > 0 || len(csr.URIs) > 0) {
			t.Errorf("%x: names where none are allowed", der)
		}
	})
}
