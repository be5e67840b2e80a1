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
		_, err = w.Write(k) // far less than a pipe holds
		if err := errors.Join(err, w.Close()); err != nil {
			return fmt.Errorf("run cryptsetup: %w", err)
		}
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

// ask has a person type a passphrase.
func (c Cryptsetup) ask(ctx context.Context, header, device, name string) error {
	path := c.Path
	if path == "" {
		path = "cryptsetup"
	}
	cmd := exec.CommandContext(ctx, path, "open", "--type", "luks2", "--header", header, "--tries", "5", device, name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("open %s by passphrase: %w", name, err)
	}
	return nil
}

func (c Cryptsetup) format(ctx context.Context, device string, key []byte) error {
	return c.run(ctx, key, nil, "luksFormat", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512",
		"--hash", "sha256", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", device)
}

func (c Cryptsetup) addKey(ctx context.Context, device string, old, key []byte) error {
	args := append([]string{"luksAddKey", "--key-file", "/dev/fd/3"}, keyslotOptions...)
	return c.run(ctx, nil, [][]byte{old, key}, append(args, device, "/dev/fd/4")...)
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
