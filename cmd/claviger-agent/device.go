package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/azurevm"
	"github.com/claviger/claviger/broker/agent/gcevm"
	"github.com/claviger/claviger/broker/agent/nsm"
	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/internal/cli"
)

// tpmConfig is "tpm" in the configuration file.
type tpmConfig struct {
	Device   string `json:"device"`    // default /dev/tpmrm0
	EventLog string `json:"event_log"` // default the kernel's
	PCRs     []int  `json:"pcrs"`      // quoted; default all but those that change all the time
	// AKIssuers is a PEM file: the certificates above the key that Google certifies (evidence "gce").
	AKIssuers string `json:"ak_issuers"`
	// AKCertificate is a PEM file: a certificate of the TPM's attestation key, and its issuers.
	AKCertificate string `json:"ak_certificate"`
	// EKCertificate is a file, PEM or DER: the endorsement key's certificate as its manufacturer issued it, and its
	// issuers, for a TPM that does not hold it.
	EKCertificate string `json:"ek_certificate"`
}

// open connects to the TPM.
func (c tpmConfig) open() (*tpmdev.Device, error) {
	cfg := tpmdev.Config{Path: c.Device, EventLog: c.EventLog, PCRs: c.PCRs}
	var err error
	if cfg.AKCertificate, err = c.akCertificate(); err != nil {
		return nil, err
	}
	if cfg.EKCertificates, err = c.ekCertificates(); err != nil {
		return nil, err
	}
	return tpmdev.Open(cfg)
}

// akCertificate reads ak_certificate, without comments: it goes to the broker.
func (c tpmConfig) akCertificate() (out []byte, err error) {
	if c.AKCertificate == "" {
		return nil, nil
	}
	b, err := os.ReadFile(c.AKCertificate)
	if err != nil {
		return nil, fmt.Errorf("tpm.ak_certificate: %w", err)
	}
	certs, err := pemfile.Certificates(b)
	if err != nil {
		return nil, fmt.Errorf("tpm.ak_certificate: %s: %w", c.AKCertificate, err)
	}
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out, nil
}

// ekCertificates reads ek_certificate. What the certificates' DER looks like is the manufacturer's choice.
func (c tpmConfig) ekCertificates() ([][]byte, error) {
	if c.EKCertificate == "" {
		return nil, nil
	}
	b, err := os.ReadFile(c.EKCertificate)
	if err != nil {
		return nil, fmt.Errorf("tpm.ek_certificate: %w", err)
	}
	if !bytes.Contains(b, []byte("-----BEGIN ")) {
		return [][]byte{b}, nil
	}
	blocks, err := pemfile.Blocks(b)
	if err != nil {
		return nil, fmt.Errorf("tpm.ek_certificate: %s: %w", c.EKCertificate, err)
	}
	var out [][]byte
	for _, p := range blocks {
		if p.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("tpm.ek_certificate: %s holds a %s", c.EKCertificate, p.Type)
		}
		out = append(out, p.Bytes)
	}
	return out, nil
}

// issuers reads ak_issuers.
func (c tpmConfig) issuers() ([][]byte, error) {
	if c.AKIssuers == "" {
		return nil, fmt.Errorf("%w: tpm.ak_issuers: evidence of GCE wants the issuers of the attestation key's certificate", errUsage)
	}
	b, err := os.ReadFile(c.AKIssuers)
	if err != nil {
		return nil, fmt.Errorf("tpm.ak_issuers: %w", err)
	}
	var out [][]byte
	certs, err := pemfile.Certificates(b)
	if err != nil {
		return nil, fmt.Errorf("tpm.ak_issuers: %s: %w", c.AKIssuers, err)
	}
	for _, cert := range certs {
		out = append(out, cert.Raw)
	}
	return out, nil
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
		case there(nsm.DefaultPath):
			kind = "nsm"
		case there(tpmdev.DefaultPath):
			kind = "tpm"
		default:
			return none{}, nil
		}
	}
	switch kind {
	case "tsm":
		return agent.TSM{}, nil
	case "nsm":
		return nsm.Open(nsm.DefaultPath), nil
	case "tpm":
		return s.TPM.open()
	case "azure":
		t, err := s.TPM.open()
		if err != nil {
			return nil, err
		}
		return azurevm.New(t, ""), nil
	case "gce":
		issuers, err := s.TPM.issuers()
		if err != nil {
			return nil, err
		}
		t, err := s.TPM.open()
		if err != nil {
			return nil, err
		}
		return gcevm.New(t, agent.TSM{}, issuers), nil
	}
	return nil, fmt.Errorf("%w: evidence: %q is none of tsm, nsm, tpm, azure and gce", errUsage, kind)
}

// deviceConfig is a further device, whose evidence goes with the machine's.
type deviceConfig struct {
	// Evidence is "tsm", "nsm" or "tpm", as in settings; or else
	Evidence string `json:"evidence"`
	// Type is of the evidence that Command makes ("nvidia-gpu"). The command finds the digest to put into the
	// evidence in CLAVIGER_DIGEST_32, _48 and _64 (hex, by the size of the field), and prints JSON:
	// report, endorsements and event_log, in base64.
	Type    attest.Type `json:"type"`
	Command []string    `json:"command"`
}

// devices are those of the configuration.
func (s *settings) devices() ([]agent.Device, error) {
	var out []agent.Device
	for i, d := range s.Devices {
		field := fmt.Sprintf("devices[%d]", i)
		switch {
		case len(d.Command) > 0 && d.Type != "" && d.Evidence == "":
			out = append(out, commandDevice{d.Type, d.Command})
		case len(d.Command) == 0 && d.Type == "" && d.Evidence != "":
			one := *s
			one.Evidence = d.Evidence
			h, err := one.hardware()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", field, err)
			}
			out = append(out, h)
		default:
			return nil, fmt.Errorf("%w: %s: want either evidence, or type and command", errUsage, field)
		}
	}
	return out, nil
}

// commandDevice is a program that makes evidence.
type commandDevice struct {
	typ     attest.Type
	command []string
}

const (
	commandTime   = 30 * time.Second
	commandOutput = 1 << 20
)

// Evidence implements agent.Device.
func (d commandDevice) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	d32, d48, d64 := t.Digest32(), t.Digest48(), t.Digest64()
	c := exec.CommandContext(ctx, d.command[0], d.command[1:]...)
	c.Env = append(os.Environ(), fmt.Sprintf("CLAVIGER_DIGEST_32=%x", d32), fmt.Sprintf("CLAVIGER_DIGEST_48=%x", d48), fmt.Sprintf("CLAVIGER_DIGEST_64=%x", d64))
	c.Stderr, c.WaitDelay = os.Stderr, time.Second
	out, err := c.Output()
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("evidence of type %s: %s: %w", d.typ, d.command[0], err)
	}
	var made struct {
		Report       []byte `json:"report"`
		Endorsements []byte `json:"endorsements"`
		EventLog     []byte `json:"event_log"`
	}
	if len(out) > commandOutput {
		return attest.Evidence{}, fmt.Errorf("evidence of type %s: %s printed %d bytes", d.typ, d.command[0], len(out))
	}
	if err := strictjson.Unmarshal(out, &made); err != nil || len(made.Report) == 0 {
		return attest.Evidence{}, fmt.Errorf("evidence of type %s: %s did not print JSON with a report: %v", d.typ, d.command[0], err)
	}
	return attest.Evidence{Type: d.typ, Report: made.Report, Endorsements: made.Endorsements, EventLog: made.EventLog}, nil
}

// none is the device of a machine that has none. It says so when evidence is
// wanted, after all that is wrong with the settings.
type none struct{}

func (n none) Evidence(ctx context.Context, _ attest.Transcript) (attest.Evidence, error) {
	return n.Raw(ctx, [64]byte{})
}

func (none) Raw(context.Context, [64]byte) (attest.Evidence, error) {
	return attest.Evidence{}, fmt.Errorf("this machine has nothing to make evidence with: none of %s (SEV-SNP, TDX), %s (Nitro enclave) and %s (TPM); are the drivers loaded?", tsmFolder, nsm.DefaultPath, tpmdev.DefaultPath)
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// tpmFacts is what `claviger-agent tpm` shows.
type tpmFacts struct {
	ChipID   string `json:"chip_id"`
	AKName   string `json:"ak_name"`
	AKPublic string `json:"ak_public"` // PEM
	// EKIssuer and EKSerial are empty if the TPM has no certificate.
	EKIssuer string `json:"ek_issuer,omitempty"`
	EKSerial string `json:"ek_serial,omitempty"`
}

func tpmCommand(s *settings) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "tpm",
		Short: "Show what an operator needs to know of this machine's TPM: its chip id, its attestation key, who certified it",
		Example: `  claviger-agent tpm
  claviger-agent tpm --output json | jq -r .ak_public      # for a CA that certifies attestation keys ("tpm.ak_certificate")
  claviger-agent tpm --tpm /run/swtpm/sock`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 || output != "table" && output != "json" {
				return fmt.Errorf("%w: want no arguments, and --output table or json", errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.load(); err != nil {
				return err
			}
			d, err := s.TPM.open()
			if err != nil {
				return err
			}
			defer d.Close()
			f, err := factsOf(d)
			if err != nil {
				return err
			}
			if output == "json" {
				return json.NewEncoder(cli.Plain(cmd.OutOrStdout())).Encode(f)
			}
			tw := tabwriter.NewWriter(cli.Plain(cmd.OutOrStdout()), 0, 4, 2, ' ', 0)
			cli.Fprintf(tw, "chip id\t%s\nattestation key\t%s\n", f.ChipID, f.AKName)
			if f.EKIssuer != "" {
				cli.Fprintf(tw, "certified by\t%s\nserial number\t%s\n", f.EKIssuer, f.EKSerial)
			}
			return tw.Flush()
		},
	}
	c.Flags().StringVar(&output, "output", "table", "table or json")
	return c
}

func factsOf(d *tpmdev.Device) (f tpmFacts, err error) {
	if f.ChipID, err = d.ChipID(); err != nil {
		return f, err
	}
	if f.AKName, err = d.AKName(); err != nil {
		return f, err
	}
	der, err := d.AKPublic()
	if err != nil {
		return f, err
	}
	f.AKPublic = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	// A TPM whose attestation key is certified may have no EK certificate.
	if c, err := d.EKCertificate(); err == nil {
		f.EKIssuer, f.EKSerial = c.Issuer.String(), c.SerialNumber.Text(16)
	}
	return f, nil
}
