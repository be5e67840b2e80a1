package unlock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Cryptsetup runs the program. Keys reach it by pipes, never by its arguments.
type Cryptsetup struct {
	Path string // default "cryptsetup"
	// TestOnly has Open try the key and map nothing, for machines without dm-crypt (our tests).
	TestOnly bool
}

// A key of 256 random bits needs no stretching; a boot should not wait for it.
var keyslotOptions = []string{
	"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256",
	"--keyslot-cipher", "aes-xts-plain64", "--keyslot-key-size", "512",
}

// run feeds stdin and further keys, the latter as files /dev/fd/3 and up.
func (c Cryptsetup) run(ctx context.Context, stdin []byte, keys [][]byte, args ...string) error {
	path := c.Path
	if path == "" {
		path = "cryptsetup"
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--batch-mode"}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	for _, k := range keys {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("run cryptsetup: %w", err)
		}
		defer r.Close()
		go func() { // a key may be longer than what a pipe holds; what cryptsetup does not read ends with r
			_, _ = w.Write(k)
			w.Close()
		}()
		cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	}
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("cryptsetup is not installed (or not in this initramfs)")
	}
	if err != nil {
		return fmt.Errorf("cryptsetup %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
	}
	return nil
}

// open maps device as name, by the header in a file of ours.
func (c Cryptsetup) open(ctx context.Context, header, device, name string, key []byte, discards bool) error {
	args := []string{"open", "--type", "luks2", "--header", header, "--key-file", "-"}
	switch {
	case c.TestOnly:
		return c.run(ctx, key, nil, append(args, "--test-passphrase", device)...)
	case discards:
		args = append(args, "--allow-discards")
	}
	return c.run(ctx, key, nil, append(args, device, name)...)
}

// opens says whether key opens keyslot slot.
func (c Cryptsetup) opens(ctx context.Context, header, device, slot string, key []byte) bool {
	return c.run(ctx, key, nil, "open", "--type", "luks2", "--header", header, "--test-passphrase", "--key-slot", slot, "--key-file", "-", device) == nil
}

func (c Cryptsetup) format(ctx context.Context, device string, key []byte) error {
	return c.run(ctx, key, nil, "luksFormat", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512",
		"--hash", "sha256", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", device)
}

// addKey adds a keyslot for key. cryptsetup reads the header from the device
// again to do so, and the host may have put another one there: the volume key
// therefore comes from the header that was checked, and cryptsetup refuses it
// if the device's header is for another one.
func (c Cryptsetup) addKey(ctx context.Context, header, device string, old, key []byte) error {
	volume, err := c.volumeKey(ctx, header, old)
	if err != nil {
		return err
	}
	defer clear(volume)
	args := append([]string{"luksAddKey", "--volume-key-file", "/dev/fd/3"}, keyslotOptions...)
	return c.run(ctx, nil, [][]byte{volume, key}, append(args, device, "/dev/fd/4")...)
}

// volumeKey gets the volume key out of a header in a file, by way of a file beside it, in memory too.
func (c Cryptsetup) volumeKey(ctx context.Context, header string, key []byte) ([]byte, error) {
	path := header + ".key"
	defer os.Remove(path)
	if err := c.run(ctx, key, nil, "luksDump", "--dump-volume-key", "--volume-key-file", path, "--key-file", "-", header); err != nil {
		return nil, err
	}
	volume, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read volume key: %w", err)
	}
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil { // not truncated: these very pages
		_, err = f.Write(make([]byte, len(volume)))
		if err := errors.Join(err, f.Close()); err != nil {
			clear(volume)
			return nil, fmt.Errorf("wipe volume key: %w", err)
		}
	}
	return volume, nil
}

// killSlot removes a keyslot; key has to open another one.
func (c Cryptsetup) killSlot(ctx context.Context, device, slot string, key []byte) error {
	return c.run(ctx, key, nil, "luksKillSlot", "--key-file", "-", device, slot)
}

func (c Cryptsetup) importToken(ctx context.Context, device string, token []byte) error {
	return c.run(ctx, token, nil, "token", "import", "--json-file", "-", device)
}

func (c Cryptsetup) removeToken(ctx context.Context, device, id string) error {
	return c.run(ctx, nil, nil, "token", "remove", "--token-id", id, device)
}
