package unlock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/luks"
	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
)

// fixture is a whole broker in process, the real cryptsetup, and a disk in a
// file. This machine may lack dm-crypt, so the last step of opening tries the
// key and maps nothing; `make e2e-boot` maps.
type fixture struct {
	broker *brokertest.Broker
	client *agent.Client
	volume Volume
	dir    string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	if testing.Short() {
		t.Skip("needs cryptsetup; left out with -short")
	}
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		t.Skipf("cryptsetup is not installed (Debian: apt-get install cryptsetup-bin): %v", err)
	}
	b := brokertest.Start(t, func(c *server.Config) {
		c.Catalog = append(c.Catalog,
			server.Entry{Pattern: "luks/{vm}", Source: "local", Key: "luks/{vm}", Policy: "disks", CreateBytes: 32, Rekey: true},
			server.Entry{Pattern: "recovery/{vm}", Source: "local", Key: "recovery/{vm}", Policy: "disks", CreateBytes: 32})
	})
	f := &fixture{broker: b, client: b.Client(t, teesim.ReportOptions{}), dir: t.TempDir()}
	f.volume = Volume{Name: "claviger-test-root", Device: f.blank(t, "disk.img"), Resource: "luks/vm-1", Format: "blank"}
	return f
}

func (f *fixture) blank(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(f.dir, name)
	file, err := os.Create(path)
	if err == nil {
		err = errors.Join(file.Truncate(32<<20), file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fixture) unlocker(t *testing.T) *Unlocker {
	return &Unlocker{Broker: f.client, Cryptsetup: Cryptsetup{TestOnly: true}, Dir: filepath.Join(f.dir, "run"), Logf: t.Logf}
}

func (f *fixture) header(t *testing.T) *luks.Header {
	t.Helper()
	file, err := os.Open(f.volume.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	h, err := luks.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestFirstAndLaterBoots(t *testing.T) {
	f := newFixture(t)
	f.volume.Recovery = "recovery/vm-1"
	u := f.unlocker(t)
	for range 2 {
		if err := u.Unlock(t.Context(), f.volume); err != nil {
			t.Fatal(err)
		}
	}
	h := f.header(t)
	if len(h.Meta.Keyslots) != 2 || len(h.Ours()) != 1 {
		t.Errorf("%d keyslots, tokens %v", len(h.Meta.Keyslots), h.Meta.Tokens)
	}
	if left, err := os.ReadDir(filepath.Join(f.dir, "run")); err != nil || len(left) != 0 {
		t.Errorf("copies of headers are left over: %v, %v", left, err)
	}
	// The recovery key as an operator reads it from the store opens the disk.
	s, _, err := f.client.Get(t.Context(), "recovery/vm-1")
	if err != nil {
		t.Fatal(err)
	}
	text := RecoveryText(s[0].Value)
	if err := u.Cryptsetup.run(t.Context(), []byte(text), nil, "open", "--test-passphrase", "--key-file", "-", f.volume.Device); err != nil {
		t.Errorf("recovery key %q: %v", text, err)
	}
}

// TestCutAnywhere cuts the power after each step of enrolling and of changing
// the key. The next boot opens the disk, and the next call finishes.
func TestCutAnywhere(t *testing.T) {
	cut := errors.New("power cut")
	cutAfter := func(u *Unlocker, step string) {
		u.step = func(name string) error {
			if name == step {
				return cut
			}
			return nil
		}
	}
	for _, step := range []string{"formatted", "recovery key added", "token written"} {
		t.Run("enrol/"+step, func(t *testing.T) {
			f := newFixture(t)
			f.volume.Recovery = "recovery/vm-1"
			u := f.unlocker(t)
			cutAfter(u, step)
			if err := u.Unlock(t.Context(), f.volume); !errors.Is(err, cut) {
				t.Fatalf("got %v", err)
			}
			if err := f.unlocker(t).Unlock(t.Context(), f.volume); err != nil {
				t.Error(err)
			}
			if h := f.header(t); len(h.Meta.Keyslots) != 2 {
				t.Errorf("%d keyslots", len(h.Meta.Keyslots))
			}
		})
	}
	steps := []string{"next version made", "keyslot added", "token written", "confirmed", "old keyslot removed", "old token removed", "none"}
	for _, step := range steps {
		t.Run("rekey/"+step, func(t *testing.T) {
			f := newFixture(t)
			if err := f.unlocker(t).Unlock(t.Context(), f.volume); err != nil {
				t.Fatal(err)
			}
			old, _, err := f.client.Get(t.Context(), f.volume.Resource)
			if err != nil {
				t.Fatal(err)
			}
			u := f.unlocker(t)
			cutAfter(u, step)
			if err := u.Rekey(t.Context(), f.volume); (step == "none") != (err == nil) || err != nil && !errors.Is(err, cut) {
				t.Fatalf("got %v", err)
			}
			if err := f.unlocker(t).Unlock(t.Context(), f.volume); err != nil {
				t.Fatalf("the disk does not open after a cut: %v", err)
			}
			if step == "none" || strings.HasPrefix(step, "old ") {
				// The old key is gone, so it is done: another call would change the key again.
			} else if err := f.unlocker(t).Rekey(t.Context(), f.volume); err != nil {
				t.Fatalf("cannot go on after a cut: %v", err)
			}
			if err := f.unlocker(t).Unlock(t.Context(), f.volume); err != nil {
				t.Fatal(err)
			}
			h := f.header(t)
			if len(h.Meta.Keyslots) != 1 || len(h.Ours()) != 1 || h.Meta.Tokens[h.Ours()[0]].Version != "2" {
				t.Errorf("%d keyslots, tokens %+v", len(h.Meta.Keyslots), h.Meta.Tokens)
			}
			if u.slotOf(t.Context(), f.inspected(t), old[0].Value) != "" {
				t.Error("the old key still opens the disk")
			}
		})
	}
}

func (f *fixture) inspected(t *testing.T) *disk {
	t.Helper()
	d, err := f.unlocker(t).inspect(t.Context(), f.volume)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

// TestRefuses: what is not the machine's own disk is neither opened nor touched.
func TestRefuses(t *testing.T) {
	f := newFixture(t)
	if err := f.unlocker(t).Unlock(t.Context(), f.volume); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(f.volume.Device)
	if err != nil {
		t.Fatal(err)
	}
	u := f.unlocker(t)
	try := func(t *testing.T, change func(v *Volume)) error {
		t.Helper()
		v := f.volume
		change(&v)
		before, err := os.ReadFile(v.Device)
		if err != nil {
			t.Fatal(err)
		}
		refusal := u.Unlock(t.Context(), v)
		after, err := os.ReadFile(v.Device)
		if err != nil || string(before) != string(after) {
			t.Errorf("the disk was written to (%v)", err)
		}
		return refusal
	}
	t.Run("somebody else's data", func(t *testing.T) {
		err := try(t, func(v *Volume) {
			v.Device = f.blank(t, "data.img")
			if err := exec.Command("mkfs.ext4", "-q", v.Device).Run(); err != nil {
				t.Skipf("mkfs.ext4: %v", err)
			}
		})
		if !errors.Is(err, ErrNotEmpty) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("blank, but formatting was not asked for", func(t *testing.T) {
		if err := try(t, func(v *Volume) { v.Device, v.Format = f.blank(t, "blank.img"), "" }); !errors.Is(err, ErrNotEnrolled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another machine's disk", func(t *testing.T) {
		if err := try(t, func(v *Volume) { v.Resource = "luks/vm-2" }); err == nil || !strings.Contains(err.Error(), "enrolled with luks/vm-1") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a disk formatted with another key", func(t *testing.T) {
		err := try(t, func(v *Volume) {
			v.Device = f.blank(t, "other.img")
			if err := u.Cryptsetup.format(t.Context(), v.Device, []byte(strings.Repeat("x", 32))); err != nil {
				t.Fatal(err)
			}
		})
		if !errors.Is(err, ErrNotEnrolled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a segment moved", func(t *testing.T) {
		// A whole and well-formed header, with everything but our MAC in order: as `cryptsetup repair` would take it.
		err := try(t, func(v *Volume) {
			v.Device = filepath.Join(f.dir, "moved.img")
			if err := os.WriteFile(v.Device, rewritten(t, good, `"sector_size":4096`, `"sector_size":512`), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		if !errors.Is(err, luks.ErrNotEnrolled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a null cipher", func(t *testing.T) {
		err := try(t, func(v *Volume) {
			v.Device = filepath.Join(f.dir, "null.img")
			if err := os.WriteFile(v.Device, rewritten(t, good, `"encryption":"aes-xts-plain64"`, `"encryption":"cipher_null-ecb"`), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		if err == nil || !strings.Contains(err.Error(), `cipher is "cipher_null-ecb"`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a null cipher that only cryptsetup sees", func(t *testing.T) {
		// json-c takes a name up to its first NUL, and the last of two members.
		err := try(t, func(v *Volume) {
			v.Device = filepath.Join(f.dir, "nul.img")
			if err := os.WriteFile(v.Device, rewritten(t, good, `"iv_tweak":"0",`, `"iv_tweak":"0","encryption\u0000":"cipher_null-ecb",`), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		if err == nil || !strings.Contains(err.Error(), "control characters") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("denied", func(t *testing.T) {
		u.Broker = f.broker.Client(t, teesim.ReportOptions{Measurement: teesim.Measurement("evil")})
		if err := try(t, func(*Volume) {}); !errors.Is(err, agent.ErrDenied) {
			t.Errorf("got %v", err)
		}
	})
}

// TestHeaderSwappedMeanwhile: the host puts a header for a volume key of its
// own on the disk after the real one was checked. Its keyslot opens with the
// disk's key, as one with a null cipher would. No keyslot is made for that volume key.
func TestHeaderSwappedMeanwhile(t *testing.T) {
	f := newFixture(t)
	u := f.unlocker(t)
	if err := u.Unlock(t.Context(), f.volume); err != nil {
		t.Fatal(err)
	}
	key, _, err := f.client.Get(t.Context(), f.volume.Resource)
	if err != nil {
		t.Fatal(err)
	}
	hosts := f.blank(t, "host.img")
	if err := u.Cryptsetup.format(t.Context(), hosts, key[0].Value); err != nil {
		t.Fatal(err)
	}
	swap := func() {
		b, err := os.ReadFile(hosts)
		if err == nil {
			err = os.WriteFile(f.volume.Device, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	before := f.inspected(t)
	swap()
	if err := u.Cryptsetup.addKey(t.Context(), before.copy, before.device, key[0].Value, []byte("the next key of the disk")); err == nil {
		t.Error("cryptsetup made a keyslot in the host's header")
	}
	after := f.inspected(t)
	if len(after.header.Meta.Keyslots) != 1 {
		t.Errorf("the host's header has keyslots %v", after.header.Meta.Keyslots)
	}
	d, err := u.adopt(t.Context(), f.volume, before, key[0])
	if d != nil {
		defer d.close()
	}
	if !errors.Is(err, errChanged) {
		t.Errorf("another volume was taken over: %v", err)
	}
}

func rewritten(t *testing.T, image []byte, old, text string) []byte {
	t.Helper()
	out := slices.Clone(image)
	if err := testservers.RewriteLUKS(out, old, text); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTwoFirstBoots: two machines that share a resource at their first boot get one key.
func TestTwoFirstBoots(t *testing.T) {
	f := newFixture(t)
	volumes := []Volume{f.volume, f.volume}
	volumes[1].Device = f.blank(t, "second.img")
	var wg sync.WaitGroup
	for _, v := range volumes {
		wg.Go(func() {
			if err := f.unlocker(t).Unlock(t.Context(), v); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, v := range volumes {
		if err := f.unlocker(t).Unlock(context.Background(), v); err != nil {
			t.Error(err)
		}
	}
}

// TestEnrol takes over a disk that a passphrase opens.
func TestEnrol(t *testing.T) {
	f := newFixture(t)
	u := f.unlocker(t)
	f.volume.Format = ""
	if err := u.Cryptsetup.format(t.Context(), f.volume.Device, []byte("a passphrase of old")); err != nil {
		t.Fatal(err)
	}
	if err := u.Enrol(t.Context(), f.volume, []byte("another")); err == nil {
		t.Error("enrolled with a wrong key")
	}
	if err := u.Unlock(t.Context(), f.volume); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("not enrolled, but: %v", err)
	}
	if err := u.Enrol(t.Context(), f.volume, []byte("a passphrase of old")); err != nil {
		t.Fatal(err)
	}
	if err := u.Unlock(t.Context(), f.volume); err != nil {
		t.Error(err)
	}
}
