package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/telemetry"
	"github.com/claviger/claviger/internal/cli"
	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
)

func serveCommand() *cobra.Command {
	var file string
	var check bool
	var flags server.Config
	c := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run a broker",
		Long: `Run a broker from a configuration file (docs/configuration.md). A flag wins over
its environment variable, which wins over the file.`,
		Example: `  claviger serve --config /etc/claviger/claviger.yaml
  claviger serve --config /etc/claviger/claviger.yaml --check     # what is wrong with it, and start nothing
  CLAVIGER_LOG_LEVEL=debug claviger serve --config claviger.yaml --listen 127.0.0.1:7443`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return fmt.Errorf("%w: --config is missing", errUsage)
			}
			cfg, err := server.Load(file)
			if err != nil {
				return err
			}
			cfg.Environment(os.Getenv)
			for from, to := range map[*string]*string{
				&flags.Listen: &cfg.Listen, &flags.Admin.Listen: &cfg.Admin.Listen, &flags.Metrics: &cfg.Metrics,
				&flags.DataDir: &cfg.DataDir, &flags.Log.Level: &cfg.Log.Level, &flags.Policy.Dir: &cfg.Policy.Dir,
			} {
				if *from != "" {
					*to = *from
				}
			}
			if check {
				if err := server.Check(cmd.Context(), cfg, server.Options{Version: version}); err != nil {
					return err
				}
				cli.Fprintf(cmd.OutOrStdout(), "%s: a broker would start with it\n", file)
				return nil
			}
			return serve(cmd.Context(), cfg, server.Options{Version: version}, cmd.ErrOrStderr(), nil)
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file, YAML (required)")
	f.BoolVar(&check, "check", false, "read the configuration and all files that it names, say what is wrong, and start nothing")
	f.StringVar(&flags.Listen, "listen", "", "address for workloads (CLAVIGER_LISTEN)")
	f.StringVar(&flags.Admin.Listen, "admin-listen", "", "address for operators, or off (CLAVIGER_ADMIN_LISTEN)")
	f.StringVar(&flags.Metrics, "metrics-listen", "", "address for /metrics, /livez and /readyz, or off (CLAVIGER_METRICS_LISTEN)")
	f.StringVar(&flags.DataDir, "data-dir", "", "folder for state (CLAVIGER_DATA_DIR)")
	f.StringVar(&flags.Policy.Dir, "policy-dir", "", "folder of policy bundles (CLAVIGER_POLICY_DIR)")
	f.StringVar(&flags.Log.Level, "log-level", "", "debug, info, warn or error (CLAVIGER_LOG_LEVEL)")
	return c
}

func devCommand() *cobra.Command {
	var dir, file, listen, admin, metrics string
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a broker for trying things out, with SIMULATED hardware",
		Long: `Run a broker on loopback with the example policies, an embedded store, fresh
certificates and a SIMULATED SEV-SNP device under a test root made on the spot.
It proves nothing about any machine; never use it for real secrets.

The policies lie in DIR/policies: change one and it is in force a moment later.`,
		Example: `  claviger dev
  # in a second terminal:
  . ` + defaultDevDir() + `/env
  claviger-agent get db/orders --simulated-device $CLAVIGER_DEV/device.json
  claviger audit tail

  claviger dev --config vault.yaml     # with secrets of a Vault beside the embedded ones`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Before anything is written: a second one would take the first one's certificates and device away.
			release, err := dev.Lock(dir)
			if err != nil {
				return err
			}
			defer release()
			env, err := dev.Prepare(dir, time.Now())
			if err != nil {
				return err
			}
			env.Config.Listen, env.Config.Admin.Listen, env.Config.Metrics = listen, admin, metrics
			if file != "" {
				more, err := server.Load(file)
				if err != nil {
					return err
				}
				if err := env.Add(more); err != nil {
					return err
				}
			}
			return serve(cmd.Context(), env.Config, server.Options{Version: version, TestRoots: env.TestRoots()}, cmd.ErrOrStderr(),
				func(s *server.Server) error {
					if err := env.Finish(s); err != nil {
						return err
					}
					if err := env.Seed(cmd.Context(), s); err != nil {
						return err
					}
					printDev(cmd.OutOrStdout(), env, s)
					return nil
				})
		},
	}
	c.Flags().StringVar(&dir, "dir", defaultDevDir(), "folder for everything that dev mode makes")
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file whose vault, catalog, sessions, tokens and limits are added")
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:7443", "address for workloads")
	c.Flags().StringVar(&admin, "admin-listen", "127.0.0.1:7444", "address for operators")
	c.Flags().StringVar(&metrics, "metrics-listen", "127.0.0.1:7445", "address for metrics, or off")
	return c
}

func defaultDevDir() string { return filepath.Join(os.TempDir(), "claviger-dev") }

func printDev(w io.Writer, env *dev.Env, s *server.Server) {
	workloads, admin, metrics := s.Addresses()
	cli.Fprintf(w, `
Claviger %s, dev mode. The hardware is SIMULATED, under a test root made just now:
this proves nothing about any machine. Never keep real secrets here.

  workloads  %s      identity %s
  operators  %s
  metrics    http://%s/metrics
  policies   %s/policies  (change one: it is in force a moment later)

In a second terminal:

  . %[6]s/env
  claviger-agent get db/orders --simulated-device $CLAVIGER_DEV/device.json
  claviger-agent get disks/vm-1 --simulated-device $CLAVIGER_DEV/device.json | xxd
  claviger-agent get db/orders --simulated-device $CLAVIGER_DEV/device.json --simulated-measurement evil   # denied
  claviger audit tail            # who got what, and why not

`, version, workloads, base64.StdEncoding.EncodeToString(s.Identity()), admin, metrics, env.Dir)
}

// serve runs until a signal or a failure, then drains.
func serve(ctx context.Context, cfg server.Config, opt server.Options, stderr io.Writer, started func(*server.Server) error) error {
	log, err := newLogger(stderr, cfg.Log)
	if err != nil {
		return err
	}
	opt.Logger = log
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(broker.GCPercent)
	}
	if cfg.Tracing.OTLP != "" {
		stop, err := telemetry.Trace(ctx, cfg.Tracing.OTLP, opt.Version)
		if err != nil {
			return err
		}
		defer func() { _ = stop(context.WithoutCancel(ctx)) }()
	}
	s, err := server.Start(ctx, cfg, opt)
	if err != nil {
		return err
	}
	w, a, m := s.Addresses()
	log.Info("serving", "version", opt.Version, "workloads", w, "operators", a, "metrics", m,
		"identity", base64.StdEncoding.EncodeToString(s.Identity()), "simulated", len(opt.TestRoots) > 0)
	if started != nil {
		err = started(s)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go func() {
		for {
			select {
			case <-hup:
				s.Reload(ctx)
				log.Info("SIGHUP: the configuration file is read at the start only; restart for what changed there")
			case <-ctx.Done():
				return
			}
		}
	}()
	if err == nil {
		err = s.Wait(ctx)
	}
	log.Info("stopping")
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if cerr := s.Close(closing); err == nil {
		err = cerr
	}
	return err
}

func newLogger(w io.Writer, cfg server.LogConfig) (*slog.Logger, error) {
	var level slog.Level
	if cfg.Level != "" {
		if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
			return nil, fmt.Errorf("log.level: %q is none of debug, info, warn, error", cfg.Level)
		}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch cfg.Format {
	case "", "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log.format: %q is neither json nor text", cfg.Format)
}
