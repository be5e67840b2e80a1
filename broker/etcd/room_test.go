package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/claviger/claviger/broker/state"
)

// small is a member that is soon full.
func small(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := StartMember(t.Context(), Member{Dir: dir, Quota: MinQuota, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", what)
}

// fillAsGuests writes until the store refuses requests' writes, and returns how many keys that were.
func fillAsGuests(t *testing.T, s *Store) int {
	t.Helper()
	big := make([]byte, 128<<10)
	for n := range 1000 {
		if err := s.Put(t.Context(), fmt.Sprintf("fill/%d", n), big); err != nil {
			if !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("never full")
	return 0
}

// fillAsOperator goes on until etcd itself refuses.
func fillAsOperator(t *testing.T, s *Store) {
	t.Helper()
	big := make([]byte, 128<<10)
	for n := range 1000 {
		if _, _, err := s.Commit(t.Context(), state.Change{Key: fmt.Sprintf("config/fill/%d", n), Value: big}); err != nil {
			if !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("never full")
}

// TestReserve: what requests write stops while there is room for revocations
// left, and goes on by itself when others are gone.
func TestReserve(t *testing.T) {
	s := small(t, t.TempDir())
	n := fillAsGuests(t, s)
	refused := func() error {
		_, err := s.CreateUntil(t.Context(), "nonces/x", time.Now())
		return err
	}
	if err := refused(); !errors.Is(err, ErrFull) {
		t.Errorf("a nonce was spent in a store that is all but full: %v", err)
	}
	if ok, err := s.PutIf(t.Context(), "sealed/x", nil, 0); ok || !errors.Is(err, ErrFull) {
		t.Errorf("put-if: %v %v", ok, err)
	}
	if s.Health() == nil {
		t.Error("says that all is well")
	}
	if _, done, err := s.Commit(t.Context(), state.Change{Key: "config/revocations/x", Value: make([]byte, 1<<10)}); !done || err != nil {
		t.Errorf("no room for a revocation: %v", err)
	}
	for i := range n / 2 {
		if _, err := s.Delete(t.Context(), fmt.Sprintf("fill/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "nonces are spent again", func() bool { return refused() == nil })
	if err := s.Health(); err != nil {
		t.Error(err)
	}
	if z := s.Size(); z.Bytes > z.Quota*3/4 {
		t.Errorf("the file was not made smaller: %+v", z)
	}
}

// TestFullStoreRecovers: etcd's alarm is permanent for whoever does nothing.
// When room was made it is lifted, while running and at the start.
func TestFullStoreRecovers(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %t", restart), func(t *testing.T) {
			dir := t.TempDir()
			s := small(t, dir)
			n := fillAsGuests(t, s)
			fillAsOperator(t, s)
			eventually(t, "the alarm is reported", func() bool { err := s.Health(); return err != nil && strings.Contains(err.Error(), "NOSPACE") })
			if restart {
				s.Close()
				s = small(t, dir) // it starts, and serves what is there
				if s.Health() == nil {
					t.Error("forgot that it is full")
				}
				if pairs, err := s.List(t.Context(), "fill/"); err != nil || len(pairs) != n {
					t.Fatalf("%d of %d keys: %v", len(pairs), n, err)
				}
			}
			for i := range n {
				if _, err := s.Delete(t.Context(), fmt.Sprintf("fill/%d", i)); err != nil {
					t.Fatal(err)
				}
			}
			if restart { // before anybody could tidy
				s.Close()
				s = small(t, dir)
				if err := s.Health(); err != nil {
					t.Errorf("after a start with room: %v", err)
				}
			}
			eventually(t, "all is well", func() bool { return s.Health() == nil })
			if ok, err := s.CreateUntil(t.Context(), "nonces/x", time.Now()); !ok || err != nil {
				t.Errorf("cannot spend a nonce: %v", err)
			}
			if alarms, other, err := s.alarms(t.Context()); err != nil || len(alarms)+len(other) > 0 {
				t.Errorf("alarms %v %v: %v", alarms, other, err)
			}
		})
	}
}

// TestChurnNeedsNoMoreRoom: keys that are written again and again fill the store
// with what nobody needs; it is tidied in time, and no write fails for long.
func TestChurnNeedsNoMoreRoom(t *testing.T) {
	s := small(t, t.TempDir())
	big := make([]byte, 256<<10)
	for i := range 300 { // 75 MiB
		eventually(t, "a write succeeds", func() bool { return s.Put(t.Context(), fmt.Sprintf("churn/%d", i%4), big) == nil })
	}
	if z := s.Size(); z.Bytes >= z.Quota {
		t.Errorf("%+v", z)
	}
}

func TestQuotaTooSmall(t *testing.T) {
	if _, err := StartMember(t.Context(), Member{Dir: t.TempDir(), Quota: MinQuota - 1}); err == nil {
		t.Error("accepted")
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestEtcdIsHeard: why etcd ends the process is in our log, and a member that
// comes and goes without trouble says nothing of errors.
func TestEtcdIsHeard(t *testing.T) {
	var b syncBuffer
	log := slog.New(slog.NewJSONHandler(&b, nil))
	dir := t.TempDir()
	for range 2 {
		s, err := StartMember(t.Context(), Member{Dir: dir, Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(b.String(), "ERROR") {
		t.Errorf("said of nothing: %s", b.String())
	}
	z := zap.New(bridge{log}, zap.WithFatalHook(zapcore.WriteThenPanic)).With(zap.String("member", "claviger"))
	func() {
		defer func() { _ = recover() }()
		z.Fatal("cannot commit", zap.Error(errors.New("no space left on device")))
	}()
	for _, want := range []string{"cannot commit", "no space left on device", "ERROR", "member", "ends this process"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in %s", want, b.String())
		}
	}
	before := b.String()
	z.Info("all is well")
	if b.String() != before {
		t.Error("passes on what is no warning")
	}
}
