// Command claviger is the broker and the operator's command.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/internal/cli"
)

var version = "dev" // set by the linker

var (
	errUsage  = cli.ErrUsage
	errFailed = errors.New("") // what failed has been printed
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := newCommand()
	cmd.SetOut(cli.Plain(os.Stdout))
	cmd.SetErr(cli.Plain(os.Stderr))
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFailed):
		return 1
	case errors.Is(err, errUsage):
		cli.Fail(cmd.ErrOrStderr(), "claviger", err.Error())
		return 2
	}
	if s, ok := status.FromError(err); ok {
		cli.Fail(cmd.ErrOrStderr(), "claviger", fmt.Sprintf("%s (%s)", s.Message(), s.Code()))
	} else {
		cli.Fail(cmd.ErrOrStderr(), "claviger", err.Error())
	}
	return 1
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "claviger",
		Short: "A key broker: secrets only for workloads that prove what they are",
		Long: `Claviger releases secrets only to workloads that prove, with hardware-signed
evidence, what they are. This command is the broker (serve, dev) and what its
operators and auditors use.

Commands that talk to a running broker use its operators' listener:
  CLAVIGER_ADMIN       host:port              (--admin)
  CLAVIGER_ADMIN_CA    roots of its certificate (--admin-ca)
  CLAVIGER_ADMIN_CERT, CLAVIGER_ADMIN_KEY  your certificate (--admin-cert, --admin-key)

Exit codes: 0 done, 1 failed or "no", 2 usage.`,
		Version: version, SilenceUsage: true, SilenceErrors: true,
	}
	var a adminFlags
	a.register(root)
	root.AddCommand(serveCommand(), devCommand(), statusCommand(&a), policyCommand(&a), referenceCommand(&a), catalogCommand(&a),
		secretCommand(&a), revokeCommand(&a), unrevokeCommand(&a), revocationsCommand(&a), holdersCommand(&a), sessionsCommand(&a), notifyCommand(&a), tokenCommand(&a), auditCommand(&a),
		evidenceCommand(&a), collateralCommand())
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "json" {
			return fmt.Errorf("%w: --output is %q, want table or json", errUsage, a.output)
		}
		return nil
	}
	a.completions(root)
	cli.Strict(root)
	return root
}
