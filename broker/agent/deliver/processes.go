package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reapAfter is how long an ended process waits for who started it before we take
// it for one that we adopted.
const reapAfter = time.Second

// adopt has every process that descends from this one stay below it, also one
// whose parent ended (prctl(2), PR_SET_CHILD_SUBREAPER): none gets away from
// stop. Until release is called, those that end are reaped.
func adopt() (release func(), err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	done := make(chan struct{})
	var reaper sync.WaitGroup
	reaper.Go(func() {
		later := time.NewTimer(reapAfter)
		defer later.Stop()
		var seen []int
		for {
			select {
			case <-ended:
				later.Reset(reapAfter)
			case <-later.C:
				now := zombies()
				for _, id := range now {
					if slices.Contains(seen, id) {
						_, _ = syscall.Wait4(id, nil, syscall.WNOHANG, nil)
					}
				}
				if seen = now; len(now) > 0 {
					later.Reset(reapAfter)
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(ended)
		close(done)
		reaper.Wait()
	}, nil
}

// zombies are our children that ended and were not waited for.
func zombies() (ids []int) {
	all, _ := processes()
	for _, p := range all {
		if p.parent == os.Getpid() && p.zombie {
			ids = append(ids, p.id)
		}
	}
	return ids
}

// process is one line of the process table.
type process struct {
	id, parent int
	zombie     bool
}

func processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("read process table: %w", err)
	}
	var out []process
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it ended meanwhile
		}
		// PID (NAME) STATE PPID …; the name may hold anything, a bracket too.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		out = append(out, process{id, parent, fields[0] == "Z" || fields[0] == "X"})
	}
	return out, nil
}

// descendants are the living processes below root, root itself not among them.
func descendants(root int) ([]int, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	below := map[int]bool{root: true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if below[p.parent] && !below[p.id] {
				below[p.id], grown = true, true
			}
		}
	}
	var out []int
	for _, p := range all {
		if p.id != root && !p.zombie && below[p.id] {
			out = append(out, p.id)
		}
	}
	return out, nil
}

const (
	lookEvery = 20 * time.Millisecond // for what was told to end
	killTries = 500
)

// stop ends all that descends from this process: SIGTERM, and after grace, or
// when hurry is closed, SIGKILL. It returns when nothing is left, not even in
// the process table, but for the entry of started, which its starter waits for.
func stop(grace time.Duration, started int, hurry <-chan struct{}) error {
	if err := end(grace, hurry); err != nil {
		return err
	}
	for _, id := range zombies() {
		if id != started {
			_, _ = syscall.Wait4(id, nil, syscall.WNOHANG, nil)
		}
	}
	return nil
}

func end(grace time.Duration, hurry <-chan struct{}) error {
	signalAll := func(s syscall.Signal) (left []int, err error) {
		if left, err = descendants(os.Getpid()); err != nil {
			return nil, err
		}
		for _, id := range left {
			_ = syscall.Kill(id, s)
		}
		return left, nil
	}
	if left, err := signalAll(syscall.SIGTERM); err != nil || len(left) == 0 {
		return err
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	over := time.NewTimer(grace)
	defer over.Stop()
	for waiting := true; waiting; {
		select {
		case <-look.C:
			if left, err := descendants(os.Getpid()); err == nil && len(left) == 0 {
				return nil
			}
		case <-over.C:
			waiting = false
		case <-hurry:
			waiting = false
		}
	}
	// A parent that is killed makes no more children: not even what forks all the time gets away.
	for range killTries {
		if left, err := signalAll(syscall.SIGKILL); err != nil || len(left) == 0 {
			return err
		}
		<-look.C
	}
	left, err := descendants(os.Getpid())
	return errors.Join(fmt.Errorf("processes %v do not end", left), err)
}

// groupCommand is a command in a process group of its own, all of which is killed when ctx ends.
func groupCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}
