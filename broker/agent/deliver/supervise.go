package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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

// CheckValue says whether an environment variable can hold a value.
func CheckValue(value []byte) error {
	if bytes.IndexByte(value, 0) >= 0 {
		return errors.New("it holds a NUL byte, which an environment variable cannot: deliver it as a file (claviger-agent get --out, or serve), or store it as text")
	}
	return nil
}

// Environment is base with variables set, in place of those of the same name:
// of two, programs do not agree which counts.
func Environment(base []string, vars map[string]string) []string {
	env := slices.DeleteFunc(slices.Clone(base), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		_, ours := vars[name]
		return ours
	})
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		env = append(env, name+"="+vars[name])
	}
	return env
}

// Run starts the child once every secret is there, and returns ExitError when it
// ends by itself. Signals that this process gets go to the child. Whenever the
// child is stopped, so is all that it started: also what left its process group
// or lost its parent.
//
// Once it runs, only its own end, a signal, or a denial ends it. A version that
// cannot be used is left aside, and what runs goes on with the one before.
func (c Child) Run(ctx context.Context, w Watcher) error {
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &supervisor{Child: c, held: map[string]string{}, news: make(chan struct{}, 1), unusable: make(chan error, 1), ended: make(chan error, 1)}
	for _, r := range c.Env {
		if !slices.Contains(s.resources, r) {
			s.resources = append(s.resources, r)
		}
	}
	release, err := adopt()
	if err != nil {
		return err
	}
	defer release()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT, syscall.SIGWINCH)
	defer signal.Stop(signals)
	watching := make(chan error, 1)
	go func() { watching <- w.Watch(ctx, s.resources, s.take) }()
	return s.run(ctx, signals, watching)
}

// supervisor is a Child that runs.
type supervisor struct {
	Child
	resources []string
	news      chan struct{} // every secret is there, and one is new
	unusable  chan error    // why the first version of a secret cannot be used
	ended     chan error    // of the command
	cmd       *exec.Cmd     // nil: none runs

	mu      sync.Mutex
	held    map[string]string // guarded by mu
	refused string            // the version that was told to be unusable; guarded by mu
}

// take is told of versions.
func (s *supervisor) take(_ context.Context, v agent.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.held[v.Resource]
	if err := CheckValue(v.Value); err != nil {
		err = fmt.Errorf("%s version %s: %w", v.Resource, v.Version, err)
		switch which := v.Resource + "@" + v.Version; {
		case !known:
			select {
			case s.unusable <- err:
			default:
			}
		case s.refused != which:
			s.refused = which
			s.Logger.Error("cannot use a version, the command goes on with the one before", "error", err)
		}
		return err
	}
	if known && old == string(v.Value) {
		return nil // nothing that the command would see
	}
	s.held[v.Resource] = string(v.Value)
	if len(s.held) == len(s.resources) {
		select {
		case s.news <- struct{}{}:
		default:
		}
	}
	return nil
}

const (
	startAgain    = time.Second
	startAgainMax = time.Minute
)

func (s *supervisor) run(ctx context.Context, signals <-chan os.Signal, watching <-chan error) error {
	restart := time.NewTimer(time.Hour) // when to start the command again
	restart.Stop()
	defer restart.Stop()
	started, failures := false, 0
	for {
		select {
		case sig := <-signals:
			switch {
			case s.cmd != nil:
				_ = s.cmd.Process.Signal(sig)
			case ends(sig) || sig == syscall.SIGHUP:
				return ExitError{128 + int(sig.(syscall.Signal))}
			}
		case err := <-s.ended:
			s.cmd = nil
			s.stop(ctx, signals) // what it left behind has the secret, and nobody would stop it later
			return exit(err)
		case err := <-watching:
			if s.cmd != nil {
				s.Logger.ErrorContext(ctx, "the broker ended the session, stopping the command", "error", err)
			}
			s.stop(ctx, signals)
			return err
		case err := <-s.unusable:
			if !started {
				return err
			}
		case <-s.news:
			switch {
			case !started:
				if err := s.start(); err != nil {
					return err
				}
				started = true
			case s.Restart:
				restart.Reset(s.jitter())
			case s.Signal != 0:
				s.Logger.InfoContext(ctx, "a secret changed, signalling the command", "signal", s.Signal)
				_ = s.cmd.Process.Signal(s.Signal)
			}
		case <-restart.C:
			s.Logger.InfoContext(ctx, "a secret changed, restarting the command")
			if sig := s.stop(ctx, signals); sig != 0 { // to end, not to start again
				return ExitError{128 + int(sig)}
			}
			if err := s.start(); err != nil {
				wait := min(startAgain<<min(failures, 10), startAgainMax)
				failures++
				s.Logger.ErrorContext(ctx, "cannot start the command, trying again", "error", err, "in", wait)
				restart.Reset(wait)
				continue
			}
			failures = 0
		}
	}
}

func (s *supervisor) jitter() time.Duration {
	if s.Jitter <= 0 {
		return 0
	}
	return rand.N(s.Jitter)
}

func (s *supervisor) start() error {
	s.mu.Lock()
	vars := map[string]string{}
	for name, r := range s.Env {
		vars[name] = s.held[r]
	}
	s.mu.Unlock()
	cmd := exec.Command(s.Path, s.Argv[1:]...)
	cmd.Args[0] = s.Argv[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdin, os.Stdout, os.Stderr, Environment(os.Environ(), vars)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", s.Path, err)
	}
	s.cmd = cmd
	go func() { s.ended <- cmd.Wait() }()
	return nil
}

// stop stops the command and all that it started. It returns the signal that
// told us to end meanwhile; a second one ends the grace.
func (s *supervisor) stop(ctx context.Context, signals <-chan os.Signal) (told syscall.Signal) {
	hurry, done, started := make(chan struct{}), make(chan error, 1), 0
	if s.cmd != nil {
		started = s.cmd.Process.Pid
	}
	go func() { done <- stop(s.Grace, started, hurry) }()
	for {
		select {
		case sig := <-signals:
			if !ends(sig) {
				continue
			}
			if told != 0 {
				select {
				case <-hurry:
				default:
					close(hurry)
				}
			}
			told = sig.(syscall.Signal)
		case err := <-done:
			if s.cmd != nil {
				if err != nil { // as much as can be done without the process table
					_ = s.cmd.Process.Kill()
				}
				<-s.ended
				s.cmd = nil
			}
			if err != nil {
				s.Logger.ErrorContext(ctx, "cannot stop all that the command started", "error", err)
			}
			return told
		}
	}
}

// ends says whether a signal tells a process to end.
func ends(s os.Signal) bool {
	switch s {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT:
		return true
	}
	return false
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
