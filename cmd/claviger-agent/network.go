package main

import (
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/internal/cli"
)

// built is when this program was built, RFC 3339; set by the linker.
var built string

// builtAt is built, or the time of the commit that it was built from; zero if neither is known.
func builtAt() time.Time {
	text := built
	if info, ok := debug.ReadBuildInfo(); ok && text == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				text = s.Value
			}
		}
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}
	}
	return t
}

const (
	// upWait is how long a command waits for a static address before it goes on: the network may be there by other means.
	upWait = 2 * time.Second
	// forgotten is after how long the same trouble counts as a new one.
	forgotten = time.Minute
)

// network sets the configured address, and returns what says why no broker is
// reached: once for each reason on standard error, whatever --verbose says, as a boot that stands still needs.
func (s *settings) network(cmd *cobra.Command) (missing func(cause error) string, err error) {
	if err := s.Network.Validate(); err != nil {
		return nil, fmt.Errorf("%w: network.%w", errUsage, err)
	}
	say := func(text string) {
		level := ""
		if s.Verbose {
			level = "<4>" // a warning, as printk and sd-daemon(3) write it
		}
		cli.Fprintf(cmd.ErrOrStderr(), "%sclaviger-agent: %s\n", level, text)
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		if err := s.Network.Up(cmd.Context()); err != nil && cmd.Context().Err() == nil {
			say(err.Error())
		}
	}()
	select {
	case <-up:
	case <-time.After(upWait):
	case <-cmd.Context().Done():
		return nil, cmd.Context().Err()
	}
	var mu sync.Mutex
	seen := map[string]time.Time{} // guarded by mu
	return func(cause error) string {
		text := s.Network.Missing(cause)
		if text == "" {
			return ""
		}
		mu.Lock()
		defer mu.Unlock()
		if time.Since(seen[text]) > forgotten {
			say("waiting for the network: " + text)
		}
		seen[text] = time.Now()
		return text
	}, nil
}
