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
	"github.com/claviger/claviger/internal/cli"
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

// retryUnlock is how long a boot without anybody to ask waits before it asks the broker again.
const retryUnlock = 10 * time.Second

func unlockCommand(s *settings) *cobra.Command {
	var device, resource, format, ask string
	var noPassphrase, boot bool
	c := &cobra.Command{
		Use:   "unlock [NAME…]",
		Short: "Open LUKS2 disks with keys from the broker: all volumes of the configuration, or those named",
		Long: `Open LUKS2 disks with keys from the broker: all "volumes" of the configuration
file, or those named. A disk's header is checked, copied to memory and opened from
there; a disk that was not enrolled, or whose header is not the one that was, is
refused. A volume with "format": "blank" is formatted at its first boot, if the disk
holds only zeros.

All volumes are tried at once, so that none waits for a disk that is not there. From
the beginning a passphrase or recovery key can be typed instead, unless
"unlock.passphrase_fallback" is false: whichever comes first opens the disk.

When disks were opened, PCR "unlock.close_pcr" (15) of a TPM is extended, so that a
policy that wants it untouched gives nothing more until the next boot.`,
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
			if err := s.load(); err != nil {
				return err
			}
			fallback := s.Unlock.PassphraseFallback == nil || *s.Unlock.PassphraseFallback
			var asker unlock.Asker
			switch {
			case noPassphrase || !fallback:
			case ask != "":
				asker = askBy(ask, cmd.ErrOrStderr())
			default:
				asker = askAt(os.Stdin, cmd.ErrOrStderr())
			}
			for {
				err := s.unlock(cmd, args, asker)
				if err == nil || !boot || fallback || cmd.Context().Err() != nil {
					return err
				}
				cli.Fprintf(cmd.ErrOrStderr(), "claviger-agent: %v\nclaviger-agent: unlock.passphrase_fallback is false: trying again in %s\n", err, retryUnlock)
				select {
				case <-cmd.Context().Done():
					return err
				case <-time.After(retryUnlock):
				}
			}
		},
	}
	c.Flags().BoolVar(&noPassphrase, "no-passphrase", false, "do not ask for a passphrase: something else will")
	c.Flags().StringVar(&ask, "ask", "", "program that asks for a passphrase and prints it (systemd-ask-password); default: the terminal")
	c.Flags().BoolVar(&boot, "boot", false, "for boot scripts: if unlock.passphrase_fallback is false, try until the disks are open, so that nothing else asks")
	c.Flags().StringVar(&device, "device", "", "the disk: a path or UUID=…")
	c.Flags().StringVar(&resource, "resource", "", "the secret that opens it; {chip}, {name} and {uuid} are filled in")
	c.Flags().StringVar(&format, "format", "never", "blank: format a disk that holds only zeros")
	return c
}

// unlock opens volumes by the broker's keys and, where ask is not nil, by what a
// person types. A person is asked at once, and also if no broker can be: the TPM
// or the network may be what is broken.
func (s *settings) unlock(cmd *cobra.Command, names []string, ask unlock.Asker) error {
	volumes, err := s.selected(names)
	if err != nil {
		return err
	}
	timeout, err := s.patience()
	if err != nil {
		return err
	}
	logf := func(format string, args ...any) {
		cli.Fprintf(cmd.ErrOrStderr(), "claviger-agent: "+format+"\n", args...)
	}
	var m machine
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		if m.err = s.wanted(); m.err == nil {
			m = s.machine(cmd)
		}
	}()
	console := &unlock.Unlocker{Logf: logf}
	open, err := console.OpenAll(cmd.Context(), volumes, unlock.Opening{Ask: ask, Timeout: timeout, ByBroker: func(ctx context.Context, v unlock.Volume) error {
		select {
		case <-ready:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", v.Name, ctx.Err())
		}
		if m.err != nil {
			return fmt.Errorf("%s: %w", v.Name, m.err)
		}
		v, err := named(v, m.device)
		if err != nil {
			return err
		}
		return (&unlock.Unlocker{Broker: m.client, Logf: logf}).Unlock(ctx, v)
	}})
	<-ready
	defer m.close()
	if open > 0 && m.device != nil { // also if others stay closed: whoever can keep one closed must not keep the door open
		err = errors.Join(err, s.closeDoor(cmd.ErrOrStderr(), m.device))
	}
	return err
}

// machine is what asks the broker, or why nothing can.
type machine struct {
	device agent.Device
	client *agent.Client
	err    error
}

func (s *settings) machine(cmd *cobra.Command) (m machine) {
	if m.device, m.err = s.device(cmd.ErrOrStderr()); m.err == nil {
		m.client, m.err = s.clientOf(cmd, m.device)
	}
	return m
}

func (m machine) close() {
	if m.client != nil {
		m.client.Close()
	}
	letGo(m.device)
}

// patience is "timeout".
func (s *settings) patience() (time.Duration, error) {
	timeout, err := time.ParseDuration(s.Timeout)
	if err != nil || timeout <= 0 {
		return 0, fmt.Errorf("%w: timeout: %q is not a duration like 90s", errUsage, s.Timeout)
	}
	return timeout, nil
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
	cli.Fprintf(stderr, "claviger-agent: PCR %d extended: no more keys in this boot\n", pcr)
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
	m := s.machine(cmd)
	defer m.close()
	if m.err != nil {
		return m.err
	}
	volumes, err := s.volumes(names, m.device)
	if err != nil {
		return err
	}
	timeout, err := s.patience()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	return use(ctx, &unlock.Unlocker{
		Broker: m.client,
		Logf: func(format string, args ...any) {
			cli.Fprintf(cmd.ErrOrStderr(), "claviger-agent: "+format+"\n", args...)
		},
	}, volumes, m.device)
}

// volumes are those named, or all, with their resources' names filled in.
func (s *settings) volumes(names []string, d agent.Device) ([]unlock.Volume, error) {
	volumes, err := s.selected(names)
	for i := range volumes {
		if volumes[i], err = named(volumes[i], d); err != nil {
			return nil, err
		}
	}
	return volumes, err
}

// selected are the volumes named, or all.
func (s *settings) selected(names []string) ([]unlock.Volume, error) {
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

// named is v with its resources' names filled in.
func named(v unlock.Volume, d agent.Device) (_ unlock.Volume, err error) {
	for _, r := range []*string{&v.Resource, &v.Recovery} {
		if *r, err = fill(*r, v, d); err != nil {
			return v, fmt.Errorf("volume %s: resource: %w", v.Name, err)
		}
	}
	return v, nil
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
			_, err = io.WriteString(cmd.OutOrStdout(), unlock.RecoveryText(secret)+"\n")
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
			if err := printHeader(cli.Plain(cmd.OutOrStdout()), h, verdict, output); err != nil {
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
		_, err = w.Write(append(b, '\n'))
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	cli.Fprintf(tw, "uuid\t%s\naccepted\t%s\n", h.UUID, accepted)
	for _, id := range slices.Sorted(maps.Keys(h.Meta.Segments)) {
		s := h.Meta.Segments[id]
		cli.Fprintf(tw, "segment %s\t%s from %s, sectors of %d\n", id, s.Encryption, s.Offset, s.SectorSize)
	}
	for _, id := range slices.Sorted(maps.Keys(h.Meta.Keyslots)) {
		k := h.Meta.Keyslots[id]
		cli.Fprintf(tw, "keyslot %s\t%s behind %s\n", id, k.Area.Encryption, k.KDF.Type)
	}
	for _, id := range slices.Sorted(maps.Keys(h.Meta.Tokens)) {
		t := h.Meta.Tokens[id]
		cli.Fprintf(tw, "token %s\tkeyslots %s, version %s of %s\n", id, strings.Join(t.Keyslots, ","), t.Version, t.Resource)
	}
	return tw.Flush()
}
