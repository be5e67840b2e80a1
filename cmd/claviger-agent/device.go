package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/attest"
)

// tpmConfig is "tpm" in the configuration file.
type tpmConfig struct {
	Device   string `json:"device"`    // default /dev/tpmrm0
	EventLog string `json:"event_log"` // default the kernel's
	PCRs     []int  `json:"pcrs"`      // quoted; default all but those that change all the time
}

// or is c with what flags say in its place.
func (c tpmConfig) or(flags tpmConfig) tpmConfig {
	if flags.Device != "" {
		c.Device = flags.Device
	}
	return c
}

const tsmFolder = "/sys/kernel/config/tsm/report"

// hardware is what makes evidence on this machine.
func (s *settings) hardware() (agent.Device, error) {
	kind := s.Evidence
	if kind == "" {
		switch {
		case s.TPM.Device != "":
			kind = "tpm"
		case there(tsmFolder):
			kind = "tsm"
		case there(tpmdev.DefaultPath):
			kind = "tpm"
		default:
			return none{}, nil
		}
	}
	switch kind {
	case "tsm":
		return agent.TSM{}, nil
	case "tpm":
		return tpmdev.Open(tpmdev.Config{Path: s.TPM.Device, EventLog: s.TPM.EventLog, PCRs: s.TPM.PCRs})
	}
	return nil, fmt.Errorf("%w: evidence: %q is neither tsm nor tpm", errUsage, kind)
}

// none is the device of a machine that has none. It says so when evidence is
// wanted, after all that is wrong with the settings.
type none struct{}

func (none) Evidence(context.Context, attest.Transcript) (attest.Evidence, error) {
	return attest.Evidence{}, fmt.Errorf("this machine has nothing to make evidence with: neither %s (SEV-SNP, TDX) nor %s (TPM); are the drivers loaded?", tsmFolder, tpmdev.DefaultPath)
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func tpmCommand(s *settings) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:     "tpm",
		Short:   "Show what an operator needs to know of this machine's TPM: its chip id and attestation key",
		Example: "  claviger-agent tpm\n  claviger-agent tpm --output json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := tpmdev.Open(tpmdev.Config{Path: s.TPM.Device})
			if err != nil {
				return err
			}
			defer d.Close()
			chip, err := d.ChipID()
			if err != nil {
				return err
			}
			ak, err := d.AKName()
			if err != nil {
				return err
			}
			switch output {
			case "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"chip_id": chip, "ak_name": ak})
			case "table":
				tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintf(tw, "chip id\t%s\nattestation key\t%s\n", chip, ak)
				return tw.Flush()
			}
			return errors.Join(errUsage, fmt.Errorf("--output is %q, want table or json", output))
		},
	}
	c.Flags().StringVar(&output, "output", "table", "table or json")
	return c
}
