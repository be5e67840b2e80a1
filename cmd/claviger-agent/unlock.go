package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/luks"
	"github.com/claviger/claviger/broker/agent/unlock"
)

// unlockConfig is "unlock" in the configuration file.
type unlockConfig struct {
	// ClosePCR is extended once all volumes are open, so that a policy that wants it untouched releases
	// nothing more in this boot; 0: none. Without a TPM there is nothing to extend.
	ClosePCR *int `json:"close_pcr"`
	// PassphraseFallback has a person asked where the broker gave no key. Default true.
	PassphraseFallback *bool `json:"passphrase_fallback"`
}

const defaultClosePCR = 15

func unlockCommand(s *settings) *cobra.Command {
	var device, resource, format string
	var noPassphrase bool
	c := &cobra.Command{
		Use:   "unlock [NAME…]",
		Short: "Open LUKS2 disks with keys from the broker: all volumes of the configuration, or those named",
		Long: `Open LUKS2 disks with keys from the broker: all "volumes" of the configuration
file, or those named. A disk's header is checked, copied to memory and opened from
there; a disk that was not enrolled, or whose header is not the one that was, is
refused. A volume with "format": "blank" is formatted at its first boot, if the disk
holds only zeros.

When all are open, PCR "unlock.close_pcr" (15) of a TPM is extended, so that a policy
that wants it untouched gives nothing more until the next boot. Where the broker gives
no key, a passphrase is asked for, unless "unlock.passphrase_fallback" is false.`,
		Example: `  claviger-agent unlock
  claviger-agent unlock root
  claviger-agent unlock data --device UUID=3f6c… --resource 'disks/{chip}'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if device != "" || resource != "" {
				if len(args) != 1 {
					return fmt.Errorf("%w: --device and --resource go with exactly one NAME", errUsage)
				}
				s.Volumes = nil
				s.oneVolume = &unlock.Volume{Name: args[0], Device: device, Resource: resource, Format: format}
			}
			return s.withVolumes(cmd, args, func(ctx context.Context, u *unlock.Unlocker, volumes []unlock.Volume, d agent.Device) error {
				for _, v := range volumes {
					if err := s.open(ctx, cmd, u, v, noPassphrase); err != nil {
						return err
					}
				}
				return s.closeDoor(cmd.ErrOrStderr(), d)
			})
		},
	}
	c.Flags().BoolVar(&noPassphrase, "no-passphrase", false, "do not ask for a passphrase where the broker gives no key: something else will")
	c.Flags().StringVar(&device, "device", "", "the disk: a path or UUID=…")
	c.Flags().StringVar(&resource, "resource", "", "the secret that opens it; {chip}, {name} and {uuid} are filled in")
	c.Flags().StringVar(&format, "format", "never", "blank: format a disk that holds only zeros")
	return c
}

// open opens a volume, by a passphrase if need be.
func (s *settings) open(ctx context.Context, cmd *cobra.Command, u *unlock.Unlocker, v unlock.Volume, noPassphrase bool) error {
	err := u.Unlock(ctx, v)
	if err == nil || noPassphrase || cmd.Context().Err() != nil {
		return err
	}
	if f := s.Unlock.PassphraseFallback; f != nil && !*f {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "claviger-agent: %v\nclaviger-agent: type the passphrase or recovery key of %s\n", err, v.Name)
	return u.Ask(cmd.Context(), v)
}

// closeDoor extends the PCR that says that keys were released in this boot.
func (s *settings) closeDoor(stderr io.Writer, d agent.Device) error {
	pcr := defaultClosePCR
	if s.Unlock.ClosePCR != nil {
		pcr = *s.Unlock.ClosePCR
	}
	door, ok := d.(interface{ CloseDoor(pcr int) error })
	if pcr == 0 || !ok {
		return nil
	}
	if err := door.CloseDoor(pcr); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "claviger-agent: PCR %d extended: no more keys in this boot\n", pcr)
	return nil
}

func rekeyCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "rekey [NAME…]",
		Short: "Move LUKS2 disks to the next version of their keys",
		Long: `Move LUKS2 disks to the next version of their keys: a new keyslot, tried, confirmed
with the broker, and only then the old one removed. The power may fail at any step:
the disk opens all the same, and calling this again finishes the work. The catalog
entry of the key needs "rekey: true".`,
		Example: "  claviger-agent rekey root",
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withVolumes(cmd, args, func(ctx context.Context, u *unlock.Unlocker, volumes []unlock.Volume, _ agent.Device) error {
				for _, v := range volumes {
					if err := u.Rekey(ctx, v); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func enrollCommand(s *settings) *cobra.Command {
	var keyFile string
	c := &cobra.Command{
		Use:     "enroll NAME --key-file FILE",
		Short:   "Add a keyslot with the broker's key to a LUKS2 disk that a key file opens",
		Example: "  claviger-agent enroll data --key-file old.key",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || keyFile == "" {
				return fmt.Errorf("%w: want one NAME, and --key-file", errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			old, err := os.ReadFile(keyFile)
			if err != nil {
				return fmt.Errorf("--key-file: %w", err)
			}
			defer clear(old)
			return s.withVolumes(cmd, args, func(ctx context.Context, u *unlock.Unlocker, volumes []unlock.Volume, _ agent.Device) error {
				return u.Enrol(ctx, volumes[0], old)
			})
		},
	}
	c.Flags().StringVar(&keyFile, "key-file", "", "file with a key that opens the disk now, as it is")
	return c
}

// withVolumes runs use with what opens volumes, until the deadline.
func (s *settings) withVolumes(cmd *cobra.Command, names []string, use func(context.Context, *unlock.Unlocker, []unlock.Volume, agent.Device) error) error {
	if err := s.complete(); err != nil {
		return err
	}
	device, err := s.device(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if c, ok := device.(io.Closer); ok {
		defer c.Close()
	}
	volumes, err := s.volumes(names, device)
	if err != nil {
		return err
	}
	timeout, err := time.ParseDuration(s.Timeout)
	if err != nil || timeout <= 0 {
		return fmt.Errorf("%w: timeout: %q is not a duration like 90s", errUsage, s.Timeout)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	client, err := s.clientOf(cmd, device)
	if err != nil {
		return err
	}
	defer client.Close()
	return use(ctx, &unlock.Unlocker{
		Broker: client,
		Logf: func(format string, args ...any) {
			fmt.Fprintf(cmd.ErrOrStderr(), "claviger-agent: "+format+"\n", args...)
		},
	}, volumes, device)
}

// volumes are those named, or all, with their resources' names filled in.
func (s *settings) volumes(names []string, d agent.Device) ([]unlock.Volume, error) {
	all := s.Volumes
	if s.oneVolume != nil {
		all = []unlock.Volume{*s.oneVolume}
	}
	var out []unlock.Volume
	for i, v := range all {
		if err := v.Validate(); err != nil {
			return nil, fmt.Errorf("%w: volumes[%d]: %w", errUsage, i, err)
		}
		if len(names) > 0 && !slices.Contains(names, v.Name) || len(names) == 0 && v.Systemd {
			continue
		}
		var err error
		for _, r := range []*string{&v.Resource, &v.Recovery} {
			if *r, err = fill(*r, v, d); err != nil {
				return nil, fmt.Errorf("volume %s: resource: %w", v.Name, err)
			}
		}
		out = append(out, v)
	}
	if len(out) == 0 && len(names) == 0 {
		return nil, fmt.Errorf(`%w: "volumes" of the configuration file names none to open`, errUsage)
	}
	if len(names) > len(out) {
		return nil, fmt.Errorf(`%w: "volumes" of the configuration file has no %s`, errUsage, strings.Join(names, ", "))
	}
	return out, nil
}

// fill puts the machine's chip id, the volume's name and its UUID into a resource's name.
func fill(resource string, v unlock.Volume, d agent.Device) (string, error) {
	out := strings.ReplaceAll(resource, "{name}", v.Name)
	if strings.Contains(out, "{uuid}") {
		uuid, ok := strings.CutPrefix(v.Device, "UUID=")
		if !ok {
			return "", errors.New("{uuid} wants a device UUID=…")
		}
		out = strings.ReplaceAll(out, "{uuid}", uuid)
	}
	if strings.Contains(out, "{chip}") {
		chip, ok := d.(interface{ ChipID() (string, error) })
		if !ok {
			return "", errors.New("{chip} is known for TPMs only")
		}
		id, err := chip.ChipID()
		if err != nil {
			return "", err
		}
		out = strings.ReplaceAll(out, "{chip}", id)
	}
	return out, nil
}

func recoveryKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "recovery-key",
		Short:   "Print a recovery secret, base64 on standard input as it stands in Vault, in the form that is typed at a console",
		Example: "  vault kv get -field=value secret/recovery/vm-7 | claviger-agent recovery-key",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 4096))
			if err != nil {
				return fmt.Errorf("read secret: %w", err)
			}
			text := strings.TrimPrefix(strings.TrimSpace(string(b)), "base64:")
			secret, err := base64.StdEncoding.DecodeString(text)
			if err != nil || len(secret) == 0 {
				return fmt.Errorf("%w: standard input is not base64", errUsage)
			}
			defer clear(secret)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), unlock.RecoveryText(secret))
			return err
		},
	}
}

func luksCommand() *cobra.Command {
	var output string
	show := &cobra.Command{
		Use:     "show DEVICE",
		Short:   "Show what a LUKS2 header says, and whether unlock would accept it",
		Example: "  claviger-agent luks show /dev/vda2\n  claviger-agent luks show disk.img --output json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || output != "table" && output != "json" {
				return fmt.Errorf("%w: want one DEVICE, and --output table or json", errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open disk: %w", err)
			}
			defer f.Close()
			h, err := luks.Read(f)
			if err != nil {
				return err
			}
			verdict := h.Check(luks.Rules{})
			if err := printHeader(cmd.OutOrStdout(), h, verdict, output); err != nil {
				return err
			}
			return verdict
		},
	}
	show.Flags().StringVar(&output, "output", "table", "table or json")
	c := &cobra.Command{Use: "luks", Short: "Look at LUKS2 headers"}
	c.AddCommand(show)
	return c
}

func printHeader(w io.Writer, h *luks.Header, verdict error, output string) error {
	accepted := "yes"
	if verdict != nil {
		accepted = verdict.Error()
	}
	if output == "json" {
		b, err := json.MarshalIndent(map[string]any{
			"uuid": h.UUID, "label": h.Label, "accepted": verdict == nil, "verdict": accepted,
			"segments": h.Meta.Segments, "keyslots": h.Meta.Keyslots, "tokens": h.Meta.Tokens,
		}, "", "  ")
		if err != nil {
			return fmt.Errorf("encode header: %w", err)
		}
		_, err = fmt.Fprintln(w, string(b))
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(tw, "uuid\t%s\naccepted\t%s\n", h.UUID, accepted)
	for _, id := range slices.Sorted(maps.Keys(h.Meta.Segments)) {
		s := h.Meta.Segments[id]
		fmt.Fprintf(tw, "segment %s\t%s from %s, sectors of %d\n", id, s.Encryption, s.Offset, s.SectorSize)
	}
	for _, id := range slices.Sorted(maps.Keys(h.Meta.Keyslots)) {
		k := h.Meta.Keyslots[id]
		fmt.Fprintf(tw, "keyslot %s\t%s behind %s\n", id, k.Area.Encryption, k.KDF.Type)
	}
	for _, id := range slices.Sorted(maps.Keys(h.Meta.Tokens)) {
		t := h.Meta.Tokens[id]
		fmt.Fprintf(tw, "token %s\tkeyslots %s, version %s of %s\n", id, strings.Join(t.Keyslots, ","), t.Version, t.Resource)
	}
	return tw.Flush()
}
