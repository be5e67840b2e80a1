package deliver

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
)

// awaited waits until ok.
func awaited(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

// lines are those that processes wrote to a file.
func lines(file string) []string {
	b, _ := os.ReadFile(file)
	return strings.Fields(string(b))
}

func alive(t *testing.T, id string) bool {
	t.Helper()
	n, err := strconv.Atoi(id)
	if err != nil {
		t.Fatal(err)
	}
	return syscall.Kill(n, 0) == nil
}

// log is what a test's child says.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// supervised runs a shell script under a Child; $0 is the file that its processes write their ids to.
func supervised(t *testing.T, c Child, script string) (w *scripted, pids string, done chan error) {
	t.Helper()
	pids = filepath.Join(t.TempDir(), "pids")
	c.Path, c.Argv, c.Env = "/bin/sh", []string{"sh", "-c", script, pids}, map[string]string{"PASSWORD": "db"}
	w, done = newScripted(), make(chan error, 1)
	go func() { done <- c.Run(t.Context(), w) }()
	return w, pids, done
}

// family is a shell with a program below it that ignores SIGTERM, and one that
// left the session and whose parent ended: a daemon.
const family = `
stubborn='trap "" TERM; echo $$ >> "$0"; while :; do sleep 0.05; done'
sh -c "$stubborn" "$0" &
(setsid sh -c "$stubborn" "$0" &)
echo $$ >> "$0"
wait`

// TestDenialEndsAll: the whole family is gone when Run returns, and none of it before.
func TestDenialEndsAll(t *testing.T) {
	w, pids, done := supervised(t, Child{Restart: true, Grace: 100 * time.Millisecond}, family)
	w.versions <- secret("db", "1", "one")
	awaited(t, "all three run", func() bool { return len(lines(pids)) == 3 })
	all := lines(pids)
	for _, id := range all {
		if !alive(t, id) {
			t.Errorf("process %s does not run", id)
		}
	}
	w.end <- agent.ErrDenied
	if err := <-done; !errors.Is(err, agent.ErrDenied) {
		t.Errorf("ended with %v", err)
	}
	for _, id := range all {
		if alive(t, id) {
			t.Errorf("process %s lives on, with the secret", id)
		}
	}
}

// TestRestartLeavesNobody: after each rotation, one family runs. An unchanged value restarts nothing.
func TestRestartLeavesNobody(t *testing.T) {
	w, pids, done := supervised(t, Child{Restart: true, Grace: 50 * time.Millisecond}, family)
	for i, value := range []string{"one", "two", "three"} {
		before := lines(pids)
		w.versions <- secret("db", strconv.Itoa(i), value)
		awaited(t, "a family runs", func() bool { return len(lines(pids)) == len(before)+3 })
		for _, id := range before {
			if alive(t, id) {
				t.Errorf("%s: process %s of the family before lives on", value, id)
			}
		}
	}
	before := lines(pids)
	w.versions <- secret("db", "4", "three")
	w.end <- agent.ErrDenied // taken after the version
	<-done
	if now := lines(pids); !slices.Equal(now, before) {
		t.Errorf("restarted for the value that it has: %v became %v", before, now)
	}
}

// TestLeftBehind: what a command leaves behind when it ends is stopped; nobody would be there to end it later.
func TestLeftBehind(t *testing.T) {
	w, pids, done := supervised(t, Child{Grace: 50 * time.Millisecond}, `sh -c 'trap "" TERM; echo $$ >> "$0"; while :; do sleep 0.05; done' "$0" & while ! test -s "$0"; do sleep 0.01; done; exit 5`)
	w.versions <- secret("db", "1", "one")
	if err := <-done; !errors.Is(err, ExitError{5}) {
		t.Errorf("ended with %v", err)
	}
	for _, id := range lines(pids) {
		if alive(t, id) {
			t.Errorf("process %s lives on", id)
		}
	}
}

// TestSignalWhileRestarting: a signal that tells the agent to end is obeyed while it waits for the command to
// end, and the command is not started again; a second one does not wait for the grace.
func TestSignalWhileRestarting(t *testing.T) {
	ours := make(chan os.Signal, 16)
	// The test's own process stands for the agent's. This is never stopped: the kernel may deliver the last signal
	// after Run has returned, and it would end the tests.
	signal.Notify(ours, syscall.SIGTERM)
	w, pids, done := supervised(t, Child{Restart: true, Grace: time.Hour}, `trap "" TERM; echo $$ >> "$0"; while :; do sleep 0.02; done`)
	w.versions <- secret("db", "1", "one")
	awaited(t, "it runs", func() bool { return len(lines(pids)) == 1 })
	w.versions <- secret("db", "2", "two")
	id := lines(pids)[0]
	var err error
	awaited(t, "Run returns", func() bool {
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		select {
		case err = <-done:
			return true
		default:
			return false
		}
	})
	if !errors.Is(err, ExitError{128 + int(syscall.SIGTERM)}) {
		t.Errorf("ended with %v", err)
	}
	if alive(t, id) {
		t.Error("the command lives on")
	}
}

// TestVersionWithNUL: at the first, it is an error; later it is told once, and what runs goes on.
func TestVersionWithNUL(t *testing.T) {
	script := `echo "$PASSWORD" >> "$0"; while :; do sleep 0.02; done`
	w, _, done := supervised(t, Child{Restart: true, Grace: 50 * time.Millisecond}, script)
	w.versions <- secret("db", "1", "a\x00b")
	if err := <-done; err == nil || !strings.Contains(err.Error(), "NUL") || !strings.Contains(err.Error(), "db version 1") {
		t.Errorf("at the start: %v", err)
	}
	out := &log{}
	w, pids, done := supervised(t, Child{Restart: true, Grace: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(out, nil))}, script)
	w.versions <- secret("db", "1", "one")
	awaited(t, "it runs", func() bool { return len(lines(pids)) == 1 })
	for range 3 {
		w.versions <- secret("db", "2", "a\x00b")
		if err := <-w.refused; err == nil {
			t.Error("the version is acknowledged")
		}
	}
	if n := strings.Count(out.String(), "NUL"); n != 1 {
		t.Errorf("told %d times: %s", n, out)
	}
	w.versions <- secret("db", "3", "three")
	awaited(t, "the next version is used", func() bool { return slices.Equal(lines(pids), []string{"one", "three"}) })
	w.end <- agent.ErrDenied
	<-done
}

// TestCommandThatIsAway: while an update replaces it, a rotation does not end the watch.
func TestCommandThatIsAway(t *testing.T) {
	dir := t.TempDir()
	program, out := filepath.Join(dir, "program"), filepath.Join(dir, "out")
	install := func() {
		text := fmt.Sprintf("#!/bin/sh\necho \"$PASSWORD\" >> %s\nwhile :; do sleep 0.02; done\n", out)
		if err := errors.Join(os.WriteFile(program+".new", []byte(text), 0o700), os.Rename(program+".new", program)); err != nil {
			t.Fatal(err)
		}
	}
	install()
	says := &log{}
	c := Child{Path: program, Argv: []string{program}, Env: map[string]string{"PASSWORD": "db"}, Restart: true, Grace: time.Second, Logger: slog.New(slog.NewTextHandler(says, nil))}
	w, done := newScripted(), make(chan error, 1)
	go func() { done <- c.Run(t.Context(), w) }()
	w.versions <- secret("db", "1", "one")
	awaited(t, "it runs", func() bool { return len(lines(out)) == 1 })
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	w.versions <- secret("db", "2", "two")
	awaited(t, "the trouble is told", func() bool { return strings.Contains(says.String(), "cannot start") })
	install()
	awaited(t, "it runs again", func() bool { return slices.Equal(lines(out), []string{"one", "two"}) })
	w.end <- agent.ErrDenied
	if err := <-done; !errors.Is(err, agent.ErrDenied) {
		t.Errorf("ended with %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	env := Environment([]string{"A=1", "PASSWORD=stale", "B=2", "PASSWORD=staler", "PASSWORDS=3"}, map[string]string{"PASSWORD": "new"})
	if want := []string{"A=1", "B=2", "PASSWORDS=3", "PASSWORD=new"}; !slices.Equal(env, want) {
		t.Errorf("%q", env)
	}
}
