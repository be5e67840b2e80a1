package keysocket

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// call does what systemd does: it binds an abstract name, connects, shuts down its sending side, and reads to the end.
func call(t *testing.T, socket, name string, wait time.Duration) ([]byte, error) {
	t.Helper()
	local := &net.UnixAddr{Name: "@" + rand.Text()[:16] + "/" + name, Net: "unix"}
	c, err := net.DialUnix("unix", local, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	return io.ReadAll(c)
}

func serve(t *testing.T, s *Server) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "keysocket-") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s.Logf = func(string, ...any) {}
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return path
}

func TestKeyArrives(t *testing.T) {
	s := serve(t, &Server{Key: func(_ context.Context, a Ask) ([]byte, error) {
		return []byte("key of " + a.String() + "\n"), nil
	}})
	for name, want := range map[string]string{
		"cryptsetup/data":           "key of volume data\n",
		"unit/app.service/disk.key": "key of credential disk.key of app.service\n",
	} {
		if got, err := call(t, s, name, 5*time.Second); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// TestNeverNothing: whatever goes wrong, a caller is not answered with nothing, but held; and it gets its key once there is one.
func TestNeverNothing(t *testing.T) {
	var ready atomic.Bool
	s := serve(t, &Server{Retry: 20 * time.Millisecond, Key: func(_ context.Context, a Ask) ([]byte, error) {
		switch {
		case a.Credential == "empty":
			return nil, nil
		case !ready.Load():
			return nil, errors.New("the broker denied the request")
		}
		return []byte("late"), nil
	}})
	for _, name := range []string{"unit/app.service/key", "unit/app.service/empty", "cryptsetup/data", "nonsense", "unit/app.service", "cryptsetup/"} {
		if got, err := call(t, s, name, 150*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || len(got) != 0 {
			t.Errorf("%s: got %q, %v; want to be held", name, got, err)
		}
	}
	time.AfterFunc(100*time.Millisecond, func() { ready.Store(true) })
	if got, err := call(t, s, "unit/app.service/key", 5*time.Second); err != nil || string(got) != "late" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestPassphrase(t *testing.T) {
	s := serve(t, &Server{Key: func(context.Context, Ask) ([]byte, error) { return nil, ErrPassphrase }})
	if got, err := call(t, s, "cryptsetup/data", 5*time.Second); err != nil || len(got) != 0 {
		t.Errorf("got %q, %v; want to be closed without data, so that systemd asks a person", got, err)
	}
}

// TestGone: a caller that went away does not keep its place.
func TestGone(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, &Server{Max: 1, Retry: time.Hour, Key: func(_ context.Context, a Ask) ([]byte, error) {
		asked.Add(1)
		if strings.HasPrefix(a.Volume, "never") {
			return nil, errors.New("denied")
		}
		return []byte("key"), nil
	}})
	if _, err := call(t, s, "cryptsetup/never", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if got, err := call(t, s, "cryptsetup/data", 10*time.Second); err != nil || string(got) != "key" {
		t.Errorf("got %q, %v", got, err)
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}
