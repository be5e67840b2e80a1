package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/deliver"
	"github.com/claviger/claviger/broker/agent/netup"
	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/agent/unlock"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/byok"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/reread"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/cli"
)

var version = "dev" // set by the linker

var errUsage = cli.ErrUsage

const defaultConfig = "/etc/claviger/agent.json"

// settings come from flags, then CLAVIGER_… variables, then the configuration
// file, then defaults: the first that says something counts. Of what says whom
// to trust (identity, CA, server name, suite) the file counts before variables.
type settings struct {
	Broker          brokerList       `json:"broker"`
	CA              string           `json:"ca"`
	Identity        string           `json:"identity"`
	ServerName      string           `json:"server_name"`
	key             *seal.PrivateKey // nil: a fresh one of Suite
	Suite           string           `json:"suite"`
	Timeout         string           `json:"timeout"`
	SimulatedDevice string           `json:"-"` // never from a file: it has to be asked for each time
	Measurement     string           `json:"-"`
	HostData        string           `json:"-"`
	Verbose         bool             `json:"-"`
	// Evidence is "tsm", "nsm", "tpm", "azure", "gce", or empty for what the machine has.
	Evidence string `json:"evidence"`
	// Devices are further devices, from the file only.
	Devices []deviceConfig `json:"devices"`
	// Network gives the machine an address, at boot, if it has none.
	Network netup.Config `json:"network"`
	TPM     tpmConfig    `json:"tpm"`
	// Serve is for `claviger-agent serve` only.
	Serve *serveConfig `json:"serve"`
	// Volumes and Unlock are for `unlock`, `rekey` and `enroll`.
	Volumes []unlock.Volume `json:"volumes"`
	Unlock  unlockConfig    `json:"unlock"`
	// Keys is for `keys`.
	Keys      keysConfig     `json:"keys"`
	oneVolume *unlock.Volume // named by flags
	config    string
}

// brokerList is host:port, or several separated by commas; in a file, it may be an array, too.
type brokerList string

func (l *brokerList) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*l = brokerList(one)
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return errors.New("broker: want host:port, or an array of them")
	}
	*l = brokerList(strings.Join(many, ","))
	return nil
}

func newCommand() *cobra.Command {
	var s settings
	root := &cobra.Command{
		Use:           "claviger-agent",
		Short:         "Fetch secrets from a Claviger broker by proving what this machine is",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Long: `claviger-agent makes a fresh key, has the hardware sign evidence that binds it to
this very request (configfs-tsm: AMD SEV-SNP, Intel TDX; a Nitro enclave; or a TPM 2.0), and opens the
broker's reply. It accepts a reply only from the broker whose identity is pinned here.

Settings: flag, then environment (CLAVIGER_BROKER, CLAVIGER_CA, CLAVIGER_IDENTITY,
CLAVIGER_SERVER_NAME, CLAVIGER_SUITE, CLAVIGER_TIMEOUT, CLAVIGER_EVIDENCE), then ` + defaultConfig + `.
An identity, CA, server name or suite in that file is replaced by a flag only.

Exit codes: 0 done, 1 failed, 2 usage, 3 denied (asking again will not help),
4 no answer before the deadline.`,
		Example: `  claviger-agent get db/orders --broker kb1.example:7443,kb2.example:7443
  claviger-agent get disks/vm-17 --evidence tpm --out /run/keys/disk.key
  claviger-agent get disks/vm-17 --tpm /run/swtpm/sock --out /run/keys/disk.key`,
	}
	f := root.PersistentFlags()
	f.StringVar(&s.config, "config", "", "configuration file, JSON (default "+defaultConfig+" if it exists)")
	f.StringVar((*string)(&s.Broker), "broker", "", "the broker's address, host:port, or those of several with one identity: kb1.example:7443,kb2.example:7443")
	f.StringVar(&s.CA, "ca", "", "PEM file with the roots of the broker's TLS certificate (default: the system's)")
	f.StringVar(&s.ServerName, "server-name", "", "name in the broker's TLS certificate, if it is not the address")
	f.StringVar(&s.Identity, "identity", "", "the broker's pinned identity: a PEM file, or the public key in base64")
	f.StringVar(&s.Suite, "suite", "", "key algorithm (default "+string(seal.Hybrid)+")")
	f.StringVar(&s.Timeout, "timeout", "", "give up after this long (default 2m)")
	f.StringVar(&s.Evidence, "evidence", "", "tsm (configfs-tsm: SEV-SNP, TDX), nsm (Nitro enclave), tpm, azure or gce (confidential VMs with their vTPM); default: tsm, nsm or tpm, whichever this machine has")
	f.StringVar(&s.TPM.Device, "tpm", "", "the TPM: a device, or an emulator's Unix socket (default "+tpmdev.DefaultPath+")")
	f.BoolVarP(&s.Verbose, "verbose", "v", false, "say what is being retried, on standard error")
	f.StringVar(&s.SimulatedDevice, "simulated-device", "", "use the SIMULATED device in this file (made by \"claviger dev\") in place of hardware; only a dev broker accepts it")
	f.StringVar(&s.Measurement, "simulated-measurement", "", "launch measurement of the simulated device: 96 hex digits, or the name of a made-up image")
	f.StringVar(&s.HostData, "simulated-host-data", "", "32-byte HOST_DATA of the simulated device, in hex")
	root.AddCommand(getCommand(&s), execCommand(&s), serveCommand(&s), evidenceCommand(&s),
		unlockCommand(&s), rekeyCommand(&s), enrollCommand(&s), recoveryKeyCommand(), luksCommand(), tpmCommand(&s), keysCommand(&s), clevisCommand(&s), bootFilesCommand(&s))
	cli.Strict(root)
	return root
}

func getCommand(s *settings) *cobra.Command {
	var out, output, receiptFile string
	var inputs []string
	var prove, unwrap bool
	c := &cobra.Command{
		Use:   "get RESOURCE…",
		Short: "Fetch secrets: to standard output, a file (0600, written atomically) or a folder",
		Example: `  claviger-agent get db/orders
  claviger-agent get disks/vm-17 --out /run/keys/disk.key
  claviger-agent get db/orders db/users --out /run/secrets/      # a folder: one file each
  claviger-agent get db/orders --output json
  claviger-agent get certs/vm-7 --input certs/vm-7=csr.der      # what the resource's kind wants from the workload
  claviger-agent get export/app --unwrap --out app.key          # a key of Vault's that the broker never sees
  claviger-agent get db/orders --receipt receipt.json --prove`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return fmt.Errorf("%w: name at least one resource", errUsage)
			case output != "raw" && output != "json":
				return fmt.Errorf("%w: --output is %q, want raw or json", errUsage, output)
			case len(args) > 1 && output == "raw" && !strings.HasSuffix(out, "/"):
				return fmt.Errorf("%w: several secrets need --output json, or --out with a folder (ending in /)", errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := readInputs(inputs)
			if err != nil {
				return err
			}
			var private *rsa.PrivateKey
			if unwrap {
				if private, err = s.exportKey(); err != nil {
					return err
				}
			}
			return s.fetch(cmd, args, in, func(ctx context.Context, c *agent.Client, secrets []agent.Secret, r agent.Receipt) error {
				for i, wrapped := range secrets {
					if private == nil {
						break
					}
					value, err := byok.UnwrapBYOK(private, wrapped.Value)
					if err != nil {
						return fmt.Errorf("--unwrap: %s: %w (is it of kind transit_export?)", wrapped.Resource, err)
					}
					wrapped.Wipe()
					secrets[i].Value = value
				}
				if prove {
					if err := c.Prove(ctx, &r); err != nil {
						return err
					}
				}
				if receiptFile != "" {
					b, err := json.MarshalIndent(r, "", "  ")
					if err != nil {
						return fmt.Errorf("encode receipt: %w", err)
					}
					if err := writeFile(receiptFile, append(b, '\n')); err != nil {
						return err
					}
				}
				return write(cmd.OutOrStdout(), secrets, out, output)
			})
		},
	}
	c.Flags().StringArrayVar(&inputs, "input", nil, "RESOURCE=FILE: send this with the resource (a CSR, a ciphertext); may be repeated")
	c.Flags().StringVarP(&out, "out", "o", "", "file to write to, or a folder (ending in /)")
	c.Flags().StringVar(&output, "output", "raw", "raw or json")
	c.Flags().StringVar(&receiptFile, "receipt", "", "write the broker's signed receipt to this file")
	c.Flags().BoolVar(&unwrap, "unwrap", false, "resources of kind transit_export: have Vault wrap the key to an RSA key made here, and open it")
	c.Flags().BoolVar(&prove, "prove", false, "wait for the transparency log's inclusion proof and put it into the receipt")
	return c
}

// exportKey makes the RSA key that Vault wraps keys to, and has the client use it.
func (s *settings) exportKey() (*rsa.PrivateKey, error) {
	private, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return nil, fmt.Errorf("--unwrap: make a key: %w", err)
	}
	if s.key, err = seal.ImportRSA(private); err != nil {
		return nil, fmt.Errorf("--unwrap: %w", err)
	}
	return private, nil
}

// readInputs reads RESOURCE=FILE.
func readInputs(flags []string) (map[string][]byte, error) {
	in := map[string][]byte{}
	for _, f := range flags {
		resource, file, ok := strings.Cut(f, "=")
		if !ok || resource == "" || file == "" {
			return nil, fmt.Errorf("%w: --input %q is not RESOURCE=FILE", errUsage, f)
		}
		b, err := readInput(file)
		if err != nil {
			return nil, fmt.Errorf("%w: --input: %w", errUsage, err)
		}
		in[resource] = b
	}
	return in, nil
}

func readInput(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err == nil && (len(b) == 0 || len(b) > 64<<10) {
		err = fmt.Errorf("%s has %d bytes, want 1 to 65536", file, len(b))
	}
	return b, err
}

func execCommand(s *settings) *cobra.Command {
	var env []string
	var watch string
	var jitter, grace time.Duration
	c := &cobra.Command{
		Use:   "exec --env NAME=RESOURCE… -- COMMAND ARG…",
		Short: "Fetch secrets and run a command with them in its environment",
		Long: `Fetch secrets and run a command with them in its environment. The command takes
this process's place. With --watch this process stays, gets each new version of the
secrets, and restarts or signals the command; it forwards signals, and exits as the
command does.`,
		Example: `  claviger-agent exec --env PGPASSWORD=db/orders -- psql -h db orders
  claviger-agent exec --watch restart --jitter 30s --env PGPASSWORD=db/orders -- ./server`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%w: name a command after --", errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := exec.LookPath(args[0])
			if err != nil {
				return fmt.Errorf("find command: %w", err)
			}
			var names, resources []string
			for _, e := range env {
				name, resource, ok := strings.Cut(e, "=")
				if !ok || name == "" || resource == "" {
					return fmt.Errorf("%w: --env %q is not NAME=RESOURCE", errUsage, e)
				}
				names, resources = append(names, name), append(resources, resource)
			}
			if len(names) == 0 {
				return fmt.Errorf("%w: no --env NAME=RESOURCE given", errUsage)
			}
			if watch != "" {
				return s.supervise(cmd, path, args, names, resources, watch, jitter, grace)
			}
			return s.fetch(cmd, resources, nil, func(_ context.Context, _ *agent.Client, secrets []agent.Secret, _ agent.Receipt) error {
				vars := map[string]string{}
				for i, sec := range secrets {
					if err := deliver.CheckValue(sec.Value); err != nil {
						return fmt.Errorf("%s: %w", sec.Resource, err)
					}
					vars[names[i]] = string(sec.Value)
				}
				env := deliver.Environment(os.Environ(), vars)
				// The command takes this process's place: signals and exit code are its own.
				return fmt.Errorf("run %s: %w", path, syscall.Exec(path, args, env))
			})
		},
	}
	c.Flags().StringArrayVarP(&env, "env", "e", nil, "NAME=RESOURCE, may be repeated")
	c.Flags().StringVar(&watch, "watch", "", "stay, and on rotation: restart, signal=SIGHUP (or another signal), or none")
	c.Flags().DurationVar(&jitter, "jitter", 0, "with --watch restart: spread restarts of a fleet over this long")
	c.Flags().DurationVar(&grace, "grace", 10*time.Second, "with --watch restart: from SIGTERM to SIGKILL")
	return c
}

func evidenceCommand(s *settings) *cobra.Command {
	var data, out, logFile string
	c := &cobra.Command{
		Use:   "evidence",
		Short: "Make evidence over given report data and write it to a file, for `claviger evidence show`",
		Long: `Make evidence over given report data and write it to a file, for ` + "`claviger evidence show`" + `:
an SNP report with its certificate table behind it, a TDX quote, a document of AWS
Nitro, or for a TPM a JSON document with the quote, its signature, the attestation
key, the PCRs and the kernel command line (proto/README.md). A TPM takes 32 bytes of
report data.`,
		Example: `  claviger-agent evidence --report-data 00…(128 hex digits) --out report.bin
  claviger-agent evidence --evidence tpm --out tpm.json --event-log boot.log`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rd, err := hex.DecodeString(data)
			if err != nil || len(rd) > 64 {
				return fmt.Errorf("%w: --report-data: want at most 128 hex digits", errUsage)
			}
			if err := s.load(); err != nil {
				return err
			}
			d, err := s.device(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer letGo(d)
			raw, ok := d.(interface {
				Raw(ctx context.Context, reportData [64]byte) (attest.Evidence, error)
			})
			if !ok {
				return errors.New("this device does not take report data")
			}
			var field [64]byte
			copy(field[:], rd)
			ev, err := raw.Raw(cmd.Context(), field)
			if err != nil {
				return err
			}
			if logFile != "" {
				if len(ev.EventLog) == 0 {
					return errors.New("--event-log: this machine's firmware shows no event log")
				}
				if err := writeFile(logFile, ev.EventLog); err != nil {
					return err
				}
			}
			if ev.Type == attest.TypeTPM { // JSON: nothing can stand behind it
				return writeFile(out, ev.Report)
			}
			return writeFile(out, append(ev.Report, ev.Endorsements...))
		},
	}
	c.Flags().StringVar(&data, "report-data", "", "up to 64 bytes in hex, padded with zeros")
	c.Flags().StringVarP(&out, "out", "o", "evidence.bin", "file to write")
	c.Flags().StringVar(&logFile, "event-log", "", "write the firmware's event log to this file, too")
	return c
}

// fetch runs use with opened secrets, and wipes them after.
func (s *settings) fetch(cmd *cobra.Command, resources []string, inputs map[string][]byte, use func(context.Context, *agent.Client, []agent.Secret, agent.Receipt) error) error {
	client, done, err := s.client(cmd)
	if err != nil {
		return err
	}
	defer done()
	timeout, err := time.ParseDuration(s.Timeout)
	if err != nil || timeout <= 0 {
		return fmt.Errorf("%w: timeout: %q is not a duration like 90s", errUsage, s.Timeout)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	secrets, receipt, err := client.GetWith(ctx, inputs, resources...)
	if err != nil {
		return err
	}
	defer func() {
		for i := range secrets {
			secrets[i].Wipe()
		}
	}()
	return use(ctx, client, secrets, receipt)
}

// letGo closes a device, without waiting for long for one that hangs: the end of this process closes it, too.
func letGo(d agent.Device) {
	c, ok := d.(io.Closer)
	if !ok {
		return
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.Close()
	}()
	select {
	case <-closed:
	case <-time.After(time.Second):
	}
}

// client is the broker's, by the settings; done lets go of it and of the device.
func (s *settings) client(cmd *cobra.Command) (client *agent.Client, done func(), err error) {
	if err := s.complete(); err != nil {
		return nil, nil, err
	}
	device, err := s.device(cmd.ErrOrStderr())
	if err != nil {
		return nil, nil, err
	}
	let := func() { letGo(device) }
	if client, err = s.clientOf(cmd, device); err != nil {
		let()
		return nil, nil, err
	}
	return client, func() { client.Close(); let() }, nil
}

// clientOf is a client with a device that the caller has.
func (s *settings) clientOf(cmd *cobra.Command, device agent.Device) (*agent.Client, error) {
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	told := func(err error) {
		if err != nil {
			log.Warn("a file changed, and what it says cannot be used: what it said before stays in force", "error", err)
		}
	}
	roots, err := s.roots(told)
	if err != nil {
		return nil, err
	}
	pin, err := s.identity(told)
	if err != nil {
		return nil, err
	}
	missing, err := s.network(cmd)
	if err != nil {
		return nil, err
	}
	devices, err := s.devices()
	if err != nil {
		return nil, err
	}
	cfg := agent.Config{
		Address: string(s.Broker), TLS: &tls.Config{MinVersion: tls.VersionTLS13, ServerName: s.ServerName}, Roots: roots, Pin: pin, Device: device, Devices: devices, Suite: seal.Suite(s.Suite), Key: s.key,
		Resolver: s.Network.Resolver(), Missing: missing, Built: builtAt(),
	}
	cfg.Trouble = func(err error) {
		if err == nil {
			log.Info("up to date with the broker again")
			return
		}
		log.Warn("not up to date with the broker: what is there stays, trying again", "error", err)
	}
	if s.Verbose {
		cfg.Logf = func(format string, args ...any) {
			cli.Fprintf(cmd.ErrOrStderr(), "claviger-agent: "+format+"\n", args...)
		}
	}
	return agent.New(cfg)
}

// complete fills in the settings and wants those without which no broker can be asked.
func (s *settings) complete() error {
	if err := s.load(); err != nil {
		return err
	}
	return s.wanted()
}

// wanted says what is missing in loaded settings.
func (s *settings) wanted() error {
	switch {
	case s.Broker == "":
		return fmt.Errorf("%w: no broker: give --broker host:port, CLAVIGER_BROKER or \"broker\" in %s", errUsage, s.path())
	case s.Identity == "":
		return fmt.Errorf("%w: no pinned broker identity: give --identity, CLAVIGER_IDENTITY or \"identity\" in %s", errUsage, s.path())
	}
	return nil
}

func (s *settings) path() string {
	if s.config == "" {
		return defaultConfig
	}
	return s.config
}

// load fills in the settings.
func (s *settings) load() error {
	var file settings
	path := s.path()
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := strictjson.UnmarshalKnown(b, &file); err != nil {
			return fmt.Errorf("%w: configuration file %s: %w", errUsage, path, err)
		}
	case s.config != "" || !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: configuration file: %w", errUsage, err)
	}
	pick := func(dst *string, values ...string) {
		*dst = cmp.Or(append([]string{*dst}, values...)...)
	}
	pick((*string)(&s.Broker), os.Getenv("CLAVIGER_BROKER"), string(file.Broker))
	pick(&s.Timeout, os.Getenv("CLAVIGER_TIMEOUT"), file.Timeout, "2m")
	pick(&s.Evidence, os.Getenv("CLAVIGER_EVIDENCE"), file.Evidence)
	// What says whom to trust, the environment does not change: at boot, words of the kernel's command line are in it.
	pick(&s.Identity, file.Identity, os.Getenv("CLAVIGER_IDENTITY"))
	pick(&s.CA, file.CA, os.Getenv("CLAVIGER_CA"))
	pick(&s.ServerName, file.ServerName, os.Getenv("CLAVIGER_SERVER_NAME"))
	pick(&s.Suite, file.Suite, os.Getenv("CLAVIGER_SUITE"), string(seal.Hybrid))
	s.TPM, s.Network, s.Devices = file.TPM.or(s.TPM), file.Network, file.Devices
	s.Serve, s.Volumes, s.Unlock, s.Keys = file.Serve, file.Volumes, file.Unlock, file.Keys
	return nil
}

// roots are those of the broker's TLS certificate; nil: the system's.
func (s *settings) roots(told func(error)) (func() *x509.CertPool, error) {
	if s.CA == "" {
		return nil, nil
	}
	ca, err := reread.Open(told, func(b [][]byte) (*x509.CertPool, error) { return pemfile.Pool(b[0]) }, s.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %s: %w", s.CA, err)
	}
	return ca.Get, nil
}

// identity is the pin.
func (s *settings) identity(told func(error)) (func() ([]byte, error), error) {
	if der, err := base64.StdEncoding.DecodeString(s.Identity); err == nil && len(der) == 44 {
		return func() ([]byte, error) { return der, nil }, nil
	}
	pin, err := reread.Open(told, func(b [][]byte) ([]byte, error) { return pemfile.One(b[0], "PUBLIC KEY") }, s.Identity)
	if err != nil {
		return nil, fmt.Errorf("identity: %s: neither a public key in base64 nor a file with one: %w", s.Identity, err)
	}
	return func() ([]byte, error) { return pin.Get(), nil }, nil
}

func (s *settings) device(stderr io.Writer) (agent.Device, error) {
	if s.SimulatedDevice == "" {
		if s.Measurement != "" || s.HostData != "" {
			return nil, fmt.Errorf("%w: --simulated-measurement and --simulated-host-data go with --simulated-device", errUsage)
		}
		return s.hardware()
	}
	cli.Fprintln(stderr, "claviger-agent: SIMULATED device: this proves nothing about this machine")
	d, err := teesim.LoadDevice(s.SimulatedDevice)
	if err != nil {
		return nil, err
	}
	sim := simulated{device: d}
	sim.options.Measurement = measurement(s.Measurement)
	if b, err := hex.DecodeString(s.HostData); err != nil || (len(b) != 32 && s.HostData != "") {
		return nil, fmt.Errorf("%w: --simulated-host-data: want 64 hex digits", errUsage)
	} else {
		copy(sim.options.HostData[:], b)
	}
	return sim, nil
}

// measurement is 96 hex digits, or the name of a made-up image.
func measurement(s string) [48]byte {
	if b, err := hex.DecodeString(s); err == nil && len(b) == 48 {
		return [48]byte(b)
	}
	return teesim.Measurement(s)
}

type simulated struct {
	device  *teesim.Device
	options teesim.ReportOptions
}

func (s simulated) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	return s.Raw(ctx, t.Digest64())
}

func (s simulated) Raw(_ context.Context, d [64]byte) (attest.Evidence, error) {
	return s.device.Evidence(d, s.options)
}

// write puts the secrets where they were asked for.
func write(stdout io.Writer, secrets []agent.Secret, out, output string) error {
	if output == "json" {
		type item struct {
			Resource string    `json:"resource"`
			Value    []byte    `json:"value"` // base64
			Version  string    `json:"version"`
			Expires  time.Time `json:"expires"`
			Policy   string    `json:"policy"`
		}
		var items []item
		for _, s := range secrets {
			items = append(items, item{s.Resource, s.Value, s.Version, s.Expires.UTC(), s.Policy})
		}
		b, err := json.MarshalIndent(items, "", "  ")
		if err != nil {
			return fmt.Errorf("encode secrets: %w", err)
		}
		defer clear(b)
		if out != "" {
			return writeFile(out, append(b, '\n'))
		}
		_, err = stdout.Write(append(b, '\n'))
		return err
	}
	if out == "" {
		_, err := stdout.Write(secrets[0].Value)
		return err
	}
	if !strings.HasSuffix(out, "/") {
		return writeFile(out, secrets[0].Value)
	}
	for _, s := range secrets {
		path := filepath.Join(out, filepath.FromSlash(s.Resource))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		if err := writeFile(path, s.Value); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces path atomically with a file that only its owner can read.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
