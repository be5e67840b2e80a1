// Package unlock opens LUKS2 disks with keys from a broker: at a first boot it
// formats or enrols them, later it opens them, and it changes their keys so
// that a power cut at any step leaves a disk that opens. cryptsetup does the
// work on the disk; what it is given was checked by package luks.
package unlock

import (
	"context"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/luks"
)

// Volume is a disk and the secret that opens it.
type Volume struct {
	Name     string `json:"name"`     // in /dev/mapper
	Device   string `json:"device"`   // a path, or UUID=… of the LUKS2 header
	Resource string `json:"resource"` // "disks/{chip}": its secret is the key
	// Format is "blank" to format the device if it holds nothing but zeros; else a disk without header is refused.
	Format string `json:"format"`
	// Recovery is a second resource, whose secret becomes a recovery key at enrolment (RecoveryText).
	Recovery string `json:"recovery"`
	// Ciphers accepted in the header; default aes-xts-plain64 alone.
	Ciphers  []string `json:"ciphers"`
	Discards bool     `json:"discards"`
	// Systemd says that systemd-cryptsetup opens it, with the key from `claviger-agent keys`.
	Systemd bool `json:"systemd"`
}

// Validate names the field that is wrong.
func (v Volume) Validate() error {
	switch {
	case v.Name == "" || strings.ContainsAny(v.Name, "/ \n") || strings.HasPrefix(v.Name, "-"):
		return fmt.Errorf("name: %q is not a name for /dev/mapper", v.Name)
	case !strings.HasPrefix(v.Device, "/") && !strings.HasPrefix(v.Device, "UUID="):
		return fmt.Errorf("device: %q is neither a path nor UUID=…", v.Device)
	case v.Resource == "":
		return errors.New("resource: missing")
	case v.Format != "" && v.Format != "never" && v.Format != "blank":
		return fmt.Errorf("format: %q is neither never nor blank", v.Format)
	}
	return nil
}

// Broker is where keys come from: an *agent.Client.
type Broker interface {
	GetWith(ctx context.Context, inputs map[string][]byte, resources ...string) ([]agent.Secret, agent.Receipt, error)
}

// Unlocker opens volumes.
type Unlocker struct {
	Broker     Broker
	Cryptsetup Cryptsetup
	// Dir is a folder in memory for copies of headers; default /run/claviger.
	Dir  string
	Logf func(format string, args ...any)

	step func(name string) error // tests cut the power here
}

// Errors of a disk that will not be used.
var (
	ErrNotEnrolled = errors.New("the disk was not enrolled: it has no keyslot that claviger-agent made")
	ErrNotEmpty    = errors.New("the disk holds neither a LUKS2 header nor only zeros: it is not touched")
)

// errChanged: what is about to be enrolled is not what was checked and proven.
var errChanged = errors.New("the disk's header changed while the disk was worked on: nothing was enrolled")

// disk is a device whose header was read, checked and copied to memory.
type disk struct {
	device string
	file   *os.File
	header *luks.Header // nil: blank
	copy   string       // detached header, in memory
}

func (d *disk) close() {
	d.file.Close()
	if d.copy != "" {
		os.RemoveAll(filepath.Dir(d.copy))
	}
}

// Unlock opens a volume, and formats or finishes enrolling it if the volume says so.
func (u *Unlocker) Unlock(ctx context.Context, v Volume) error {
	if _, err := os.Stat("/dev/mapper/" + v.Name); err == nil {
		u.logf("%s is open already", v.Name)
		return nil
	}
	d, key, err := u.prepare(ctx, v)
	if err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	defer d.close()
	defer key.Wipe()
	if err := u.Cryptsetup.open(ctx, d.copy, d.device, v.Name, key.Value, v.Discards); err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	u.logf("%s is open, with version %s of %s", v.Name, key.Version, v.Resource)
	return nil
}

// Key returns the key of a volume whose header is as it was enrolled, for
// somebody else (systemd-cryptsetup) to open it with. That reads the header
// again from the disk, which the host may have changed meanwhile: Unlock is the safer way.
func (u *Unlocker) Key(ctx context.Context, v Volume) ([]byte, error) {
	d, key, err := u.prepare(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Name, err)
	}
	d.close()
	return key.Value, nil
}

// prepare checks a volume, enrols it if it is new and may be, and gets its key. Both results are the caller's to end.
func (u *Unlocker) prepare(ctx context.Context, v Volume) (_ *disk, _ agent.Secret, err error) {
	d, err := u.inspect(ctx, v)
	if err != nil {
		return nil, agent.Secret{}, err
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	newest, err := u.fetch(ctx, v.Resource, "")
	if err != nil {
		return nil, agent.Secret{}, err
	}
	defer newest.Wipe()
	if d.header == nil && v.Format != "blank" {
		return nil, agent.Secret{}, ErrNotEnrolled
	}
	if d.header == nil || len(d.header.Ours()) == 0 {
		if d, err = u.enrol(ctx, v, d, newest); err != nil {
			return nil, agent.Secret{}, fmt.Errorf("enrol: %w", err)
		}
	}
	_, key, err := u.proven(ctx, v, d, newest)
	return d, key, err
}

// inspect finds the device, and checks and copies its header.
func (u *Unlocker) inspect(ctx context.Context, v Volume) (*disk, error) {
	device, err := u.find(ctx, v.Device)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(device)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	d := &disk{device: device, file: f}
	if err := u.read(d, v); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (u *Unlocker) read(d *disk, v Volume) error {
	h, err := luks.Read(d.file)
	if errors.Is(err, luks.ErrNotLUKS2) {
		blank, err := blank(d.file)
		if err != nil {
			return err
		}
		if !blank {
			return fmt.Errorf("%s: %w", d.device, ErrNotEmpty)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.device, err)
	}
	if err := h.Check(luks.Rules{Ciphers: v.Ciphers}); err != nil {
		return fmt.Errorf("%s: %w", d.device, err)
	}
	dir := u.Dir
	if dir == "" {
		dir = "/run/claviger"
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("folder for the header: %w", err)
	}
	private, err := os.MkdirTemp(dir, "header-*") // 0700
	if err != nil {
		return fmt.Errorf("folder for the header: %w", err)
	}
	d.copy = filepath.Join(private, "header")
	out, err := os.OpenFile(d.copy, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy header: %w", err)
	}
	if err := errors.Join(h.WriteDetached(out, d.file), out.Close()); err != nil {
		return err
	}
	d.header = h
	return nil
}

// find waits for a device.
func (u *Unlocker) find(ctx context.Context, device string) (string, error) {
	for waited := false; ; waited = true {
		path, err := locate(device)
		if err == nil {
			return path, nil
		}
		if !waited {
			u.logf("waiting for %s", device)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("there is no disk %s: %w", device, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func locate(device string) (string, error) {
	uuid, ok := strings.CutPrefix(device, "UUID=")
	if !ok {
		_, err := os.Stat(device)
		return device, err
	}
	if link := "/dev/disk/by-uuid/" + uuid; !strings.Contains(uuid, "/") {
		if _, err := os.Stat(link); err == nil {
			return link, nil
		}
	}
	// No udev here: look at every block device.
	blocks, err := os.ReadDir("/sys/class/block")
	if err != nil {
		return "", err
	}
	for _, b := range blocks {
		path := "/dev/" + b.Name()
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		found := luks.UUID(f)
		f.Close()
		if found != "" && strings.EqualFold(found, uuid) {
			return path, nil
		}
	}
	return "", os.ErrNotExist
}

// blank says whether the start and the end of a disk hold only zeros, where every file system, partition table and RAID keeps its mark.
func blank(f *os.File) (bool, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("size of disk: %w", err)
	}
	buf := make([]byte, 64<<10)
	for _, part := range [][2]int64{{0, min(size, 16<<20)}, {max(0, size-1<<20), size}} {
		r := io.NewSectionReader(f, part[0], part[1]-part[0])
		for {
			n, err := r.Read(buf)
			if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
				return false, nil
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return false, fmt.Errorf("read disk: %w", err)
			}
		}
	}
	return size > 0, nil
}

// fetch gets a version of a secret, or the newest.
func (u *Unlocker) fetch(ctx context.Context, resource, version string) (agent.Secret, error) {
	return u.ask(ctx, resource, "version", version)
}

func (u *Unlocker) ask(ctx context.Context, resource, what, version string) (agent.Secret, error) {
	var inputs map[string][]byte
	if version != "" {
		b, err := json.Marshal(map[string]string{what: version})
		if err != nil {
			return agent.Secret{}, err
		}
		inputs = map[string][]byte{resource: b}
	}
	secrets, _, err := u.Broker.GetWith(ctx, inputs, resource)
	if err != nil {
		return agent.Secret{}, err
	}
	if what == "version" && version != "" && secrets[0].Version != version {
		secrets[0].Wipe()
		return agent.Secret{}, fmt.Errorf("asked for version %s of %s, got %s", version, resource, secrets[0].Version)
	}
	if len(secrets[0].Value) < 16 {
		secrets[0].Wipe()
		return agent.Secret{}, fmt.Errorf("the key %s has %d bytes, which is no disk key", resource, len(secrets[0].Value))
	}
	return secrets[0], nil
}

// proven finds a token of ours whose MAC the header keeps under the key for it.
// The key is the caller's to wipe, even if it is a copy of newest.
func (u *Unlocker) proven(ctx context.Context, v Volume, d *disk, newest agent.Secret) (token string, key agent.Secret, err error) {
	err = ErrNotEnrolled
	for _, id := range d.header.Ours() {
		t := d.header.Meta.Tokens[id]
		if t.Resource != v.Resource {
			err = fmt.Errorf("the disk was enrolled with %s, not with %s", t.Resource, v.Resource)
			continue
		}
		key := newest
		key.Value = slices.Clone(newest.Value)
		if t.Version != newest.Version {
			key.Wipe()
			if key, err = u.fetch(ctx, v.Resource, t.Version); err != nil {
				continue
			}
		}
		if err = d.header.Verify(id, key.Value); err == nil {
			return id, key, nil
		}
		key.Wipe()
	}
	return "", agent.Secret{}, err
}

// enrol formats a blank disk, or finishes what a power cut had interrupted, and returns the disk as it then is.
func (u *Unlocker) enrol(ctx context.Context, v Volume, d *disk, key agent.Secret) (*disk, error) {
	if d.header == nil {
		u.logf("formatting %s, which is blank", d.device)
		if err := u.Cryptsetup.format(ctx, d.device, key.Value); err != nil {
			return d, err
		}
		if err := u.did("formatted"); err != nil {
			return d, err
		}
	}
	return u.adopt(ctx, v, d, key)
}

// Enrol adds a keyslot with the broker's key to a volume that oldKey opens.
func (u *Unlocker) Enrol(ctx context.Context, v Volume, oldKey []byte) error {
	d, err := u.inspect(ctx, v)
	if err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	defer func() { d.close() }()
	if d.header == nil {
		return fmt.Errorf("%s: the disk is blank; set \"format\": \"blank\" to have it formatted", v.Name)
	}
	key, err := u.fetch(ctx, v.Resource, "")
	if err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	defer key.Wipe()
	if slot := u.slotOf(ctx, d, key.Value); slot == "" {
		if err := u.Cryptsetup.addKey(ctx, d.copy, d.device, oldKey, key.Value); err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	if d, err = u.adopt(ctx, v, d, key); err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	return nil
}

// adopt writes the token for the keyslot that key opens, and the recovery key.
// A keyslot that this key opens was made by somebody who had it: its cipher is
// no null cipher, which the guard saw to.
func (u *Unlocker) adopt(ctx context.Context, v Volume, old *disk, key agent.Secret) (*disk, error) {
	d, err := u.inspect(ctx, v)
	if err != nil {
		return old, err
	}
	old.close()
	if d.header == nil {
		return d, errors.New("the disk is blank again")
	}
	if old.header != nil && !d.header.SameVolume(old.header) {
		return d, errChanged
	}
	slot := u.slotOf(ctx, d, key.Value)
	if slot == "" {
		return d, ErrNotEnrolled
	}
	if v.Recovery != "" {
		if err := u.addRecovery(ctx, v, d, key); err != nil {
			return d, err
		}
	}
	if err := u.writeToken(ctx, v, d, slot, key); err != nil {
		return d, err
	}
	if err := u.did("token written"); err != nil {
		return d, err
	}
	after, err := u.inspect(ctx, v)
	if err != nil {
		return d, err
	}
	d.close()
	return after, nil
}

func (u *Unlocker) writeToken(ctx context.Context, v Volume, d *disk, slot string, key agent.Secret) error {
	t, err := d.header.NewToken(slot, v.Resource, key.Version, key.Value)
	if err != nil {
		return err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode token: %w", err)
	}
	return u.Cryptsetup.importToken(ctx, d.device, b)
}

// slotOf is a keyslot that key opens, or "". Slots with a token of ours come last: they are known.
func (u *Unlocker) slotOf(ctx context.Context, d *disk, key []byte) string {
	for id := range d.header.Meta.Keyslots {
		if u.Cryptsetup.opens(ctx, d.copy, d.device, id, key) {
			return id
		}
	}
	return ""
}

func (u *Unlocker) addRecovery(ctx context.Context, v Volume, d *disk, key agent.Secret) error {
	secret, err := u.fetch(ctx, v.Recovery, "")
	if err != nil {
		return fmt.Errorf("recovery key: %w", err)
	}
	defer secret.Wipe()
	text := []byte(RecoveryText(secret.Value))
	defer clear(text)
	if u.slotOf(ctx, d, text) != "" {
		return nil
	}
	if err := u.Cryptsetup.addKey(ctx, d.copy, d.device, key.Value, text); err != nil {
		return fmt.Errorf("recovery key: %w", err)
	}
	return u.did("recovery key added")
}

// RecoveryText is a secret as a person types it: base32 (RFC 4648) in groups of four.
func RecoveryText(secret []byte) string {
	s := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)
	var groups []string
	for g := range slices.Chunk([]byte(s), 4) {
		groups = append(groups, string(g))
	}
	return strings.Join(groups, "-")
}

func (u *Unlocker) did(step string) error {
	if u.step != nil {
		return u.step(step)
	}
	return nil
}

func (u *Unlocker) logf(format string, args ...any) {
	if u.Logf != nil {
		u.Logf(format, args...)
	}
}
