package unlock

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// people type what they are told to, one passphrase a question, and then nothing.
type people struct {
	mu    sync.Mutex
	asked []string // guarded by mu
	types []string // guarded by mu
}

func (p *people) ask(ctx context.Context, prompt string) ([]byte, error) {
	p.mu.Lock()
	p.asked = append(p.asked, prompt)
	var typed string
	if len(p.types) > 0 {
		typed, p.types = p.types[0], p.types[1:]
	}
	p.mu.Unlock()
	if typed == "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return []byte(typed), nil
}

func silent(ctx context.Context, _ Volume) error { // a network on which nobody answers
	<-ctx.Done()
	return ctx.Err()
}

// enrolled is a fixture whose disk is enrolled, with a recovery key, and that key as it is typed.
func enrolled(t *testing.T) (*fixture, string) {
	t.Helper()
	f := newFixture(t)
	f.volume.Recovery = "recovery/vm-1"
	if err := f.unlocker(t).Unlock(t.Context(), f.volume); err != nil {
		t.Fatal(err)
	}
	s, _, err := f.client.Get(t.Context(), "recovery/vm-1")
	if err != nil {
		t.Fatal(err)
	}
	return f, RecoveryText(s[0].Value)
}

// TestOpenAllAbsentDisk: a disk that is not there neither keeps another closed, nor has anybody wait past the deadline.
func TestOpenAllAbsentDisk(t *testing.T) {
	f, recovery := enrolled(t)
	u := f.unlocker(t)
	absent := Volume{Name: "claviger-test-data", Device: filepath.Join(f.dir, "not-there"), Resource: "luks/vm-1"}
	for name, o := range map[string]Opening{
		"by the broker":     {ByBroker: u.Unlock, Timeout: 3 * time.Second},
		"by the passphrase": {ByBroker: silent, Ask: (&people{types: []string{recovery}}).ask, Timeout: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			open, err := u.OpenAll(t.Context(), []Volume{absent, f.volume}, o)
			if open != 1 || err == nil {
				t.Errorf("%d open, %v", open, err)
			}
		})
	}
}

// TestOpenAllRace: the broker and the keyboard race from the beginning, and either may win.
func TestOpenAllRace(t *testing.T) {
	f, recovery := enrolled(t)
	u := f.unlocker(t)
	t.Run("broker", func(t *testing.T) {
		p := &people{}
		asked := make(chan struct{})
		o := Opening{Timeout: time.Minute, Ask: func(ctx context.Context, prompt string) ([]byte, error) {
			close(asked)
			return p.ask(ctx, prompt)
		}, ByBroker: func(ctx context.Context, v Volume) error {
			select { // only once a person is being asked
			case <-asked:
			case <-ctx.Done():
			}
			return u.Unlock(ctx, v)
		}}
		if open, err := u.OpenAll(t.Context(), []Volume{f.volume}, o); open != 1 || err != nil {
			t.Errorf("%d open, %v", open, err)
		}
	})
	t.Run("passphrase", func(t *testing.T) {
		p := &people{types: []string{"wrong", recovery}}
		if open, err := u.OpenAll(t.Context(), []Volume{f.volume}, Opening{ByBroker: silent, Ask: p.ask, Timeout: time.Minute}); open != 1 || err != nil {
			t.Errorf("%d open, %v", open, err)
		}
		if len(p.asked) != 2 || !strings.Contains(p.asked[0], f.volume.Name) {
			t.Errorf("asked %q", p.asked)
		}
	})
	t.Run("passphrase after a denial", func(t *testing.T) {
		p := &people{types: []string{recovery}}
		denied := func(context.Context, Volume) error { return errors.New("denied") }
		if open, err := u.OpenAll(t.Context(), []Volume{f.volume}, Opening{ByBroker: denied, Ask: p.ask, Timeout: time.Millisecond}); open != 1 || err != nil {
			t.Logf("asked %q", p.asked)
			t.Errorf("%d open, %v", open, err)
		}
	})
	t.Run("a broker that comes back", func(t *testing.T) {
		tries := 0
		o := Opening{Ask: (&people{}).ask, Timeout: time.Minute, Again: time.Millisecond, ByBroker: func(ctx context.Context, v Volume) error {
			if tries++; tries < 3 {
				return errors.New("no answer in time")
			}
			return u.Unlock(ctx, v)
		}}
		if open, err := u.OpenAll(t.Context(), []Volume{f.volume}, o); open != 1 || err != nil || tries != 3 {
			t.Errorf("%d open, %v, %d tries", open, err, tries)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		nobody := func(context.Context, string) ([]byte, error) { return nil, io.EOF }
		if open, err := u.OpenAll(t.Context(), []Volume{f.volume}, Opening{ByBroker: silent, Ask: nobody, Timeout: time.Second}); open != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%d open, %v", open, err)
		}
	})
	t.Run("an end", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := &people{}
		ask := func(ctx context.Context, prompt string) ([]byte, error) {
			cancel()
			return p.ask(ctx, prompt)
		}
		if open, err := u.OpenAll(ctx, []Volume{f.volume}, Opening{ByBroker: silent, Ask: ask, Timeout: time.Hour}); open != 0 || err == nil {
			t.Errorf("%d open, %v", open, err)
		}
	})
}

// TestLongKeys: cryptsetup gets keys longer than a pipe holds.
func TestLongKeys(t *testing.T) {
	f := newFixture(t)
	u := f.unlocker(t)
	old, long := slices.Repeat([]byte("0123456789abcdef"), 8<<10), slices.Repeat([]byte("fedcba9876543210"), 8<<10)
	if err := u.Cryptsetup.format(t.Context(), f.volume.Device, old); err != nil {
		t.Fatal(err)
	}
	d := f.inspected(t)
	defer d.close()
	if err := u.Cryptsetup.addKey(t.Context(), d.copy, d.device, old, long); err != nil {
		t.Fatal(err)
	}
	if err := u.Cryptsetup.run(t.Context(), long, nil, "open", "--test-passphrase", "--key-file", "-", f.volume.Device); err != nil {
		t.Error(err)
	}
}
