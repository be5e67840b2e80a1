// Package cli is what the commands have in common.
package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// ErrUsage is a mistake in the command line: exit code 2.
var ErrUsage = errors.New("usage")

// Strict makes unknown flags, wrong arguments and unknown commands, of which
// cobra prints help and says that all is well, errors that wrap ErrUsage.
func Strict(root *cobra.Command) {
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", ErrUsage, err) })
	strictArgs(root)
}

func strictArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		strictArgs(sub)
	}
	if c.Runnable() {
		args := c.Args
		c.Args = func(cmd *cobra.Command, a []string) error {
			if args == nil {
				return nil
			}
			err := args(cmd, a)
			if err != nil && !errors.Is(err, ErrUsage) {
				return fmt.Errorf("%w: %w", ErrUsage, err)
			}
			return err
		}
		return
	}
	c.Args = func(cmd *cobra.Command, a []string) error {
		if len(a) > 0 {
			meant := ""
			if cmd.SuggestionsMinimumDistance <= 0 {
				cmd.SuggestionsMinimumDistance = 2
			}
			if near := cmd.SuggestionsFor(a[0]); len(near) > 0 {
				meant = "; do you mean " + strings.Join(near, " or ") + "?"
			}
			return fmt.Errorf("%w: %s has no command %q%s", ErrUsage, cmd.CommandPath(), a[0], meant)
		}
		return nil
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}
