package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/claviger/claviger/broker/agent"
)

// Child is a command that runs with secrets in its environment.
type Child struct {
	Path string
	Argv []string
	Env  map[string]string // resource by variable name
	// Restart it on rotation, or send Signal; neither: it keeps what it has.
	Restart bool
	Signal  syscall.Signal
	Grace   time.Duration // from SIGTERM to SIGKILL; 0: 10 s
	Jitter  time.Duration // spread restarts of a fleet over this long
	Logger  *slog.Logger
}

// ExitError is how the child ended.
type ExitError struct{ Code int }

func (e ExitError) Error() string { return fmt.Sprintf("the command ended with code %d", e.Code) }

// Run starts the child once every secret is there, and returns ExitError when it
// ends by itself. Signals that this process gets go to the child.
func (c Child) Run(ctx context.Context, w Watcher) error {
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var resources []string
	for _, r := range c.Env {
		if !slices.Contains(resources, r) {
			resources = append(resources, r)
		}
	}
	var mu sync.Mutex
	held := map[string]string{}
	news := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		watching <- w.Watch(ctx, resources, func(_ context.Context, s agent.Secret) error {
			if strings.ContainsRune(string(s.Value), 0) {
				return fmt.Errorf("%s holds a NUL byte, which an environment variable cannot", s.Resource)
			}
			mu.Lock()
			defer mu.Unlock()
			held[s.Resource] = string(s.Value)
			if len(held) == len(resources) {
				select {
				case news <- struct{}{}:
				default:
				}
			}
			return nil
		})
	}()
	environment := func() []string {
		mu.Lock()
		defer mu.Unlock()
		env := os.Environ()
		for name, r := range c.Env {
			env = append(env, name+"="+held[r])
		}
		return env
	}

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT, syscall.SIGWINCH)
	defer signal.Stop(signals)
	var cmd *exec.Cmd
	ended := make(chan error, 1)
	start := func() error {
		cmd = exec.Command(c.Path, c.Argv[1:]...)
		cmd.Args[0] = c.Argv[0]
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdin, os.Stdout, os.Stderr, environment()
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("run %s: %w", c.Path, err)
		}
		go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(cmd)
		return nil
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(c.Grace):
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	for {
		select {
		case s := <-signals:
			if cmd == nil {
				return ExitError{128 + int(s.(syscall.Signal))}
			}
			_ = cmd.Process.Signal(s)
		case err := <-ended:
			return exit(err)
		case err := <-watching:
			if cmd != nil {
				c.Logger.ErrorContext(ctx, "the broker ended the session, stopping the command", "error", err)
				stop()
			}
			return err
		case <-news:
			switch {
			case cmd == nil:
				if err := start(); err != nil {
					return err
				}
			case c.Restart:
				if c.Jitter > 0 {
					select {
					case <-time.After(rand.N(c.Jitter)):
					case <-ctx.Done():
					}
				}
				c.Logger.InfoContext(ctx, "a secret changed, restarting the command")
				stop()
				if err := start(); err != nil {
					return err
				}
			case c.Signal != 0:
				c.Logger.InfoContext(ctx, "a secret changed, signalling the command", "signal", c.Signal)
				_ = cmd.Process.Signal(c.Signal)
			}
		}
	}
}

func exit(err error) error {
	if err == nil {
		return ExitError{0}
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if st, ok := e.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			return ExitError{128 + int(st.Signal())}
		}
		return ExitError{e.ExitCode()}
	}
	return err
}
