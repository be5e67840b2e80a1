package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/deliver"
	"github.com/claviger/claviger/broker/agent/keysocket"
	"github.com/claviger/claviger/broker/agent/unlock"
	"github.com/claviger/claviger/internal/cli"
)

// keysConfig is "keys" in the configuration file. The keys of "volumes" are served as well.
type keysConfig struct {
	// Credentials are the resources of LoadCredential=, by "UNIT/CREDENTIAL".
	Credentials map[string]string `json:"credentials"`
	// WhenDenied is what systemd-cryptsetup gets where the broker gives no key before the deadline: "hold" (the
	// default) or "passphrase", which has a person asked. Credentials are always held.
	WhenDenied string `json:"when_denied"`
	Retry      string `json:"retry"` // between two tries for a caller that is held; default 30s
}

const defaultKeySocket = "/run/claviger/keys.sock"

func keysCommand(s *settings) *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "keys",
		Short: "Hand keys to systemd: to crypttab volumes, and to services with LoadCredential=",
		Long: `Hand keys to systemd over a socket: to volumes whose key file in crypttab is the
socket (named in "volumes" of the configuration file), and to services with
LoadCredential=ID:SOCKET ("keys.credentials": {"UNIT/ID": "RESOURCE"}). Callers are held
until their key is there, and never answered with nothing. The socket comes from
systemd (deploy/systemd/claviger-keys.socket), or is made.`,
		Example: `  claviger-agent keys
  claviger-agent keys --socket /run/claviger/keys.sock
  # /etc/crypttab:  data UUID=3f6c… /run/claviger/keys.sock luks,nofail
  # a unit:         LoadCredential=db.password:/run/claviger/keys.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.complete(); err != nil {
				return err
			}
			retry, err := s.Keys.check()
			if err != nil {
				return err
			}
			timeout, err := time.ParseDuration(s.Timeout)
			if err != nil || timeout <= 0 {
				return fmt.Errorf("%w: timeout: %q is not a duration like 90s", errUsage, s.Timeout)
			}
			device, err := s.device(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer letGo(device)
			client, err := s.clientOf(cmd, device)
			if err != nil {
				return err
			}
			defer client.Close()
			l, err := keyListener(socket)
			if err != nil {
				return err
			}
			logf := func(format string, args ...any) {
				cli.Fprintf(cmd.ErrOrStderr(), "claviger-agent: "+format+"\n", args...)
			}
			u := &unlock.Unlocker{Broker: client, Logf: logf}
			server := keysocket.Server{Retry: retry, Logf: logf, Key: func(ctx context.Context, a keysocket.Ask) ([]byte, error) {
				ctx, cancel := context.WithTimeout(ctx, timeout)
				defer cancel()
				key, err := s.keyFor(ctx, a, u, client, device)
				if err != nil && a.Volume != "" && s.Keys.WhenDenied == "passphrase" {
					return nil, fmt.Errorf("%w: %w", keysocket.ErrPassphrase, err)
				}
				return key, err
			}}
			logf("serving keys to systemd on %s", l.Addr())
			return server.Serve(cmd.Context(), l)
		},
	}
	c.Flags().StringVar(&socket, "socket", defaultKeySocket, "the socket to make, if systemd passes none")
	return c
}

func (c keysConfig) check() (retry time.Duration, err error) {
	switch c.WhenDenied {
	case "", "hold", "passphrase":
	default:
		return 0, fmt.Errorf("%w: keys.when_denied: %q is neither hold nor passphrase", errUsage, c.WhenDenied)
	}
	if c.Retry == "" {
		return 0, nil
	}
	if retry, err = time.ParseDuration(c.Retry); err != nil || retry <= 0 {
		return 0, fmt.Errorf("%w: keys.retry: %q is not a duration like 30s", errUsage, c.Retry)
	}
	return retry, nil
}

// keyListener is the socket that systemd passed, or a new one that only its owner can reach.
func keyListener(path string) (net.Listener, error) {
	l, err := keysocket.Inherited()
	if l != nil || err != nil {
		return l, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return deliver.Socket{Path: path}.Listen()
}

// keyFor gets what a caller asks for. The TPM, and so the broker, is asked once at a time: see tpmdev.
func (s *settings) keyFor(ctx context.Context, a keysocket.Ask, u *unlock.Unlocker, client *agent.Client, d agent.Device) ([]byte, error) {
	if a.Volume != "" {
		volumes, err := s.volumes([]string{a.Volume}, d)
		if err != nil {
			return nil, err
		}
		return u.Key(ctx, volumes[0])
	}
	resource, ok := s.Keys.Credentials[a.Unit+"/"+a.Credential]
	if !ok {
		return nil, fmt.Errorf(`"keys.credentials" of the configuration file has no %s/%s`, a.Unit, a.Credential)
	}
	resource, err := fill(resource, unlock.Volume{Name: a.Credential}, d)
	if err != nil {
		return nil, err
	}
	secrets, _, err := client.Get(ctx, resource)
	if err != nil {
		return nil, err
	}
	if len(secrets[0].Value) == 0 {
		return nil, errors.New("the secret is empty")
	}
	return secrets[0].Value, nil
}
