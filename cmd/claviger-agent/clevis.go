package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/strictjson"
)

// maxPin bounds what a pin reads: a JWE of a key.
const maxPin = 256 << 10

func clevisCommand(s *settings) *cobra.Command {
	group := &cobra.Command{
		Use:   "clevis",
		Short: "Be a pin for clevis (installed as clevis-encrypt-claviger and clevis-decrypt-claviger)",
	}
	encrypt := &cobra.Command{
		Use:     "encrypt CONFIG",
		Short:   `Encrypt standard input with a key of the broker's; CONFIG is {"resource":"disks/vm-7"}`,
		Example: `  clevis encrypt claviger '{"resource":"disks/vm-7"}' < plaintext > jwe`,
		// clevis passes further arguments of its own, such as -y.
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf(`%w: want a configuration: {"resource":"disks/vm-7"}`, errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var c struct {
				Resource string `json:"resource"`
			}
			if err := strictjson.UnmarshalKnown([]byte(args[0]), &c); err != nil || c.Resource == "" {
				return fmt.Errorf(`%w: configuration %q: want {"resource":"disks/vm-7"}`, errUsage, args[0])
			}
			plain, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxPin))
			if err != nil {
				return fmt.Errorf("read plaintext: %w", err)
			}
			defer clear(plain)
			return s.fetch(cmd, []string{c.Resource}, nil, func(_ context.Context, _ *agent.Client, secrets []agent.Secret, _ agent.Receipt) error {
				token, err := seal.EncryptPin(c.Resource, secrets[0].Value, plain)
				if err != nil {
					return err
				}
				_, err = io.WriteString(cmd.OutOrStdout(), token)
				return err
			})
		},
	}
	// `clevis luks bind -y` passes it on: trust what has no advertisement to look at, as is the case here.
	encrypt.Flags().BoolP("yes", "y", false, "accepted, for clevis: there is nothing to confirm")
	group.AddCommand(encrypt, &cobra.Command{
		Use:     "decrypt",
		Short:   "Decrypt what encrypt made, from standard input",
		Example: "  clevis decrypt < jwe > plaintext",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxPin))
			if err != nil {
				return fmt.Errorf("read JWE: %w", err)
			}
			resource, err := seal.PinResource(string(token))
			if err != nil {
				return err
			}
			return s.fetch(cmd, []string{resource}, nil, func(_ context.Context, _ *agent.Client, secrets []agent.Secret, _ agent.Receipt) error {
				plain, err := seal.DecryptPin(string(token), secrets[0].Value)
				if err != nil {
					return err
				}
				defer clear(plain)
				_, err = cmd.OutOrStdout().Write(plain)
				return err
			})
		},
	})
	return group
}
