// Command claviger-agent is the workload's side: it fetches secrets from a
// Claviger broker by proving what this machine is.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/deliver"
	"github.com/claviger/claviger/internal/cli"
)

// Exit codes, for scripts.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitDenied      = 3 // asking again will not help
	exitUnreachable = 4 // asking again later may help
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := newCommand()
	cmd.SetErr(cli.Plain(os.Stderr)) // on standard output are secrets, as they are
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if child, ok := errors.AsType[deliver.ExitError](err); ok {
		return child.Code
	}
	cli.Fail(cmd.ErrOrStderr(), "claviger-agent", err.Error())
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, agent.ErrDenied):
		return exitDenied
	case errors.Is(err, agent.ErrUnreachable):
		return exitUnreachable
	}
	return exitFailed
}
