package deliver

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Command is what happens after each new generation. The zero Command does nothing.
type Command struct {
	Argv    []string // run without a shell
	Timeout time.Duration
	PIDFile string // signal this process
	Signal  syscall.Signal
	// Required: a version whose command failed is not acknowledged, and tried again.
	Required bool
}

func (c Command) run(ctx context.Context, log *slog.Logger) error {
	err := c.signal()
	if err == nil && len(c.Argv) > 0 {
		err = c.exec(ctx)
	}
	if err == nil {
		return nil
	}
	if c.Required {
		return err
	}
	log.ErrorContext(ctx, "on change", "error", err)
	return nil
}

func (c Command) exec(ctx context.Context) error {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := groupCommand(ctx, c.Argv[0], c.Argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		// What it printed may hold secrets: only how much is told.
		return fmt.Errorf("command %s: %w (it printed %d bytes)", c.Argv[0], err, out.Len())
	}
	return nil
}

func (c Command) signal() error {
	if c.PIDFile == "" {
		return nil
	}
	b, err := os.ReadFile(c.PIDFile)
	if err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("pid file %s holds no process id", c.PIDFile)
	}
	if err := syscall.Kill(pid, c.Signal); err != nil {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	return nil
}
