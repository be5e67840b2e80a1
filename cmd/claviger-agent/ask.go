package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claviger/claviger/broker/agent/unlock"
	"github.com/claviger/claviger/internal/cli"
)

// maxPassphrase is cryptsetup's limit on what is typed.
const maxPassphrase = 512

// askAt asks at a terminal, which f is, or reads lines from whatever else it is.
// It stops reading when the context ends, and leaves the terminal as it found it.
func askAt(f *os.File, w io.Writer) unlock.Asker {
	return func(ctx context.Context, prompt string) (_ []byte, err error) {
		fd := int(f.Fd())
		if old, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			silent := *old
			silent.Lflag &^= unix.ECHO
			silent.Lflag |= unix.ICANON | unix.ISIG
			if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &silent); err != nil {
				return nil, fmt.Errorf("terminal: %w", err)
			}
			defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }()
		}
		cli.Fprintf(w, "claviger-agent: type the %s\n", prompt) // a line of its own: others follow

		return readLine(ctx, fd)
	}
}

// readLine reads to the end of a line, byte by byte: what follows is for the next who asks.
func readLine(ctx context.Context, fd int) ([]byte, error) {
	line := make([]byte, 0, maxPassphrase+1)
	for {
		if err := readable(ctx, fd); err != nil {
			clear(line)
			return nil, err
		}
		var b [1]byte
		n, err := unix.Read(fd, b[:])
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			clear(line)
			return nil, fmt.Errorf("read passphrase: %w", err)
		case n == 0:
			clear(line)
			return nil, io.EOF
		case b[0] == '\n':
			return line, nil
		case len(line) == maxPassphrase:
			clear(line)
			return nil, fmt.Errorf("a passphrase of more than %d bytes", maxPassphrase)
		}
		line = append(line, b[0])
	}
}

// readable waits for input.
func readable(ctx context.Context, fd int) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 100)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for a passphrase: %w", err)
		case n > 0:
			return nil
		}
	}
}

// askBy has a program ask, such as "systemd-ask-password --timeout=0": it gets
// the prompt as its last argument, and prints what was typed.
func askBy(command string, stderr io.Writer) unlock.Asker {
	return func(ctx context.Context, prompt string) ([]byte, error) {
		args := append(strings.Fields(command), "Type the "+prompt+":")
		c := exec.CommandContext(ctx, args[0], args[1:]...)
		c.Stdin, c.Stderr = os.Stdin, stderr
		c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) } // it has a terminal to put in order
		c.WaitDelay = 2 * time.Second
		out, err := c.Output()
		if err != nil {
			clear(out)
			return nil, fmt.Errorf("%s: %w", args[0], err)
		}
		return bytes.TrimSuffix(out, []byte{'\n'}), nil
	}
}
