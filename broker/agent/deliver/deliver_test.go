package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
)

// folder is on tmpfs, as the agent demands.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "claviger-test-")
	if err != nil {
		t.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "secrets")
}

func newDelivery(t *testing.T, cfg Config) *Delivery {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = folder(t)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func secret(resource, version, value string) agent.Secret {
	return agent.Secret{Resource: resource, Version: version, Value: []byte(value)}
}

func (d *Delivery) give(t *testing.T, s agent.Secret) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := d.Take(ctx, s); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "current", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFiles(t *testing.T) {
	dir := folder(t)
	d := newDelivery(t, Config{Dir: dir, Grace: 50 * time.Millisecond, Files: []File{{Resource: "db/orders", UID: -1, GID: -1}, {Resource: "db/users", Path: "users", Mode: 0o440, UID: -1, GID: -1}}})
	// The first generation waits until everything is there.
	first := make(chan error, 1)
	go func() { first <- d.Take(t.Context(), secret("db/orders", "1", "one")) }()
	time.Sleep(50 * time.Millisecond)
	if _, err := os.Lstat(filepath.Join(dir, "current")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("half a generation is in force: %v", err)
	}
	d.give(t, secret("db/users", "7", "seven"))
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if content(t, dir, "db/orders") != "one" || content(t, dir, "users") != "seven" {
		t.Error("wrong content")
	}
	for name, want := range map[string]os.FileMode{"db/orders": 0o400, "users": 0o440} {
		if info, err := os.Stat(filepath.Join(dir, "current", name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	old, err := os.Readlink(filepath.Join(dir, "current"))
	if err != nil {
		t.Fatal(err)
	}
	d.give(t, secret("db/orders", "2", "two"))
	if content(t, dir, "db/orders") != "two" || content(t, dir, "users") != "seven" {
		t.Error("wrong content after a rotation")
	}
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(dir, old)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old generation stays: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left after the end: %v %v", left, err)
	}
}

// TestNoReaderSeesAMix: two files always belong together, however often they change.
func TestNoReaderSeesAMix(t *testing.T) {
	dir := folder(t)
	d := newDelivery(t, Config{Dir: dir, Grace: time.Second, Files: []File{{Resource: "a"}, {Resource: "b"}}, Templates: []Template{{Source: tmpl(t, `{{secret "a"}} {{secret "a"}}`), Path: "both"}}})
	go func() { _ = d.Take(t.Context(), secret("b", "0", "b")) }()
	d.give(t, secret("a", "0", "a-0"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			link, err := os.Readlink(filepath.Join(dir, "current"))
			if err != nil {
				t.Errorf("no generation: %v", err)
				return
			}
			a, err1 := os.ReadFile(filepath.Join(dir, link, "a"))
			both, err2 := os.ReadFile(filepath.Join(dir, link, "both"))
			if err1 != nil || err2 != nil || string(both) != string(a)+" "+string(a) || !strings.HasPrefix(string(a), "a-") {
				t.Errorf("saw %q and %q (%v %v)", a, both, err1, err2)
				return
			}
		}
	})
	for i := range 200 {
		d.give(t, secret("a", fmt.Sprint(i+1), fmt.Sprintf("a-%d", i+1)))
	}
	close(stop)
	wg.Wait()
}

func tmpl(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "template")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTemplates(t *testing.T) {
	dir := folder(t)
	d := newDelivery(t, Config{Dir: dir, Templates: []Template{{
		Source: tmpl(t, `user={{field "db/creds" "username"}} password={{ field "db/creds" "password" }} key={{base64 "key"}}`), Path: "app.conf",
	}}})
	go func() { _ = d.Take(t.Context(), secret("key", "1", "k")) }()
	d.give(t, secret("db/creds", "1", `{"username":"u","password":"p"}`))
	if got := content(t, dir, "app.conf"); got != "user=u password=p key=aw==" {
		t.Errorf("got %q", got)
	}
	// A version that does not fit is not taken; the one before stays.
	for name, value := range map[string]string{"no JSON": "x", "a field is missing": `{"username":"u"}`} {
		if err := d.Take(t.Context(), secret("db/creds", name, value)); err == nil {
			t.Errorf("%s: taken", name)
		}
		if got := content(t, dir, "app.conf"); !strings.HasPrefix(got, "user=u password=p") {
			t.Errorf("%s: now %q", name, got)
		}
	}
	for name, text := range map[string]string{"unknown action": `{{env "HOME"}}`, "unfinished": `{{secret "a"`, "no field": `{{field "a"}}`, "too much": `{{secret "a" "b"}}`} {
		if _, err := New(Config{Dir: folder(t), Templates: []Template{{Source: tmpl(t, text), Path: "p"}}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestFolder: what others could read, write or redirect is refused.
func TestFolder(t *testing.T) {
	files := []File{{Resource: "a"}}
	base := filepath.Dir(folder(t))
	real := filepath.Join(base, "real")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(base, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(base, "foreign")
	if err := errors.Join(os.Mkdir(foreign, 0o700), os.Mkdir(filepath.Join(foreign, "current"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"a link":                     {Dir: link, Files: files},
		"writable by others":         {Dir: open, Files: files},
		"current is not our link":    {Dir: foreign, Files: files},
		"a path that leads out":      {Dir: real, Files: []File{{Resource: "a", Path: "../x"}}},
		"an absolute path":           {Dir: real, Files: []File{{Resource: "a", Path: "/etc/x"}}},
		"two files at one path":      {Dir: real, Files: []File{{Resource: "a"}, {Resource: "b", Path: "a"}}},
		"nothing":                    {Dir: real},
		"on a disk":                  {Dir: t.TempDir(), Files: files},
		"a template that is no file": {Dir: real, Templates: []Template{{Source: "/none", Path: "p"}}},
	} {
		if name == "on a disk" {
			var fsys syscall.Statfs_t
			if err := syscall.Statfs(cfg.Dir, &fsys); err == nil && uint32(fsys.Type) == tmpfsMagic {
				continue
			}
		}
		if d, err := New(cfg); err == nil {
			d.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestPlantedLinksAreNotFollowed: a link that somebody put into the folder meanwhile leads nowhere.
func TestPlantedLinksAreNotFollowed(t *testing.T) {
	dir := folder(t)
	d := newDelivery(t, Config{Dir: dir, Files: []File{{Resource: "a"}}})
	d.give(t, secret("a", "1", "one"))
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	next := fmt.Sprintf("gen-%d-%06d", os.Getpid(), 2)
	if err := os.Symlink(filepath.Dir(victim), filepath.Join(dir, next)); err != nil {
		t.Fatal(err)
	}
	if err := d.Take(t.Context(), secret("a", "2", "two")); err == nil {
		t.Error("wrote through a planted link")
	}
	if b, _ := os.ReadFile(victim); string(b) != "mine" {
		t.Errorf("the victim's file is %q", b)
	}
	if content(t, dir, "a") != "one" {
		t.Error("the generation in force changed")
	}
	d.give(t, secret("a", "2", "two")) // the next try takes another name
}

// TestFullDisk: a version that does not fit is not acknowledged, and the one before stays whole.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	d := newDelivery(t, Config{Dir: dir, Grace: 10 * time.Millisecond, Files: []File{{Resource: "a"}}})
	d.give(t, secret("a", "1", "one"))
	if err := d.Take(t.Context(), secret("a", "2", strings.Repeat("x", 128<<10))); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if content(t, dir, "a") != "one" {
		t.Error("the version before is gone")
	}
	d.give(t, secret("a", "3", "three"))
}

func TestOnChange(t *testing.T) {
	dir, out := folder(t), filepath.Join(t.TempDir(), "ran")
	allow := filepath.Join(t.TempDir(), "allow")
	d := newDelivery(t, Config{Dir: dir, Files: []File{{Resource: "a"}}, OnChange: Command{
		Argv: []string{"sh", "-c", `cat "$1/current/a" >> "$2"; test -e "$3"`, "x", dir, out, allow}, Required: true,
	}})
	if err := d.Take(t.Context(), secret("a", "1", "one")); err == nil {
		t.Error("acknowledged although the required command failed")
	}
	if content(t, dir, "a") != "one" {
		t.Error("the file is not in place")
	}
	if err := os.WriteFile(allow, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.give(t, secret("a", "1", "one")) // again: only the command is owed
	d.give(t, secret("a", "1", "one")) // and now nothing
	if b, _ := os.ReadFile(out); string(b) != "oneone" {
		t.Errorf("ran with %q", b)
	}
	start := time.Now()
	if err := (Command{Argv: []string{"sleep", "60"}, Timeout: 50 * time.Millisecond}).exec(t.Context()); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("a command that hangs: %v after %s", err, time.Since(start))
	}
}

// TestSocket: a caller is held until there is something, and never answered with nothing.
func TestSocket(t *testing.T) {
	dir := folder(t)
	d := newDelivery(t, Config{Dir: dir, Files: []File{{Resource: "db/orders"}}})
	sock := Socket{Path: filepath.Join(t.TempDir(), "s"), GID: -1}
	l, err := sock.Listen()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(sock.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v %v", info.Mode(), err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- d.Serve(ctx, l, sock) }()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock.Path)
	}}}
	get := func(path string) (int, string, string) {
		t.Helper()
		resp, err := c.Get("http://agent" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b), resp.Header.Get("ETag")
	}
	if code, _, _ := get("/v1/health"); code != http.StatusServiceUnavailable {
		t.Errorf("healthy without a secret: %d", code)
	}
	if code, _, _ := get("/v1/secrets/db/orders?timeout=50ms"); code != http.StatusServiceUnavailable {
		t.Errorf("got %d", code)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = d.Take(t.Context(), secret("db/orders", "1", "one"))
	}()
	if code, body, etag := get("/v1/secrets/db/orders"); code != 200 || body != "one" || etag != `"1"` {
		t.Errorf("%d %q %s", code, body, etag)
	}
	if code, _, _ := get("/v1/secrets/db/orders?wait=1&timeout=50ms"); code != http.StatusNotModified {
		t.Errorf("got %d", code)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = d.Take(t.Context(), secret("db/orders", "2", "two"))
	}()
	if code, body, _ := get("/v1/secrets/db/orders?wait=1"); code != 200 || body != "two" {
		t.Errorf("%d %q", code, body)
	}
	if code, body, _ := get("/v1/status"); code != 200 || strings.Contains(body, "two") || !strings.Contains(body, `"delivered":"2"`) {
		t.Errorf("%d %s", code, body)
	}
	for path, want := range map[string]int{"/v1/secrets/db/users": 404, "/v1/secrets/db/orders?timeout=x": 400, "/v1/health": 200, "/": 404} {
		if code, _, _ := get(path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := (Socket{Path: dir}).Listen(); err == nil {
		t.Error("replaced what is no socket")
	}
}

// scripted is a Watcher whose versions the test gives.
type scripted struct {
	versions chan agent.Secret
	end      chan error
	refused  chan error // of versions that were not taken; the real one tries them again
}

func newScripted() *scripted {
	return &scripted{make(chan agent.Secret), make(chan error), make(chan error, 16)}
}

func (s *scripted) Watch(ctx context.Context, _ []string, on func(context.Context, agent.Secret) error) error {
	for {
		select {
		case v := <-s.versions:
			if err := on(ctx, v); err != nil {
				s.refused <- err
			}
		case err := <-s.end:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestChild(t *testing.T) {
	run := func(t *testing.T, c Child) (*scripted, string, chan error) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		c.Path, c.Env, c.Grace = "/bin/sh", map[string]string{"PASSWORD": "db"}, 2*time.Second
		c.Argv = []string{"sh", "-c", `trap 'echo hup >> "$0"' HUP; echo "$PASSWORD" >> "$0"; test "$PASSWORD" = last && exit 7; while :; do sleep 0.02; done`, out}
		w := newScripted()
		done := make(chan error, 1)
		go func() { done <- c.Run(t.Context(), w) }()
		return w, out, done
	}
	wrote := func(t *testing.T, out, want string) {
		t.Helper()
		for range 200 {
			if b, _ := os.ReadFile(out); string(b) == want {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		b, _ := os.ReadFile(out)
		t.Fatalf("wrote %q, want %q", b, want)
	}
	t.Run("restart", func(t *testing.T) {
		w, out, done := run(t, Child{Restart: true})
		w.versions <- secret("db", "1", "one")
		wrote(t, out, "one\n")
		w.versions <- secret("db", "2", "last")
		wrote(t, out, "one\nlast\n")
		if err := <-done; !errors.Is(err, ExitError{7}) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		w, out, done := run(t, Child{Signal: syscall.SIGHUP})
		w.versions <- secret("db", "1", "one")
		wrote(t, out, "one\n")
		time.Sleep(100 * time.Millisecond)
		w.versions <- secret("db", "2", "two")
		wrote(t, out, "one\nhup\n")
		w.end <- agent.ErrDenied
		if err := <-done; !errors.Is(err, agent.ErrDenied) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("denied before it started", func(t *testing.T) {
		w, out, done := run(t, Child{})
		w.end <- agent.ErrDenied
		if err := <-done; !errors.Is(err, agent.ErrDenied) {
			t.Errorf("ended with %v", err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Error("the command ran without its secret")
		}
	})
}

// TestRenewedWithoutVersion: a token has no version; each new one replaces the file all the same.
func TestRenewedWithoutVersion(t *testing.T) {
	dir := folder(t)
	d := newDelivery(t, Config{Dir: dir, Files: []File{{Resource: "ear"}}})
	for _, value := range []string{"one", "two"} {
		d.give(t, secret("ear", "", value))
		if got := content(t, dir, "ear"); got != value {
			t.Errorf("the file has %q, want %q", got, value)
		}
	}
	before, err := os.Readlink(filepath.Join(dir, "current"))
	if err != nil {
		t.Fatal(err)
	}
	d.give(t, secret("ear", "", "two"))
	if now, err := os.Readlink(filepath.Join(dir, "current")); err != nil || now != before {
		t.Errorf("the same again made generation %s of %s (%v)", now, before, err)
	}
}

// TestOneThatDoesNotFit keeps no other from being replaced, and what is in place stays on the socket.
func TestOneThatDoesNotFit(t *testing.T) {
	dir := folder(t)
	d := newDelivery(t, Config{Dir: dir, Files: []File{{Resource: "b"}}, Templates: []Template{{Source: tmpl(t, `{{field "a" "user"}}`), Path: "a"}}})
	go func() { _ = d.Take(t.Context(), secret("b", "1", "b1")) }()
	d.give(t, secret("a", "1", `{"user":"u"}`))
	if err := d.Take(t.Context(), secret("a", "2", "no JSON")); err == nil {
		t.Fatal("a version that does not fit is taken")
	}
	d.give(t, secret("b", "2", "b2"))
	if a, b := content(t, dir, "a"), content(t, dir, "b"); a != "u" || b != "b2" {
		t.Errorf("a is %q, b is %q", a, b)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/v1/secrets/a?timeout=1ms", nil)
	r.SetPathValue("resource", "a")
	if d.serveSecret(w, r); w.Code != http.StatusOK || w.Body.String() != `{"user":"u"}` {
		t.Errorf("the socket answers %d %q", w.Code, w.Body)
	}
}

// TestUmask: folders and files are as asked for, not less.
func TestUmask(t *testing.T) {
	base := folder(t)
	dir := filepath.Join(base, "of", "secrets")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	d := newDelivery(t, Config{Dir: dir, Files: []File{{Resource: "db/orders", Mode: 0o444}}})
	d.give(t, secret("db/orders", "1", "one"))
	for _, p := range []string{base, filepath.Dir(dir), dir, filepath.Join(dir, "current"), filepath.Join(dir, "current", "db")} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o711 {
			t.Errorf("%s: %v %v", p, info.Mode(), err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "current", "db", "orders")); err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// TestCommandOutlivesStream: the stream that brought a version may break while the command runs.
func TestCommandOutlivesStream(t *testing.T) {
	dir, out := folder(t), filepath.Join(t.TempDir(), "out")
	d := newDelivery(t, Config{Dir: dir, Running: t.Context(), Files: []File{{Resource: "a"}}, OnChange: Command{
		Argv: []string{"sh", "-c", `echo begun >> "$0"; while ! test -e "$0.go"; do sleep 0.01; done; echo done >> "$0"`, out}, Required: true,
	}})
	stream, broken := context.WithCancel(t.Context())
	taken := make(chan error, 1)
	go func() { taken <- d.Take(stream, secret("a", "1", "one")) }()
	awaited(t, "the command runs", func() bool { return len(lines(out)) == 1 })
	broken()
	if err := os.WriteFile(out+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil || len(lines(out)) != 2 {
		t.Errorf("%v, the command wrote %v", err, lines(out))
	}
}

// TestCommandTimeout ends what the command started, too.
func TestCommandTimeout(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	c := Command{Argv: []string{"sh", "-c", `sh -c 'echo $$ >> "$0"; sleep 300' "$0"; true`, out}, Timeout: time.Second}
	if err := c.exec(t.Context()); err == nil || len(lines(out)) != 1 {
		t.Fatalf("%v, wrote %v", err, lines(out))
	}
	awaited(t, "its child ends", func() bool {
		b, err := os.ReadFile("/proc/" + lines(out)[0] + "/stat")
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}
